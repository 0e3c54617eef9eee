//! The whole switch in memory and in virtual time: the engine, stages and MAC table of production, ports that are queues,
//! and hosts that are smoltcp's. Nothing sleeps, nothing is random: a test takes the same way each time.
//!
//! A test that fails leaves a capture of all its frames, with an interface for each port, in `target/tmp`.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::BufWriter;
use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use ipnet::IpNet;
use nat::Time;
use pcap_file::DataLink;
use pcap_file::pcapng::PcapNgWriter;
use pcap_file::pcapng::blocks::enhanced_packet::{EnhancedPacketBlock, EnhancedPacketOption};
use pcap_file::pcapng::blocks::interface_description::{
    InterfaceDescriptionBlock, InterfaceDescriptionOption,
};
use switch::batch::{Batch, Source};
use switch::dataplane::DataEvent;
use switch::engine::{Balance, Engine, Shared};
use switch::fdb::{FdbConfig, Kind};
use switch::mac::Mac;
use switch::policy::{Policy, Rule};
use switch::port::memory::{MemoryFrame, MemoryPorts};
use switch::port::{Rx, Tx};
use switch::router::Forwarding;
use switch::snapshot::{Gateway, Link, Network, NetworkId, Port, PortCounters, PortId, Snapshot};
use switch::verdict::DropReason;
use tokio::sync::mpsc;

pub use host::Host;
use uplink::Outer;

mod host;
mod uplink;

/// Frames kept for the capture of a failing test: the last ones.
const CAPTURED: usize = 100_000;

/// What a frame was to the switch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Direction {
    Inbound,
    Outbound,
}

/// Where the switch meets others.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum At {
    Port(PortId),
    Uplink(u32),
}

/// Frames by their end, as counted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Taken from a port.
    pub received: u64,
    /// Sent to one or more ports.
    pub forwarded: u64,
    /// Answered by the switch.
    pub answered: u64,
    /// Dropped.
    pub dropped: u64,
    /// Not decided yet: they wait for a next hop's MAC, for the first fragment of their datagram, or for a limit.
    pub waiting: u64,
}

/// How a network of the lab is made. The gateway's MAC is made from its name.
#[derive(Clone, Debug)]
pub struct NetworkOptions {
    /// Its subnets: the first address of each is the gateway's.
    pub subnets: Vec<IpNet>,
    /// Ports may talk to the gateway only.
    pub isolate_ports: bool,
    /// The gateway is a host at a port of its own; else the switch answers for it.
    pub host_access: bool,
}

/// A switch, its ports and hosts, and the time.
pub struct Lab {
    /// The time.
    pub now: Time,
    shared: Arc<Shared>,
    engine: Engine,
    events: mpsc::Receiver<DataEvent>,
    batch: Batch,
    memory: MemoryPorts,
    networks: Vec<Network>,
    ports: Vec<Port>,
    host_addresses: Vec<IpAddr>,
    outer: Outer,
    hosts: BTreeMap<At, Host>,
    frames: Vec<(Time, At, Direction, Vec<u8>)>,
    capture: bool,
    edits: Vec<Edit>,
}

/// What a test changes about the world that the workers know.
type Edit = Box<dyn Fn(&mut Snapshot)>;

impl std::fmt::Debug for Lab {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Lab")
            .field("now", &self.now)
            .field("ports", &self.ports.len())
            .finish_non_exhaustive()
    }
}

impl Default for Lab {
    fn default() -> Self {
        Self::new(FdbConfig::default())
    }
}

impl Lab {
    /// A switch without a port.
    pub fn new(fdb: FdbConfig) -> Self {
        let (shared, events) = Shared::new(fdb);
        Self {
            // Not zero: production's clock is not, either.
            now: Time::from_secs(1000),
            engine: Engine::new(Arc::clone(&shared), Vec::new()),
            shared,
            events,
            batch: Batch::new(),
            memory: MemoryPorts::default(),
            networks: Vec::new(),
            ports: Vec::new(),
            host_addresses: Vec::new(),
            outer: Outer::default(),
            hosts: BTreeMap::new(),
            frames: Vec::new(),
            capture: true,
            edits: Vec::new(),
        }
    }

    /// Keeps no frames: for tests with millions of them.
    #[must_use]
    pub fn without_capture(mut self) -> Self {
        self.capture = false;
        self
    }

    /// Connections with other limits than production's. To be called first: it forgets all connections.
    ///
    /// # Panics
    /// When a worker has panicked.
    #[must_use]
    pub fn with_nat(self, config: nat::Config) -> Self {
        *self.shared.forwarding.lock().expect("no panic") = Forwarding::new(config);
        self
    }

