//! Figures of the table, by hand: `cargo run --release -p nat --example measure`.
#![allow(clippy::unwrap_used, reason = "a measurement that cannot go on may as well end")]

#[path = "../tests/common/mod.rs"]
mod common;

use std::time::{Duration, Instant};

use common::packets::udp;
use common::party;
use nat::{Checksum, Config, External, Nat, OwnerLimits, Packet, Time, Verdict};

/// Resident memory in bytes.
fn resident() -> usize {
    let statm = std::fs::read_to_string("/proc/self/statm").unwrap();
    statm.split(' ').nth(1).unwrap().parse::<usize>().unwrap() * 4096
}

/// A translator, and a packet whose ports are rewritten for each flow.
struct World {
    nat: Nat,
    bytes: Vec<u8>,
    external: External,
}

impl World {
    fn new(connections: u32) -> Self {
        let owner = OwnerLimits { connections, new_per_second: u32::MAX };
        let nat = Nat::new(Config { connections, owner, ..Config::default() });
        let external = External { v4: Some("192.0.2.1".parse().unwrap()), v6: None };
        Self { nat, bytes: udp("172.18.0.10:1", "198.51.100.7:1", b""), external }
    }

    /// Sends a datagram of flow `n`: 64 destination ports for each of the container's.
    fn send(&mut self, now: Time, n: u32) {
        let mut bytes = self.bytes.clone();
        let source = u16::try_from(1024 + n / 64).unwrap();
        let destination = u16::try_from(20_000 + n % 64).unwrap();
        bytes[20..22].copy_from_slice(&source.to_be_bytes());
        bytes[22..24].copy_from_slice(&destination.to_be_bytes());
        let mut packet = Packet::parse(&mut bytes, Checksum::Partial).unwrap();
        let from = party(packet.source());
        match self.nat.outbound(now, &mut packet, from, self.external) {
            Verdict::Forward(_) => {}
            Verdict::New(pending) => {
                assert!(matches!(self.nat.commit(now, &mut packet, pending), Verdict::Forward(_)));
            }
            verdict => panic!("{verdict:?}"),
        }
    }
}

/// A flow of 200,000 in the order of a permutation, so that the cache does not help.
const FLOWS: u32 = 200_000;

fn nth(n: u32) -> u32 {
    u32::try_from(u64::from(n) * 7919 % u64::from(FLOWS)).unwrap()
}

fn main() {
    let empty = resident();
    let mut world = World::new(262_144);
    let begun = resident();
    let now = Time::from_secs(1000);
    let mut longest = Duration::ZERO;
    let start = Instant::now();
    for n in 0..FLOWS {
        let one = Instant::now();
        world.send(now, nth(n));
        longest = longest.max(one.elapsed());
    }
    let opening = start.elapsed();
    println!("empty table: {} KiB", (begun - empty) / 1024);
    println!("resident per flow: {} bytes", (resident() - begun) / FLOWS as usize);
    println!("opening: {} ns each, longest {longest:?}", opening.as_nanos() / u128::from(FLOWS));
    let start = Instant::now();
    for n in 0..FLOWS {
        world.send(now, nth(n));
    }
    println!("existing: {} ns each", start.elapsed().as_nanos() / u128::from(FLOWS));
    let start = Instant::now();
    for _ in 0..FLOWS {
        world.send(now, 1);
    }
    println!("existing, one flow: {} ns each", start.elapsed().as_nanos() / u128::from(FLOWS));
    let start = Instant::now();
    world.nat.remove_owner(now, party("172.18.0.10".parse::<std::net::IpAddr>().unwrap().into()).owner);
    println!("removing the owner: {:?}", start.elapsed());
    let (start, mut calls, mut longest) = (Instant::now(), 0u32, Duration::ZERO);
    loop {
        let one = Instant::now();
        let more = world.nat.expire(now, 256);
        longest = longest.max(one.elapsed());
        calls += 1;
        if !more {
            break;
        }
    }
    println!("collecting: {:?} in {calls} calls of 256 steps, longest {longest:?}", start.elapsed());
    assert_eq!(world.nat.connection_count(), 0);
}
