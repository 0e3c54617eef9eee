//! What connection tracking and NAT cost, part by part: parsing, a known connection, a new one, expiry, rewriting.
//!
//! `cargo bench -p benches --bench translation`. Times are for a packet.
#![allow(missing_docs, reason = "criterion's macros")]

use std::hint::black_box;
use std::time::{Duration, Instant};

use benches::flow::{Flows, scattered};
use criterion::{BenchmarkId, Criterion, criterion_group, criterion_main};
use nat::checksum::Delta;
use nat::{Address, Checksum, Packet, Time};

fn packets(c: &mut Criterion) {
    let mut flows = Flows::new(16);
    let bytes = flows.packet(1).to_vec();
    let mut work = bytes.clone();
    c.bench_function("packet/parse", |b| {
        b.iter(|| Packet::parse(black_box(&mut work), Checksum::Complete).map(|p| p.protocol()));
    });
    let (old, new) = (Address::from_v4_octets([172, 18, 0, 10]), Address::from_v4_octets([192, 0, 2, 1]));
    c.bench_function("packet/checksum-update", |b| {
        b.iter(|| Delta::default().address(black_box(old), new).word(4000, black_box(61_000)).update(0x1234));
    });
    c.bench_function("packet/decrement-hop-limit", |b| {
        b.iter(|| {
            work.copy_from_slice(&bytes);
            Packet::parse(&mut work, Checksum::Complete).map(|mut p| p.decrement_hop_limit())
        });
    });
}

fn connections(c: &mut Criterion) {
    let now = Time::from_secs(1000);
    let mut group = c.benchmark_group("conntrack");
    for count in [1_000, 100_000, 1_000_000_u32] {
        let mut flows = Flows::new(count + 1);
        for n in 0..count {
            assert!(flows.send(now, scattered(n, count)), "flow {n} of {count} is refused");
        }
        let mut n = 0;
        group.bench_function(BenchmarkId::new("hit", count), |b| {
            b.iter(|| {
                n = (n + 1) % count;
                flows.send(now, scattered(n, count))
            });
        });
    }
    group.bench_function("new", |b| {
        b.iter_custom(|times| {
            spent(times, |flows, count| {
                let start = Instant::now();
                for n in 0..count {
                    black_box(flows.send(now, n));
                }
                start.elapsed()
            })
        });
    });
    group.bench_function("expire", |b| {
        b.iter_custom(|times| {
            spent(times, |flows, count| {
                for n in 0..count {
                    flows.send(now, n);
                }
                // All of them are past their deadline.
                let later = Time::from_secs(now.as_secs() + 3600);
                let start = Instant::now();
                while flows.nat.expire(later, 256) {}
                start.elapsed()
            })
        });
    });
    group.finish();
}

/// Runs `times` of something in tables of a bounded size.
fn spent(times: u64, mut run: impl FnMut(&mut Flows, u32) -> Duration) -> Duration {
    const MOST: u64 = 100_000;
    let mut left = times;
    let mut total = Duration::ZERO;
    while left > 0 {
        let count = left.min(MOST);
        let count_short = u32::try_from(count).unwrap_or(u32::MAX);
        total += run(&mut Flows::new(count_short), count_short);
        left -= count;
    }
    total
}

criterion_group!(benches, packets, connections);
criterion_main!(benches);
