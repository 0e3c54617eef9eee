//! What a frame costs between receiving and sending: the MAC table, and the whole engine from memory port to memory port.
//!
//! `cargo bench -p benches`. Times are for one frame; system calls and copies by the kernel are not in them.
#![allow(
    missing_docs,
    clippy::unwrap_used,
    reason = "criterion's macros; a benchmark that cannot go on may as well end"
)]

use std::hint::black_box;
use std::sync::Arc;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use nat::Time;
use switch::batch::{BATCH, Batch};
use switch::engine::{Engine, Shared};
use switch::fdb::{Fdb, FdbConfig};
use switch::mac::Mac;
use switch::port::memory::MemoryPorts;
use switch::port::{Rx, Tx};
use switch::snapshot::{Link, Network, NetworkId, Port, PortId, Snapshot};

const NET: NetworkId = NetworkId(0);

fn mac(n: u16) -> Mac {
    let [a, b] = n.to_be_bytes();
    Mac([2, 0, 0, 0, a, b])
}

fn table(c: &mut Criterion) {
    let fdb = Fdb::new(FdbConfig::default());
    let now = Time::from_secs(1000);
    for n in 0..10_000 {
        fdb.learn(NET, mac(n), PortId(u32::from(n % 100)), now);
    }
    let mut n = 0;
    let mut next = move || {
        n = (n + 7919) % 10_000;
        n
    };
    c.bench_function("fdb/lookup/hit", |b| b.iter(|| fdb.lookup(NET, mac(black_box(next())), now)));
    c.bench_function("fdb/lookup/miss", |b| b.iter(|| fdb.lookup(NET, mac(black_box(60_000)), now)));
    c.bench_function("fdb/learn/known", |b| {
        b.iter(|| {
            let n = next();
            fdb.learn(NET, mac(black_box(n)), PortId(u32::from(n % 100)), now)
        });
    });
}

fn engine(c: &mut Criterion) {
    let (shared, _events) = Shared::new(FdbConfig::default());
    let port = |n: u32| Port {
        id: PortId(n),
        name: format!("p{n}").into(),
        network: NET,
        link: Link::Memory,
        up: true,
        veth_mtu: None,
        counters: Arc::default(),
    };
    let network = Network {
        id: NET,
        name: "bench".into(),
        gateways: Vec::new(),
        gateway_mac: mac(1),
        mtu: 1500,
        host_port: None,
        masquerade: true,
        isolate_ports: false,
        flood: Vec::new(),
    };
    let snapshot = Snapshot::new([network], (0..2).map(port), []);
    let mut engine = Engine::new(shared, Vec::new());
    let mut ports = MemoryPorts::default();
    let mut batch = Batch::new();
    let mut run = |to: Mac, from: Mac, source: PortId| {
        let frame = [&to.0[..], &from.0, &[0x08, 0x00], &[0; 50]].concat();
        for _ in 0..BATCH {
            ports.put(source, frame.clone());
        }
        batch.clear();
        ports.receive(&mut batch).unwrap();
        engine.run(Time::from_secs(1000), &snapshot, &mut batch);
        ports.send(&batch, engine.outgoing());
        engine.settle(&snapshot, &batch);
        while ports.take(PortId(0)).or_else(|| ports.take(PortId(1))).is_some() {}
    };
    run(mac(20), mac(10), PortId(0));
    run(mac(10), mac(20), PortId(1));
    let mut group = c.benchmark_group("engine");
    group.throughput(Throughput::Elements(BATCH as u64));
    group.bench_function("unicast/batch", |b| b.iter(|| run(mac(20), mac(10), PortId(0))));
    group.finish();
}

criterion_group!(benches, table, engine);
criterion_main!(benches);
