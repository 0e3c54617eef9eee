//! The journal of connections, as accidents and attackers may leave it.

use std::sync::OnceLock;

use nat::{
    Address, Checksum, Config, Endpoint, External, Filter, Nat, NetworkId, OwnerId, Packet, Party, Protocol,
    Rule, Time, Verdict,
};
use switch::journal::Key;
use switch::journal::file::{self, Origin, PLACES, Writer};
use switch::journal::record::{self, SIZE, Stored, checksum};

use super::Bytes;

const ORIGIN_NAME: &str = "swd";
const BOOT: [u8; 16] = [7; 16];
const SEED: u64 = 0x5eed;
const NOW: Time = Time::from_secs(1000);
const NETWORK: NetworkId = NetworkId(1);
const EXTERNAL: [u8; 4] = [192, 0, 2, 1];
const EXTERNAL_V6: std::net::Ipv6Addr = std::net::Ipv6Addr::new(0x2001, 0xdb8, 0xff, 0, 0, 0, 0, 1);
/// Connections of the journal that swd wrote: to the outside, to published ports, to the outside by IPv6.
const OUT: u8 = 20;
const HAIRPINS: u8 = 6;
const OUT_V6: u8 = 4;

fn origin() -> Origin {
    Origin { instance: Key::of(ORIGIN_NAME), boot: BOOT }
}

fn party(port: &str) -> record::Party {
    record::Party::of("default", port)
}

/// A translator with one network and some published ports.
fn translator() -> Nat {
    let mut nat = Nat::new(Config { connections: 64, seed: 3, ..Config::default() });
    nat.set_network(NETWORK, nat::NetworkConfig::default());
    let target = Endpoint::new(Address::from_v4_octets([172, 18, 0, 2]), 80);
    for protocol in [Protocol::Tcp, Protocol::Udp] {
        let rule =
            Rule { protocol, host: None, ports: 5000..=5009, network: NETWORK, target, from: Vec::new() };
        nat.publish(rule).expect("a rule");
    }
    nat
}

/// A datagram of `172.18.0.host` to a server outside, or to a published port.
fn send(nat: &mut Nat, host: u8, port: u16, to: [u8; 4], to_port: u16) {
    let builder = etherparse::PacketBuilder::ipv4([172, 18, 0, host], to, 64).udp(port, to_port);
    let mut bytes = Vec::new();
    builder.write(&mut bytes, b"x").expect("memory");
    pass(nat, host, &mut bytes, to == EXTERNAL);
}

/// A datagram of `2001:db8::host` to a server outside.
fn send_v6(nat: &mut Nat, host: u8, port: u16) {
    let address = |last| std::net::Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, last).octets();
    let builder = etherparse::PacketBuilder::ipv6(address(u16::from(host)), address(0xf00), 64).udp(port, 9);
    let mut bytes = Vec::new();
    builder.write(&mut bytes, b"x").expect("memory");
    pass(nat, host, &mut bytes, false);
}

fn pass(nat: &mut Nat, host: u8, bytes: &mut [u8], to_external: bool) {
    let mut packet = Packet::parse(bytes, Checksum::Complete).expect("a packet");
    let from = Party { network: NETWORK, owner: OwnerId(u32::from(host)) };
    let external = External { v4: Some(EXTERNAL.into()), v6: Some(EXTERNAL_V6) };
    let verdict = match to_external {
        true => nat.hairpin(NOW, &mut packet, from, external, |_, _| Some(OwnerId(2))),
        false => nat.outbound(NOW, &mut packet, from, external),
    };
    if let Verdict::New(pending) = verdict {
        let _ = nat.commit(NOW, &mut packet, pending);
    }
}