    /// Adds a network; with host access, its first port is the host's.
    ///
    /// # Panics
    /// When a subnet has no address to spare.
    pub fn network(&mut self, name: &str, options: &NetworkOptions) -> NetworkId {
        let id = NetworkId(u32::try_from(self.networks.len()).expect("few networks"));
        let gateways = options.subnets.iter().map(|subnet| {
            let address = subnet.hosts().find(|a| *a != subnet.network()).expect("a subnet with room");
            Gateway { subnet: *subnet, address }
        });
        let gateways: Vec<_> = gateways.collect();
        let gateway_mac = Mac::from_seed(name.as_bytes());
        self.networks.push(Network {
            id,
            name: name.into(),
            gateways: gateways.clone(),
            gateway_mac,
            mtu: 1500,
            host_port: None,
            isolate_ports: options.isolate_ports,
            masquerade: true,
            flood: Vec::new(),
        });
        if options.host_access {
            self.host_addresses.extend(gateways.iter().map(|g| g.address));
            let nets: Vec<_> =
                gateways.iter().filter_map(|g| IpNet::new(g.address, g.subnet.prefix_len()).ok()).collect();
            let port = self.host(id, "host", gateway_mac, &nets, None);
            self.networks[id.0 as usize].host_port = Some(port);
            self.shared.fdb.set(id, gateway_mac, port, Kind::Local);
            self.publish();
        }
        id
    }

    /// A network with one IPv4 and one IPv6 subnet, 10.`n`.0.0/16 and `fd00:n::/64`, with host access.
    pub fn plain_network(&mut self) -> NetworkId {
        let n = self.networks.len();
        let subnets = vec![net(&format!("10.{n}.0.0/16")), net(&format!("fd00:{n}::/64"))];
        self.network(&format!("net{n}"), &NetworkOptions { subnets, isolate_ports: false, host_access: true })
    }

    /// Adds a port without a host: what is sent to it waits to be [taken](Self::take).
    pub fn port(&mut self, network: NetworkId, name: &str) -> PortId {
        let id = PortId(u32::try_from(self.ports.len()).expect("few ports"));
        let counters = Arc::new(PortCounters::default());
        self.ports.push(Port {
            id,
            name: name.into(),
            network,
            link: Link::Memory,
            up: true,
            veth_mtu: None,
            limits: None,
            sources: None,
            counters,
        });
        self.publish();
        id
    }

    /// Adds a port with a smoltcp host that has these addresses and this default gateway.
    pub fn host(
        &mut self,
        network: NetworkId,
        name: &str,
        mac: Mac,
        addresses: &[IpNet],
        gateway: Option<IpAddr>,
    ) -> PortId {
        let port = self.port(network, name);
        self.hosts.insert(At::Port(port), Host::new(mac, addresses, gateway, self.now));
        port
    }

    /// Adds a host with the addresses 10.`network`.0.`n` and `fd00:network::n` and the MAC `02:00:00:00:network:n`.
    pub fn plain_host(&mut self, network: NetworkId, n: u8) -> PortId {
        let NetworkId(number) = network;
        let mac = plain_mac(network, n);
        let addresses = [net(&format!("10.{number}.0.{n}/16")), net(&format!("fd00:{number}::{n:x}/64"))];
        let gateway = self.networks[number as usize].gateways[0].address;
        self.host(network, &format!("host{n}"), mac, &addresses, Some(gateway))
    }

    /// Sets the link state of a port.
    pub fn set_up(&mut self, port: PortId, up: bool) {
        self.ports[port.index()].up = up;
        self.publish();
    }

    fn publish(&mut self) {
        let mut snapshot =
            Snapshot::new(self.networks.clone(), self.ports.clone(), self.host_addresses.iter().copied());
        self.outer.add_to(&mut snapshot);
        for edit in &self.edits {
            edit(&mut snapshot);
        }
        self.shared.snapshot.store(Arc::new(snapshot));
    }

    /// Changes a port: its limits, what it may send from.
    pub fn change_port(&mut self, port: PortId, change: impl FnOnce(&mut Port)) {
        change(&mut self.ports[port.index()]);
        self.publish();
    }

    /// The rules of who may open connections to whom, in place of those before.
    pub fn rules(&mut self, rules: Vec<Rule>) {
        let policy = Arc::new(Policy::new(rules));
        self.edit(move |snapshot| snapshot.policy = Arc::clone(&policy));
    }

    /// Changes what the workers know, now and whenever it is made anew: uplinks, routes, leases.
    pub fn edit(&mut self, edit: impl Fn(&mut Snapshot) + 'static) {
        self.edits.push(Box::new(edit));
        self.publish();
    }

    /// What the worker and the control plane share: MAC table, neighbors, counters.
    pub fn shared(&self) -> &Shared {
        &self.shared
    }

    /// A port's counters and state.
    pub fn port_info(&self, port: PortId) -> &Port {
        &self.ports[port.index()]
    }

