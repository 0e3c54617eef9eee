//! The whole pipeline in memory: two containers, the outside, and a port that gives the same frame again and again.
//!
//! No system call, no clock, no copy but the one into the batch, and no allocation of its own: what is seen is the
//! engine's.

use std::io;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;
use std::time::Duration;

use etherparse::PacketBuilder;
use nat::Time;
use switch::batch::{BATCH, Batch, Source};
use switch::engine::{Engine, Fate, Outgoing, Shared};
use switch::fdb::FdbConfig;
use switch::frame::{HEADROOM, OFFLOAD_HEADER, Offload};
use switch::mac::Mac;
use switch::port::{Rx, Tx};
use switch::router::resolve::Hop;
use switch::router::route::{Action, Route, Routes};
use switch::snapshot::{Gateway, Link, Network, NetworkId, Port, PortId, Snapshot, Uplink};

/// The containers' network.
pub const NETWORK: NetworkId = NetworkId(0);
/// The host's address outside.
pub const HOST: Ipv4Addr = Ipv4Addr::new(172, 16, 0, 2);
/// The router outside, and whom the containers talk to.
pub const OUTSIDE: Ipv4Addr = Ipv4Addr::new(172, 16, 0, 1);

const UPLINK: u32 = 2;
const GATEWAY_MAC: Mac = mac(1);
const OUTSIDE_MAC: Mac = mac(2);

/// The MAC of station `n`.
pub const fn mac(n: u16) -> Mac {
    let [a, b] = n.to_be_bytes();
    Mac([2, 0, 0, 0, a, b])
}

/// The address of container 0 or 1.
pub fn container(n: u8) -> Ipv4Addr {
    Ipv4Addr::new(172, 18, 0, 10 * (n + 1))
}

/// A UDP datagram in a frame.
pub fn datagram(macs: (Mac, Mac), from: (Ipv4Addr, u16), to: (Ipv4Addr, u16), payload: &[u8]) -> Vec<u8> {
    let builder = PacketBuilder::ethernet2(macs.0.0, macs.1.0)
        .ipv4(from.0.octets(), to.0.octets(), 64)
        .udp(from.1, to.1);
    let mut frame = Vec::with_capacity(builder.size(payload.len()));
    // The only error is that of the writer, and a Vec has none.
    let _ = builder.write(&mut frame, payload);
    frame
}

/// A frame, and where it comes from.
#[derive(Clone, Debug)]
pub struct Preset {
    frame: Vec<u8>,
    source: Source,
}

impl Preset {
    /// From container `from` to the other, `length` bytes of payload.
    pub fn bridged(from: u8, length: usize) -> Self {
        let to = 1 - from;
        let macs = (mac(10 + u16::from(from)), mac(10 + u16::from(to)));
        let frame = datagram(macs, (container(from), 4000), (container(to), 5000), &vec![0; length]);
        Self { frame, source: Source::Port(PortId(u32::from(from))) }
    }

    /// From container 0 to the outside, from this source port.
    pub fn outbound(port: u16, length: usize) -> Self {
        let frame = datagram((mac(10), GATEWAY_MAC), (container(0), port), (OUTSIDE, 5000), &vec![0; length]);
        Self { frame, source: Source::Port(PortId(0)) }
    }

    /// What came out of the uplink, answered.
    ///
    /// # Panics
    /// When it is not a datagram.
    pub fn answer(sent: &[u8]) -> Self {
        let port = |at: usize| u16::from_be_bytes([sent[at], sent[at + 1]]);
        let (source, destination) = (port(34), port(36));
        let frame = datagram((OUTSIDE_MAC, mac(3)), (OUTSIDE, destination), (HOST, source), &sent[42..]);
        Self { frame, source: Source::Uplink(UPLINK) }
    }

    fn offload(&self) -> Offload {
        // A container leaves the checksum to hardware, as over veth and TAP.
        match self.source {
            Source::Uplink(_) => Offload::default(),
            _ => Offload { flags: Offload::NEEDS_CSUM, csum_start: 34, csum_offset: 6, ..Offload::default() },
        }
    }
}

impl Rx for Preset {
    fn receive(&mut self, batch: &mut Batch) -> io::Result<()> {
        let offload = self.offload();
        while let Some(buffer) = batch.next_buffer() {
            buffer[HEADROOM..HEADROOM + self.frame.len()].copy_from_slice(&self.frame);
            if let Some(header) = buffer[HEADROOM - OFFLOAD_HEADER..].first_chunk_mut() {
                offload.emit(header);
            }
            batch.push(self.frame.len(), self.source, None);
        }
        Ok(())
    }
}