/// A journal as swd writes it.
fn base() -> &'static [u8] {
    static BASE: OnceLock<Vec<u8>> = OnceLock::new();
    BASE.get_or_init(|| {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("journal");
        let mut writer = Writer::create(&path, origin(), 64, SEED).expect("a file");
        let mut nat = translator();
        nat.want_changes(true);
        for n in 0..OUT {
            send(&mut nat, 1 + n % 2, 1000 + u16::from(n), [198, 51, 100, 7], 9);
        }
        for n in (0..HAIRPINS).map(u16::from) {
            send(&mut nat, 1, 2000 + n, EXTERNAL, 5000 + n);
        }
        for n in 0..OUT_V6 {
            send_v6(&mut nat, 1 + n % 2, 3000 + u16::from(n));
        }
        while let Some((place, record)) = nat.next_change() {
            let record = record.expect("nothing has ended");
            let name = |i: usize| match record.owners[i] {
                OwnerId(1) => party("one"),
                OwnerId(2) => party("two"),
                _ => record::Party::OUTSIDE,
            };
            writer.put(place, &record, name(0), name(1));
        }
        writer.publish().expect("rename");
        std::fs::read(&path).expect("the file")
    })
}

/// Makes the checksums right again, so that what was changed is looked at.
fn seal(bytes: &mut [u8]) {
    for place in bytes.get_mut(PLACES..).unwrap_or_default().chunks_exact_mut(SIZE) {
        if place.iter().any(|byte| *byte != 0) {
            let sum = checksum(SEED, &place[8..]);
            place[..8].copy_from_slice(&sum.to_le_bytes());
        }
    }
}

/// A journal that was changed (some bytes, some bits, its length; with right checksums or not), or anything: what is taken over
/// is no more than was there, can be used, and leaves nothing behind when it ends.
///
/// # Panics
/// When something is wrong with swd.
pub fn journal(data: &[u8]) {
    let mut input = Bytes(data);
    let kind = input.u8().unwrap_or(0);
    let mut bytes = match kind & 3 {
        0 => input.0.to_vec(),
        // A good header before anything.
        1 => [&base()[..PLACES], input.0].concat(),
        _ => base().to_vec(),
    };
    if kind & 2 != 0 {
        while let [a, b, how, with] = *input.take(4) {
            let at = usize::from(u16::from_be_bytes([a, b]));
            match how % 4 {
                0 => bytes.truncate(at),
                1 => bytes.get_mut(at).into_iter().for_each(|byte| *byte = with),
                2 => bytes.get_mut(at).into_iter().for_each(|byte| *byte ^= 1 << (with % 8)),
                _ => {
                    // One place's record at another place.
                    let from = PLACES + usize::from(a % 30) * SIZE;
                    let to = PLACES + usize::from(with % 30) * SIZE;
                    if to.max(from) + SIZE <= bytes.len() {
                        bytes.copy_within(from..from + SIZE, to);
                        if with & 0x80 != 0 {
                            bytes[to + 8..to + 12].copy_from_slice(&u32::from(with % 30).to_le_bytes());
                        }
                    }
                }
            }
        }
    }
    if kind & 4 != 0 {
        seal(&mut bytes);
    }
    let Ok(found) = file::read(&bytes, origin()) else { return };
    let places = (bytes.len().saturating_sub(PLACES) / SIZE) as u64;
    assert!(found.stored.len() as u64 + found.torn + found.malformed <= places);
    check(&found.stored);
}