    /// A network's gateway MAC.
    pub fn gateway_mac(&self, network: NetworkId) -> Mac {
        self.networks[network.index()].gateway_mac
    }

    /// The host at a port.
    ///
    /// # Panics
    /// When there is none.
    #[track_caller]
    pub fn at(&mut self, port: PortId) -> &mut Host {
        self.hosts.get_mut(&At::Port(port)).expect("a host at this port")
    }

    /// Lets a frame come in from a port. It is worked on with the next [`Lab::settle`].
    pub fn put(&mut self, port: PortId, frame: impl Into<MemoryFrame>) {
        let frame = frame.into();
        self.record(At::Port(port), Direction::Inbound, &frame.bytes);
        self.memory.put(port, frame);
    }

    /// Lets a frame come in from anywhere, and works on it at once and on nothing else: hosts get nothing, so that what is
    /// sent to them can be [taken](Self::take), too, and nothing that is due by itself is done.
    ///
    /// # Panics
    /// Never: memory has no end.
    pub fn inject(&mut self, source: Source, frame: impl Into<MemoryFrame>) {
        self.memory.put_from(source, frame);
        let hosts = std::mem::take(&mut self.hosts);
        loop {
            self.batch.clear();
            self.memory.receive(&mut self.batch).expect("memory has no end");
            if self.batch.is_empty() {
                break;
            }
            let snapshot = self.shared.snapshot.load_full();
            self.engine.run(self.now, &snapshot, &mut self.batch);
            self.send(&snapshot);
        }
        self.hosts = hosts;
    }

    /// Takes the oldest frame that was sent to a port without a host.
    pub fn take(&mut self, port: PortId) -> Option<MemoryFrame> {
        self.memory.take(port)
    }

    /// All frames that were sent to a port without a host.
    pub fn take_all(&mut self, port: PortId) -> Vec<MemoryFrame> {
        std::iter::from_fn(|| self.take(port)).collect()
    }

    /// What the switch told the control plane.
    pub fn events(&mut self) -> Vec<DataEvent> {
        std::iter::from_fn(|| self.events.try_recv().ok()).collect()
    }

    /// Frames dropped for a reason.
    pub fn drops(&self, reason: DropReason) -> u64 {
        self.shared.drops.get(reason)
    }

    /// Frames by their end.
    ///
    /// # Panics
    /// When a worker has panicked.
    pub fn counts(&self) -> Counts {
        let frames = self.shared.balance();
        let dropped = frames.dropped();
        let Balance { received, forwarded, answered, parked: waiting, .. } = frames;
        Counts { received, forwarded, answered, dropped, waiting }
    }

    /// Works on all frames that came in; gives what is sent to hosts to them, and works on what they answer, until
    /// nothing moves. Time stands still.
    ///
    /// # Panics
    /// When it never ends, or a frame was not accounted for.
    #[track_caller]
    pub fn settle(&mut self) {
        for _ in 0..10_000 {
            let moved = self.run_hosts() + self.run_switch();
            if moved == 0 {
                let counts = self.counts();
                let Counts { received, forwarded, answered, dropped, waiting } = counts;
                assert_eq!(received, forwarded + answered + dropped + waiting, "{counts:?}");
                return;
            }
        }
        panic!("frames go around for ever");
    }

    fn run_hosts(&mut self) -> usize {
        let mut sent = Vec::new();
        for (at, host) in &mut self.hosts {
            host.poll(self.now);
            sent.extend(host.sent().map(|frame| (*at, frame)));
        }
        let n = sent.len();
        for (at, frame) in sent {
            match at {
                At::Port(port) => self.put(port, frame),
                At::Uplink(uplink) => self.put_outside(uplink, frame),
            }
        }
        n
    }

    fn run_switch(&mut self) -> usize {
        let mut n = 0;
        loop {
            self.batch.clear();
            self.memory.receive(&mut self.batch).expect("memory has no end");
            if self.batch.is_empty() {
                break;
            }
            n += self.batch.len();
            let snapshot = self.shared.snapshot.load_full();
            self.engine.run(self.now, &snapshot, &mut self.batch);
            self.send(&snapshot);
        }
        if self.engine.timer().is_some_and(|at| at <= self.now) {
            self.batch.clear();
            let snapshot = self.shared.snapshot.load_full();
            self.engine.tick(self.now, &snapshot, &mut self.batch);
            n += self.send(&snapshot);
        }
        n
    }

