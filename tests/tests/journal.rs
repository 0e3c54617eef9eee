//! The journal of connections at its size: a hundred thousand of them, written, read and taken over.

use std::time::Duration;

use nat::{Address, Checksum, Config, External, Nat, NetworkId, OwnerId, Packet, Party, Time, Verdict};
use nix::time::{ClockId, clock_gettime};
use switch::journal::Key;
use switch::journal::file::{self, Origin, Writer};
use switch::journal::record;

const NETWORK: NetworkId = NetworkId(1);
const EXTERNAL: [u8; 4] = [192, 0, 2, 1];
const NOW: Time = Time::from_secs(1000);
const FLOWS: u32 = 100_000;

fn translator() -> Nat {
    let owner = nat::OwnerLimits { connections: FLOWS, new_per_second: FLOWS };
    let mut nat = Nat::new(Config { owner, ..Config::default() });
    nat.set_network(NETWORK, nat::NetworkConfig::default());
    nat
}

/// Opens a flow of its own for each number, from ten containers.
fn open(nat: &mut Nat, flow: u32) {
    let [_, a, b, c] = flow.to_be_bytes();
    let source = [172, 18, 0, 1 + c % 10];
    let port = 1024 + u16::try_from(flow / 10 % 400).expect("small");
    let builder = etherparse::PacketBuilder::ipv4(source, [198, 51 + a, b, c], 64).udp(port, 9);
    let mut bytes = Vec::new();
    builder.write(&mut bytes, b"x").expect("memory");
    let mut packet = Packet::parse(&mut bytes, Checksum::Complete).expect("a packet");
    let from = Party { network: NETWORK, owner: OwnerId(u32::from(source[3])) };
    let external = External { v4: Some(EXTERNAL.into()), v6: None };
    let Verdict::New(pending) = nat.outbound(NOW, &mut packet, from, external) else { panic!("flow {flow}") };
    assert!(matches!(nat.commit(NOW, &mut packet, pending), Verdict::Forward(_)), "flow {flow}");
}

fn party(owner: OwnerId) -> record::Party {
    if owner == OwnerId::OUTSIDE {
        return record::Party::OUTSIDE;
    }
    record::Party::of("default", &format!("c{}", owner.0))
}

fn write_down(nat: &mut Nat, writer: &mut Writer) -> u32 {
    let mut written = 0;
    while let Some((place, record)) = nat.next_change() {
        let record = record.expect("nothing has ended");
        writer.put(place, &record, party(record.owners[0]), party(record.owners[1]));
        written += 1;
    }
    written
}

/// Processor time of this thread: what else runs on the machine is not counted.
fn worked() -> Duration {
    clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID).expect("a clock").into()
}

/// What a start does besides: reading the file, looking names up, taking each connection over, and writing all of them down
/// anew.
#[test]
fn a_hundred_thousand_connections_are_taken_over_in_two_seconds() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("journal");
    let origin = Origin { instance: Key::of("swd"), boot: [7; 16] };
    let mut nat = translator();
    let mut writer = Writer::create(&path, origin, 262_144, 1).expect("a file");
    nat.want_changes(true);
    for flow in 0..FLOWS {
        open(&mut nat, flow);
    }
    assert_eq!(write_down(&mut nat, &mut writer), FLOWS);
    assert_eq!(writer.lost(), 0);
    writer.publish().expect("rename");

    let begin = worked();
    let found = file::read(&std::fs::read(&path).expect("the file"), origin).expect("a journal");
    let read = worked() - begin;
    let mut new = translator();
    for stored in &found.stored {
        let mut record = stored.record;
        for ((tuple, owner), name) in record.tuples.iter_mut().zip(&mut record.owners).zip(stored.parties) {
            let number = (1..=10).find(|n| party(OwnerId(*n)) == name);
            (tuple.network, *owner) = match number {
                Some(number) => (NETWORK, OwnerId(number)),
                None => (NetworkId::OUTSIDE, OwnerId::OUTSIDE),
            };
        }
        let external = |address| address == Address::from_v4_octets(EXTERNAL);
        new.restore(NOW, &record, external).unwrap_or_else(|e| panic!("{e}: {record:?}"));
    }
    let restored = worked() - begin;
    let mut writer = Writer::create(&path, origin, 262_144, 2).expect("a file");
    new.want_changes(true);
    assert_eq!(write_down(&mut new, &mut writer), FLOWS);
    writer.publish().expect("rename");
    let all = worked() - begin;
    println!("read in {read:?}, taken over after {restored:?}, written down after {all:?}");
    assert_eq!(new.connection_count(), FLOWS);
    assert!(all < Duration::from_secs(2), "{all:?}");
}