/// A way out that only counts.
struct Nowhere(usize);

impl Tx for Nowhere {
    fn send(&mut self, _: &Batch, outgoing: &mut [Outgoing]) {
        for out in outgoing.iter_mut().filter(|out| out.fate == Fate::Waiting) {
            out.fate = Fate::Sent;
            self.0 += 1;
        }
    }
}

/// The engine with its world.
#[derive(Debug)]
pub struct World {
    engine: Engine,
    snapshot: Snapshot,
    batch: Batch,
    now: Time,
}

impl Default for World {
    fn default() -> Self {
        Self::new()
    }
}

impl World {
    /// Two containers that have been seen, and an outside whose MAC is known.
    pub fn new() -> Self {
        let (shared, _events) = Shared::new(FdbConfig::default());
        let now = Time::from_secs(1000);
        let router = Hop::Outside(UPLINK, IpAddr::V4(OUTSIDE));
        if let Ok(mut state) = shared.forwarding.lock() {
            state.resolver.mirror(now, router, OUTSIDE_MAC);
        }
        for n in 0..2 {
            shared.neighbors.note(
                NETWORK,
                container(n).into(),
                mac(10 + u16::from(n)),
                PortId(u32::from(n)),
                now,
            );
        }
        let mut world =
            Self { engine: Engine::new(shared, Vec::new()), snapshot: snapshot(), batch: Batch::new(), now };
        world.pass(&mut Preset::bridged(0, 64));
        world.pass(&mut Preset::bridged(1, 64));
        world
    }

    /// Time goes on: entries are refreshed, connections live on.
    pub fn wait(&mut self, time: Duration) {
        self.now = Time::from_nanos(self.now.as_nanos() + u64::try_from(time.as_nanos()).unwrap_or(u64::MAX));
    }

    /// A batch of [`BATCH`] frames from receiving to sending; tells how many were sent.
    pub fn pass(&mut self, from: &mut Preset) -> usize {
        self.batch.clear();
        // A preset never ends.
        let _ = from.receive(&mut self.batch);
        self.engine.run(self.now, &self.snapshot, &mut self.batch);
        let mut out = Nowhere(0);
        out.send(&self.batch, self.engine.outgoing());
        self.engine.settle(&self.snapshot, &self.batch);
        out.0
    }

    /// The first frame of the last batch as it left.
    pub fn left(&self) -> &[u8] {
        &self.batch.wire(0)[OFFLOAD_HEADER..]
    }

    /// What a container's datagrams to the outside are answered by, once the first was sent.
    pub fn answer_to(&mut self, outbound: &mut Preset) -> Preset {
        self.pass(outbound);
        Preset::answer(self.left())
    }
}

/// Frames of a batch, for throughput.
pub const FRAMES: u64 = BATCH as u64;

fn snapshot() -> Snapshot {
    let port = |n: u32| Port {
        id: PortId(n),
        name: format!("p{n}").into(),
        network: NETWORK,
        link: Link::Memory,
        up: true,
        veth_mtu: None,
        limits: None,
        sources: None,
        counters: Arc::default(),
    };
    let subnet = ipnet::Ipv4Net::new_assert(Ipv4Addr::new(172, 18, 0, 0), 16);
    let network = Network {
        id: NETWORK,
        name: "bench".into(),
        gateways: vec![Gateway { subnet: subnet.into(), address: Ipv4Addr::new(172, 18, 0, 1).into() }],
        gateway_mac: GATEWAY_MAC,
        mtu: 1500,
        host_port: None,
        masquerade: true,
        isolate_ports: false,
        flood: Vec::new(),
    };
    let mut snapshot = Snapshot::new([network], (0..2).map(port), [IpAddr::V4(HOST)]);
    snapshot.uplinks.push(Uplink {
        ifindex: UPLINK,
        name: "eth0".into(),
        mac: mac(3),
        mtu: 1500,
        up: true,
        addresses: vec![ipnet::Ipv4Net::new_assert(HOST, 16).into()],
        counters: Arc::default(),
    });
    let action = Action::Forward { ifindex: UPLINK, gateway: None, source: None, mtu: None };
    let everywhere = ipnet::Ipv4Net::new_assert(Ipv4Addr::new(172, 16, 0, 0), 16).into();
    snapshot.routes = Arc::new(Routes::new([Route { destination: everywhere, metric: 0, action }]));
    snapshot
}