    /// Sends what the engine has decided to; tells how much.
    fn send(&mut self, snapshot: &Snapshot) -> usize {
        let outgoing = self.engine.outgoing();
        self.memory.send(&self.batch, outgoing);
        let sent: Vec<_> = outgoing.iter().map(|out| (out.link, out.port, out.frame)).collect();
        for (link, port, frame) in &sent {
            let bytes = &self.batch.wire(*frame)[switch::frame::OFFLOAD_HEADER..];
            let at = match link {
                Link::Uplink(uplink) => {
                    let subnets = self.networks.iter().flat_map(|n| &n.gateways).map(|g| g.subnet);
                    uplink::assert_clean(bytes, &subnets.collect::<Vec<_>>());
                    At::Uplink(*uplink)
                }
                _ => At::Port(*port),
            };
            if self.capture {
                let bytes = bytes.to_vec();
                self.record(at, Direction::Outbound, &bytes);
            }
        }
        self.engine.settle(snapshot, &self.batch);
        for (at, host) in &mut self.hosts {
            while let Some(frame) = match at {
                At::Port(port) => self.memory.take(*port),
                At::Uplink(uplink) => self.memory.take_outside(*uplink),
            } {
                host.receive(frame.bytes);
            }
        }
        sent.len()
    }

    /// Lets time pass: hosts do what is due, at the moment when it is due.
    #[track_caller]
    pub fn advance(&mut self, by: Duration) {
        let end = self.now + by;
        self.settle();
        while let Some(next) = self.next_due().filter(|t| *t <= end) {
            // A host that wants to be asked at once has just been asked: it waits for a frame.
            self.now = next.max(self.now + Duration::from_micros(100));
            self.settle();
        }
        self.now = self.now.max(end);
        self.settle();
    }

    fn next_due(&mut self) -> Option<Time> {
        let now = self.now;
        self.hosts.values_mut().filter_map(|h| h.due(now)).chain(self.engine.timer()).min()
    }

    /// Lets time pass until `done`, at most `limit`.
    ///
    /// # Panics
    /// When it is not done by then.
    #[track_caller]
    pub fn until(&mut self, what: &str, limit: Duration, mut done: impl FnMut(&mut Self) -> bool) {
        let end = self.now + limit;
        while !done(self) {
            assert!(self.now < end, "not within {limit:?} of virtual time: {what}");
            self.advance(Duration::from_millis(10));
        }
    }

    fn record(&mut self, at: At, direction: Direction, bytes: &[u8]) {
        if self.capture {
            if self.frames.len() == CAPTURED {
                self.frames.drain(..CAPTURED / 2);
            }
            self.frames.push((self.now, at, direction, bytes.to_vec()));
        }
    }

    fn write_capture(&self) -> Result<PathBuf, Box<dyn std::error::Error>> {
        let test = std::env::current_exe()?;
        let target = test.ancestors().nth(3).ok_or("no target folder")?;
        let folder = target.join("tmp");
        fs::create_dir_all(&folder)?;
        let name = thread::current().name().unwrap_or("test").replace("::", "-");
        let path = folder.join(format!("{name}-{}.pcapng", std::process::id()));
        let mut writer = PcapNgWriter::new(BufWriter::new(File::create(&path)?))?;
        for name in self.ports.iter().map(|p| &p.name).chain(self.outer.names()) {
            let mut interface = InterfaceDescriptionBlock::new(DataLink::ETHERNET, 0);
            interface.options.push(InterfaceDescriptionOption::IfName(Cow::Borrowed(name)));
            interface.options.push(InterfaceDescriptionOption::IfTsResol(9)); // times are in 10^-9 s
            writer.write_pcapng_block(interface)?;
        }
        for (time, at, direction, bytes) in &self.frames {
            let interface_id = match at {
                At::Port(port) => port.0,
                // Interface indices of uplinks begin at 1.
                At::Uplink(uplink) => u32::try_from(self.ports.len())? + uplink - 1,
            };
            // The two low bits of epb_flags: 1 is inbound, 2 is outbound.
            let flags = if *direction == Direction::Inbound { 1 } else { 2 };
            writer.write_pcapng_block(EnhancedPacketBlock {
                interface_id,
                timestamp: time.since(Time::ZERO),
                original_len: u32::try_from(bytes.len())?,
                data: Cow::Borrowed(bytes),
                options: vec![EnhancedPacketOption::Flags(flags)],
            })?;
        }
        Ok(path)
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        if thread::panicking() && !self.frames.is_empty() {
            match self.write_capture() {
                Ok(path) => eprintln!("the frames of this test are in {}", path.display()),
                Err(e) => eprintln!("cannot write the frames of this test: {e}"),
            }
        }
    }
}

/// A network from its text.
///
/// # Panics
/// When the text is none.
#[track_caller]
pub fn net(text: &str) -> IpNet {
    text.parse().unwrap_or_else(|e| panic!("{text}: {e}"))
}

/// The MAC of [`Lab::plain_host`].
///
/// # Panics
/// When there are more than 255 networks.
pub fn plain_mac(network: NetworkId, n: u8) -> Mac {
    Mac([2, 0, 0, 0, u8::try_from(network.0).expect("few networks"), n])
}
