//! The lab's way outside: uplinks, the host's routes by them, published ports.
//!
//! Nothing that leaves by an uplink may show an inside address, in no test: each frame is looked at.

use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;
use nat::{Endpoint, Protocol, Rule};
use switch::mac::Mac;
use switch::port::memory::MemoryFrame;
use switch::router::nat_network;
use switch::router::owned::OwnedPorts;
use switch::router::route::{Action, Route, Routes};
use switch::snapshot::{NetworkId, PortCounters, Snapshot, Uplink};

use super::{At, Direction, Host, Lab, net};
use crate::outside::{Wrong, judge};

/// What lies beyond the host.
#[derive(Debug, Default)]
pub(super) struct Outer {
    uplinks: Vec<Uplink>,
    routes: Vec<Route>,
    owned: Arc<OwnedPorts>,
}

impl Outer {
    pub(super) fn add_to(&self, snapshot: &mut Snapshot) {
        snapshot.uplinks.clone_from(&self.uplinks);
        snapshot.routes = Arc::new(Routes::new(self.routes.iter().copied()));
        snapshot.owned = Arc::clone(&self.owned);
    }

    pub(super) fn names(&self) -> impl Iterator<Item = &Arc<str>> {
        self.uplinks.iter().map(|uplink| &uplink.name)
    }
}

/// A frame for the outside shows nothing of the inside.
#[track_caller]
pub(super) fn assert_clean(frame: &[u8], inside: &[IpNet]) {
    let wrong = judge(frame, inside).filter(|wrong| matches!(wrong, Wrong::Inside(..)));
    assert_eq!(wrong, None, "sent outside: {frame:02x?}");
}

impl Lab {
    /// Adds an uplink with these addresses of the host's. The first address of each subnet is the default gateway. Ports
    /// from 61000 on are the pool.
    ///
    /// # Panics
    /// When a subnet has no address to spare.
    pub fn uplink(&mut self, addresses: &[IpNet]) -> u32 {
        let ifindex = u32::try_from(self.outer.uplinks.len()).expect("few uplinks") + 1;
        let name = format!("uplink{ifindex}");
        let mut route = |destination, gateway| {
            let action = Action::Forward { ifindex, gateway, source: None, mtu: None };
            self.outer.routes.push(Route { destination, metric: ifindex, action });
        };
        for address in addresses {
            let gateway = address.hosts().find(|a| *a != address.network()).expect("a subnet with room");
            route(address.trunc(), None);
            route(net(if gateway.is_ipv4() { "0.0.0.0/0" } else { "::/0" }), Some(gateway));
        }
        self.outer.uplinks.push(Uplink {
            ifindex,
            mac: Mac::from_seed(name.as_bytes()),
            name: name.into(),
            mtu: 1500,
            up: true,
            addresses: addresses.to_vec(),
            counters: Arc::new(PortCounters::default()),
        });
        self.host_addresses.extend(addresses.iter().map(IpNet::addr));
        for protocol in [Protocol::Tcp, Protocol::Udp, Protocol::Icmp] {
            self.outer.owned.add(protocol, 61_000..=65_535);
        }
        self.publish();
        ifindex
    }

    /// The usual uplink: the host is 192.0.2.2/24 and 2001:db8::2/64.
    pub fn plain_uplink(&mut self) -> u32 {
        self.uplink(&[net("192.0.2.2/24"), net("2001:db8::2/64")])
    }

    /// Adds a smoltcp host at the far end of an uplink: the gateway 192.0.2.1 and 2001:db8::1 of
    /// [`Lab::plain_uplink`].
    pub fn plain_outside(&mut self, uplink: u32) {
        let addresses = [net("192.0.2.1/24"), net("2001:db8::1/64")];
        let host = Host::new(Mac([2, 0, 0, 0, 0xee, 1]), &addresses, None, self.now);
        self.hosts.insert(At::Uplink(uplink), host);
    }

    /// The host at the far end of an uplink.
    ///
    /// # Panics
    /// When there is none.
    #[track_caller]
    pub fn beyond(&mut self, uplink: u32) -> &mut Host {
        self.hosts.get_mut(&At::Uplink(uplink)).expect("a host beyond this uplink")
    }

    /// Publishes a port of all of the host's addresses.
    ///
    /// # Panics
    /// When it is published already.
    pub fn publish_port(&mut self, protocol: Protocol, port: u16, network: NetworkId, target: (IpAddr, u16)) {
        let rule = Rule {
            protocol,
            host: None,
            ports: port..=port,
            network: nat_network(network),
            target: Endpoint::new(target.0, target.1),
            from: Vec::new(),
        };
        self.shared.forwarding.lock().expect("no panic").nat.publish(rule).expect("a free port");
        self.outer.owned.add(protocol, port..=port);
        self.publish();
    }

    /// Lets a frame come in from an uplink. It is worked on with the next [`Lab::settle`].
    pub fn put_outside(&mut self, uplink: u32, frame: impl Into<MemoryFrame>) {
        let frame = frame.into();
        self.record(At::Uplink(uplink), Direction::Inbound, &frame.bytes);
        self.answer_as_host(uplink, &frame.bytes);
        self.memory.put_outside(uplink, frame);
    }

    /// The host's kernel answers ARP for the host's address.
    fn answer_as_host(&mut self, uplink: u32, frame: &[u8]) {
        let mac = self.uplink_mac(uplink).0;
        let is_ours = |target: [u8; 4]| self.host_addresses.contains(&target.into());
        let (Some([8, 6]), Some([0, 1])) = (frame.get(12..14), frame.get(20..22)) else { return };
        let (Some(asker), Some(target)) = (frame.get(22..32), frame.get(38..42)) else { return };
        if let (Some(host), Ok(target)) =
            (self.hosts.get_mut(&At::Uplink(uplink)), <[u8; 4]>::try_from(target))
            && is_ours(target)
        {
            let head = [&frame[6..12], &mac, &frame[12..20], &[0, 2], &mac, &target].concat();
            host.receive([&head, asker].concat());
        }
    }

    /// All frames that were sent to an uplink without a host.
    pub fn take_outside(&mut self, uplink: u32) -> Vec<MemoryFrame> {
        std::iter::from_fn(|| self.memory.take_outside(uplink)).collect()
    }

    /// An uplink's MAC.
    ///
    /// # Panics
    /// When there is no such uplink.
    pub fn uplink_mac(&self, uplink: u32) -> Mac {
        self.outer.uplinks[uplink as usize - 1].mac
    }
}
