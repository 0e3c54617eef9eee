//! A router in fifty lines: what a program needs beside this library to translate packets, without any switch.
//!
//! It translates a DNS question of an inside host, the answer to it, and a connection to a published port, and prints
//! what goes where. Run with `cargo run -p nat --example router`.

use std::net::Ipv4Addr;

use nat::{
    Address, Checksum, Config, Endpoint, External, Nat, NetworkId, OwnerId, Packet, Party, Protocol, Rule,
    Time, Verdict,
};

const INSIDE: NetworkId = NetworkId(1);
const HOST: Ipv4Addr = Ipv4Addr::new(172, 18, 0, 10);
const EXTERNAL: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 1);
const SERVER: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 7);

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut nat = Nat::new(Config { seed: 42, ..Config::default() });
    nat.publish(Rule {
        protocol: Protocol::Udp,
        host: None,
        ports: 5000..=5000,
        network: INSIDE,
        target: Endpoint::new(HOST, 53),
        from: Vec::new(),
    })?;
    let now = Time::from_secs(1);

    let mut question = datagram(HOST, 40_000, SERVER, 53);
    route(&mut nat, now, &mut question)?;
    let port = u16::from_be_bytes([question[20], question[21]]);
    route(&mut nat, now, &mut datagram(SERVER, 53, EXTERNAL, port))?;
    route(&mut nat, now, &mut datagram(SERVER, 9999, EXTERNAL, 5000))?;
    route(&mut nat, now, &mut datagram(SERVER, 9999, EXTERNAL, 22))?;

    // Now and then, or when `poll_at` says so.
    while nat.expire(now, 64) {}
    for (_, connection) in nat.connections(now, nat::Filter::default()) {
        println!("{} {}", connection.state(), connection.tuple(nat::Direction::Original));
    }
    Ok(())
}

/// One packet: which way it goes, what the library says, and what a router would do.
fn route(nat: &mut Nat, now: Time, bytes: &mut [u8]) -> Result<(), Box<dyn std::error::Error>> {
    let mut packet = Packet::parse(bytes, Checksum::Complete)?;
    let before = packet.tuple(INSIDE);
    let host = Party { network: INSIDE, owner: OwnerId(7) };
    let verdict = if packet.source() == Address::from(HOST) {
        nat.outbound(now, &mut packet, host, External { v4: Some(EXTERNAL), v6: None })
    } else {
        nat.inbound(now, &mut packet, |_, target| (target == Address::from(HOST)).then_some(host.owner))
    };
    // Here a router asks its policy and its routes. What it drops needs no undoing.
    let verdict = match verdict {
        Verdict::New(pending) => nat.commit(now, &mut packet, pending),
        verdict => verdict,
    };
    match verdict {
        Verdict::Forward(forward) => {
            packet.decrement_hop_limit().ok_or("time exceeded")?;
            println!("{before:?} -> {:?}", packet.tuple(forward.to.network));
        }
        verdict => println!("{before:?}: {verdict:?}"),
    }
    Ok(())
}

/// A UDP datagram without payload and without checksum.
fn datagram(source: Ipv4Addr, source_port: u16, destination: Ipv4Addr, destination_port: u16) -> Vec<u8> {
    let mut bytes = vec![0x45, 0, 0, 28, 0, 0, 0, 0, 64, 17, 0, 0];
    bytes.extend(source.octets());
    bytes.extend(destination.octets());
    let sum = !nat::checksum::sum(&bytes);
    bytes[10..12].copy_from_slice(&sum.to_be_bytes());
    bytes.extend(source_port.to_be_bytes());
    bytes.extend(destination_port.to_be_bytes());
    bytes.extend([0, 8, 0, 0]);
    bytes
}