/// Gives records to a translator.
fn check(stored: &[Stored]) {
    for stored in stored {
        let bytes = record::encode(stored, 1);
        let again = record::decode(&bytes.narrow, bytes.wide.as_ref(), 1);
        assert_eq!(again, Ok(Some(*stored)), "what was read can be written");
    }
    let mut nat = translator();
    let mut taken = 0;
    for stored in stored {
        let mut record = stored.record;
        for ((tuple, owner), name) in record.tuples.iter_mut().zip(&mut record.owners).zip(stored.parties) {
            let number = [party("one"), party("two")].iter().position(|known| *known == name);
            (tuple.network, *owner) = match number {
                Some(at) => (NETWORK, OwnerId(u32::try_from(at).expect("two") + 1)),
                None => (NetworkId::OUTSIDE, OwnerId::OUTSIDE),
            };
        }
        let external = |address| {
            [Address::from_v4_octets(EXTERNAL), Address::from_v6_octets(EXTERNAL_V6.octets())]
                .contains(&address)
        };
        taken += u32::from(nat.restore(NOW, &record, external).is_ok());
    }
    assert_eq!(nat.connection_count(), taken);
    for n in 0..OUT {
        send(&mut nat, 1 + n % 2, 1000 + u16::from(n), [198, 51, 100, 7], 9);
    }
    nat.end_all(NOW, Filter::default());
    while nat.expire(NOW, 1000) {}
    assert_eq!((nat.connection_count(), nat.mapping_count()), (0, 0), "nothing is left");
    assert!(nat.published().all(|(_, _, connections)| connections == 0));
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn what_swd_writes_is_taken_over() {
        let found = file::read(base(), origin()).expect("a journal");
        assert_eq!((found.stored.len(), found.torn, found.malformed, found.truncated), (30, 0, 0, 0));
        check(&found.stored);
        let mut nat = translator();
        let outside = found.stored.iter().filter(|s| s.parties[1] == record::Party::OUTSIDE).count();
        assert_eq!(outside, usize::from(OUT + OUT_V6));
        let wide = found.stored.iter().filter(|s| record::encode(s, 1).wide.is_some()).count();
        assert_eq!(wide, usize::from(OUT_V6));
        let mut one = found.stored[0].record;
        (one.tuples[0].network, one.owners[0]) = (NETWORK, OwnerId(1));
        assert!(nat.restore(NOW, &one, |_| true).is_ok(), "{one:?}");
    }

    #[test]
    fn what_is_not_of_this_swd_and_this_life_of_the_machine_is_refused_and_counted() {
        use switch::journal::file::Refused::{Damaged, Foreign, Version};
        let read = |at: usize, value: u8| {
            let mut bytes = base().to_vec();
            bytes[at] = value;
            file::read(&bytes, origin()).map(|found| found.stored.len())
        };
        assert_eq!(read(0, b'x'), Err((Foreign, 30)));
        assert_eq!(read(8, 0), Err((Version, 30)));
        assert_eq!(read(8, 200), Err((Version, 30)));
        assert_eq!(read(16, 1), Err((Damaged, 30)));
        let other = Origin { boot: [8; 16], ..origin() };
        assert_eq!(file::read(base(), other), Err((Foreign, 30)));
        let other = Origin { instance: Key::of("other"), ..origin() };
        assert_eq!(file::read(base(), other), Err((Foreign, 30)));
        assert_eq!(file::read(&[], origin()), Err((Foreign, 0)));
        let cut = file::read(&base()[..PLACES + 10 * SIZE + 8], origin()).expect("a journal");
        assert_eq!((cut.stored.len(), cut.truncated), (10, 54), "of 64 places");
        assert_eq!(file::read(&base()[..PLACES - 1], origin()).expect("a header").truncated, 64);
    }

    proptest! {
        #[test]
        fn changed_bits_and_bytes_do_no_harm(kind in 0..8_u8, more in prop::collection::vec(any::<u8>(), 0..400)) {
            journal(&[&[kind], &more[..]].concat());
        }

        #[test]
        fn one_changed_bit_costs_one_connection(bit in 0..30 * SIZE * 8) {
            let mut bytes = base().to_vec();
            bytes[PLACES + bit / 8] ^= 1 << (bit % 8);
            let found = file::read(&bytes, origin()).expect("a journal");
            // Of an empty place, or of the word that says that there is something.
            prop_assert!(found.stored.len() >= 29 && found.stored.len() as u64 + found.torn == 30, "{:?}", found.torn);
        }
    }
}
