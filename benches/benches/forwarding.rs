//! What a frame costs between receiving and sending: the MAC table, and the whole pipeline from memory port to memory port.
//!
//! `cargo bench -p benches`. Times of `engine/` are for a frame, one copy into the batch included; system calls and copies
//! by the kernel are not in them. What is allocated meanwhile is a test: `tests/allocations.rs`.
#![allow(missing_docs, reason = "criterion's macros")]

use std::hint::black_box;

use benches::memory::{FRAMES, NETWORK, Preset, World, mac};
use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use nat::Time;
use switch::fdb::{Fdb, FdbConfig};
use switch::snapshot::PortId;

/// Stations in the MAC table.
const STATIONS: u16 = 10_000;
/// An address that nobody has.
const NOBODY: u16 = 60_000;

fn table(c: &mut Criterion) {
    let fdb = Fdb::new(FdbConfig::default());
    let now = Time::from_secs(1000);
    for n in 0..STATIONS {
        fdb.learn(NETWORK, mac(n), PortId(u32::from(n % 100)), now);
    }
    let mut n = 0;
    // A prime step: the cache has not seen the next one.
    let mut next = move || {
        n = (n + 7919) % STATIONS;
        n
    };
    c.bench_function("fdb/lookup/hit", |b| b.iter(|| fdb.lookup(NETWORK, mac(black_box(next())), now)));
    c.bench_function("fdb/lookup/miss", |b| b.iter(|| fdb.lookup(NETWORK, mac(black_box(NOBODY)), now)));
    c.bench_function("fdb/learn/known", |b| {
        b.iter(|| {
            let n = next();
            fdb.learn(NETWORK, mac(black_box(n)), PortId(u32::from(n % 100)), now)
        });
    });
}

fn engine(c: &mut Criterion) {
    let mut group = c.benchmark_group("engine");
    group.throughput(Throughput::Elements(FRAMES));
    for length in [64, 1400] {
        let mut world = World::new();
        let mut bridged = Preset::bridged(0, length);
        group.bench_function(BenchmarkId::new("bridged", length), |b| b.iter(|| world.pass(&mut bridged)));
        let mut outbound = Preset::outbound(4000, length);
        let mut answer = world.answer_to(&mut outbound);
        group.bench_function(BenchmarkId::new("masqueraded-out", length), |b| {
            b.iter(|| world.pass(&mut outbound));
        });
        group.bench_function(BenchmarkId::new("masqueraded-in", length), |b| {
            b.iter(|| world.pass(&mut answer));
        });
    }
    group.finish();
}

criterion_group!(benches, table, engine);
criterion_main!(benches);
