//! Carries out the steps of a [plan](super::plan): the effects.
//!
//! Setting up may fail, and then undoes what it did itself; taking down carries on past errors, because half of a
//! container left behind is worse than a line in the log.

mod error;

use std::io;
use std::net::IpAddr;
use std::path::PathBuf;

use ctl::api::PortKind;
use ipnet::IpNet;

pub use error::ApplyError;

use super::control::Daemon;
use super::desired::{Attachment, Desired, Network, Origin, Port, host_port_ifname};
use super::links::{Conn, Link, LinkError, VethPair};
use super::live::LiveLink;
use super::namespace;
use super::plan::Action;
use super::settings;
use crate::fdb::Kind;
use crate::mac::Mac;
use crate::router::nat_network;
use crate::sys::netns::NetNs;
use crate::sys::tun;

pub(super) fn link_error(subject: &str) -> impl FnOnce(LinkError) -> ApplyError {
    let subject = subject.to_owned();
    move |source| ApplyError::Link { subject, source }
}

/// What an interface's alias says: whose it is, and what for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Mark {
    /// Given by the user: goes back to the host.
    Port,
    /// Made for a container: is deleted.
    Attached,
    /// The switch's end of a host pair: is deleted.
    Host,
}

impl Mark {
    const fn suffix(self) -> &'static str {
        match self {
            Self::Port => "",
            Self::Attached => ":attach",
            Self::Host => ":host",
        }
    }

    /// The alias of an interface.
    pub(super) fn alias(self, instance: &str, port: &str) -> String {
        format!("swd:{instance}:{port}{}", self.suffix())
    }

    /// What an alias says, if it is this instance's: the port's name and what it is.
    pub(super) fn read<'a>(alias: &'a str, instance: &str) -> Option<(&'a str, Self)> {
        let rest = alias.strip_prefix("swd:")?.strip_prefix(instance)?.strip_prefix(':')?;
        let (port, suffix) = rest.split_at(rest.find(':').unwrap_or(rest.len()));
        let mark = [Self::Port, Self::Attached, Self::Host].into_iter().find(|m| m.suffix() == suffix)?;
        Some((port, mark))
    }
}

impl Daemon {
    /// One step of setting up. Ports and networks get their numbers; the workers are told by the caller.
    pub(super) async fn set_up(&mut self, step: &Action) -> Result<(), ApplyError> {
        match step {
            Action::AddNetwork(name) => {
                let Some(network) = self.desired.networks.get(name).cloned() else { return Ok(()) };
                self.set_up_network(name, &network).await
            }
            Action::AddPort(name) => {
                let Some(port) = self.desired.ports.get(name).cloned() else { return Ok(()) };
                match &port.origin {
                    Origin::Added => self.set_up_added(name, &port).await,
                    Origin::Attached(a) if a.tap => self.set_up_tap(name, &port, a).await,
                    Origin::Attached(a) => self.set_up_veth(name, &port, a).await,
                    Origin::Endpoint(e) => self.set_up_endpoint(name, &port, e).await,
                }
            }
            Action::AddStatic(s) => {
                if let (Some(network), Some(port)) = (self.live.network(&s.network), self.live.port(&s.port))
                {
                    self.dataplane.fdb().set(network, s.mac, port.id, Kind::Static);
                }
                Ok(())
            }
            Action::RemoveStatic(_) | Action::RemovePort(_) | Action::RemoveNetwork(_) => Ok(()),
        }
    }

    /// All steps of taking down, in one go: a thousand ports cost one pause of the workers.
    pub(super) async fn take_down(&mut self, steps: &[Action], old: &Desired) {
        let (mut gone, mut ended) = (Vec::new(), Vec::new());
        let remove = |daemon: &mut Self, name: &str| {
            let removed = daemon.live.remove_port(name)?;
            if removed.kind == PortKind::Tap {
                daemon.dataplane.remove_tap(removed.id);
            }
            Some(removed)
        };
        for step in steps {
            match step {
                Action::RemoveStatic(s) => {
                    if let Some(network) = self.live.network(&s.network) {
                        self.dataplane.fdb().remove(network, s.mac);
                    }
                }
                Action::RemovePort(name) => {
                    self.end_relayed(&old.addresses(name));
                    gone.extend(remove(self, name).map(|p| (name.clone(), p, old.ports.get(name).cloned())));
                }
                Action::RemoveNetwork(name) => {
                    let host = old.networks.get(name).and_then(|n| n.host_ifname.clone());
                    if let Some(host) = host {
                        gone.extend(remove(self, &host).map(|p| (host, p, None)));
                    }
                }
                _ => {}
            }
        }
        let networks = steps.iter().filter_map(|s| match s {
            Action::RemoveNetwork(name) => Some(name),
            _ => None,
        });
        let networks: Vec<_> = networks.cloned().collect();
        for name in &networks {
            if let (Some(id), Some(network)) = (self.live.network(name), old.networks.get(name)) {
                self.dataplane.fdb().remove(id, network.gateway_mac);
            }
            if let Some(id) = self.live.remove_network(name) {
                ended.push(id);
            }
        }
        self.publish();
        self.dataplane.quiesce();
        for id in ended {
            self.dataplane.forwarding().remove_network(crate::worker::now(), id);
        }
        for (name, port, was) in gone {
            self.dataplane.forget_port(port.id);
            self.live.free(port.id);
            for address in old.addresses(&name) {
                self.events.tell(
                    "address-released",
                    &address.addr().to_string(),
                    format!("{address} was {name}'s"),
                );
            }
            self.dismantle(&name, port.link.as_ref(), was.as_ref()).await;
        }
        for name in networks {
            self.events.tell("network-removed", &name, format!("network {name} was removed"));
        }
    }

    /// Undoes what the kernel has of a port; errors are logged.
    async fn dismantle(&mut self, name: &str, link: Option<&LiveLink>, was: Option<&Port>) {
        let index = link.and_then(|l| l.index);
        let done = match was.map(|p| &p.origin) {
            Some(Origin::Added) => match index {
                Some(index) => self.give_back(index).await,
                None => Ok(()),
            },
            Some(Origin::Attached(a)) if a.tap => {
                if let Err(e) = self.keeper.delete(name) {
                    tracing::warn!("the keeper does not let go of port {name}: {e}");
                }
                Ok(())
            }
            // Attached, or a host end: deleting one end deletes the other.
            _ => match index {
                Some(index) => self.switch.delete(index).await,
                None => Ok(()),
            },
        };
        if let Err(e) = done {
            tracing::warn!("port {name} is removed, but: {e}");
        }
        if let Some(port) = was {
            self.events.tell("port-removed", name, format!("port {name} left network {}", port.network));
        }
    }

    /// Moves an interface back to the host.
    pub(super) async fn give_back(&self, index: u32) -> Result<(), LinkError> {
        let Some(link) = self.switch.link_by_index(index).await? else { return Ok(()) };
        self.switch.discharge(&link).await?;
        self.switch.move_to(&link, &self.host_netns, None).await
    }

    async fn set_up_network(&mut self, name: &str, network: &Network) -> Result<(), ApplyError> {
        let id = self.live.add_network(name);
        let nat = settings::of_network(network, &self.nat.timeouts);
        self.dataplane.forwarding().nat.set_network(nat_network(id), nat);
        let Some(host) = &network.host_ifname else {
            self.events.tell("network-added", name, format!("network {name} without host access"));
            return Ok(());
        };
        match self.host_pair(name, host, network).await {
            Ok(link) => {
                let port = self.live.add_port(host, name, PortKind::Host, Some(LiveLink::from(&link)));
                self.dataplane.fdb().set(id, network.gateway_mac, port, Kind::Local);
                self.events.tell("network-added", name, format!("network {name}, on the host {host}"));
                Ok(())
            }
            Err(e) => {
                self.live.remove_network(name);
                Err(e)
            }
        }
    }

    /// The pair of a network's host end: what is there is used, what is missing is made.
    pub(super) async fn host_pair(
        &self,
        name: &str,
        host: &str,
        network: &Network,
    ) -> Result<Link, ApplyError> {
        let error = || link_error(name);
        let ours = host_port_ifname(host);
        let alias = Mark::Host.alias(&self.name, host);
        let here = self.switch.link(&ours).await.map_err(error())?;
        let there = self.host.link(host).await.map_err(error())?;
        let taken =
            |place| ApplyError::HostNameTaken { ifname: host.to_owned(), network: name.to_owned(), place };
        let mut usable = None;
        match (here, there) {
            (Some(here), Some(there)) if here.peer == Some(there.index) && here.is_veth() => {
                usable = Some(here);
            }
            // Ours by its alias, but of a switch namespace that has ended: the kernel takes its time to clear away.
            (None, Some(there)) if there.alias.as_deref() == Some(alias.as_str()) => {
                self.host.delete(there.index).await.map_err(error())?;
            }
            (_, Some(_)) => return Err(taken("the host")),
            // Half of a pair of ours, whose other end somebody moved away.
            (Some(here), None) if here.alias.as_deref() == Some(alias.as_str()) => {
                self.switch.delete(here.index).await.map_err(error())?;
            }
            (Some(_), None) => return Err(taken("the switch namespace")),
            (None, None) => {}
        }
        let made = usable.is_none();
        let link = match usable {
            Some(link) => link,
            None => {
                let pair = VethPair {
                    name: &ours,
                    mtu: network.mtu,
                    peer: host,
                    peer_mac: network.gateway_mac,
                    peer_netns: &self.host_netns,
                };
                self.switch.add_veth(&pair).await.map_err(error())?
            }
        };
        match self.shape_host_pair(&link, host, &alias, network).await {
            Ok(Some(link)) => Ok(link),
            Ok(None) => Err(taken("the switch namespace")),
            Err(e) => {
                if made {
                    let _ = self.switch.delete(link.index).await;
                }
                Err(link_error(name)(e))
            }
        }
    }

    async fn shape_host_pair(
        &self,
        link: &Link,
        host: &str,
        alias: &str,
        network: &Network,
    ) -> Result<Option<Link>, LinkError> {
        self.switch.set_shape(link.index, network.mtu, None).await?;
        self.switch.enlist(link, alias).await?;
        if let Some(there) = self.host.link(host).await? {
            self.host.set_shape(there.index, network.mtu, Some(network.gateway_mac)).await?;
            self.host.set_alias(there.index, alias).await?;
            self.host.set_up(there.index).await?;
            for (subnet, address) in &network.gateways {
                add_address(&self.host, there.index, *subnet, *address).await?;
            }
        }
        self.switch.link_by_index(link.index).await
    }

    async fn set_up_added(&mut self, name: &str, port: &Port) -> Result<(), ApplyError> {
        let link = self.take_from_host(name, port).await?;
        self.live.add_port(name, &port.network, PortKind::Packet, Some(LiveLink::from(&link)));
        self.events.tell(
            "port-added",
            name,
            format!("port {name} ({}) in network {}", port.ifname, port.network),
        );
        Ok(())
    }

    /// Moves an interface from the host into the switch namespace, and makes it ready.
    pub(super) async fn take_from_host(&self, name: &str, port: &Port) -> Result<Link, ApplyError> {
        let error = || link_error(name);
        let ifname = || port.ifname.clone();
        let Some(link) = self.host.link(&port.ifname).await.map_err(error())? else {
            return Err(match namespace::instance_with(&port.ifname, &self.name).await {
                Some(instance) => ApplyError::OtherInstance { ifname: ifname(), instance },
                None => ApplyError::NoInterface { ifname: ifname() },
            });
        };
        if link.loopback {
            return Err(ApplyError::Loopback { ifname: ifname() });
        }
        if self.uplink.as_deref() == Some(port.ifname.as_str()) {
            return Err(ApplyError::Uplink { ifname: ifname() });
        }
        if let Some(index) = link.controller {
            let controller = self.host.link_by_index(index).await.map_err(error())?;
            let controller = controller.map_or_else(
                || format!("interface {index}"),
                |c| format!("the {} {}", c.kind.as_deref().unwrap_or("interface"), c.name),
            );
            return Err(ApplyError::Enslaved { ifname: ifname(), controller });
        }
        if self.switch.link(&port.ifname).await.map_err(error())?.is_some() {
            return Err(ApplyError::NameTaken { ifname: ifname(), instance: self.name.clone() });
        }
        self.host.move_to(&link, &self.switch_netns, None).await.map_err(error())?;
        match self.enlist(&port.ifname, &Mark::Port.alias(&self.name, name)).await {
            Ok(Some(link)) => Ok(link),
            Ok(None) => Err(ApplyError::NoInterface { ifname: ifname() }),
            Err(e) => {
                if let Ok(Some(moved)) = self.switch.link(&port.ifname).await {
                    let _ = self.give_back(moved.index).await;
                }
                Err(link_error(name)(e))
            }
        }
    }

    /// Makes a port of an interface that is in the switch namespace; tells what it then looks like.
    pub(super) async fn enlist(&self, ifname: &str, alias: &str) -> Result<Option<Link>, LinkError> {
        let Some(link) = self.switch.link(ifname).await? else { return Ok(None) };
        self.switch.enlist(&link, alias).await?;
        self.switch.link_by_index(link.index).await
    }

    /// Opens a container's namespace and a connection into it.
    fn container(&self, name: &str, a: &Attachment) -> Result<(NetNs, Conn), ApplyError> {
        let path = || PathBuf::from(&a.netns);
        let none = |source| ApplyError::NoNamespace { port: name.to_owned(), path: path(), source };
        let netns = NetNs::open(&path()).map_err(none)?;
        let id = netns.id().map_err(none)?;
        if id != a.id() {
            return Err(none(io::Error::other("it is another one by now")));
        }
        for (own, what) in
            [(&self.host_netns, "the host's own namespace"), (&self.switch_netns, "the switch namespace")]
        {
            if own.id().is_ok_and(|own| own == id) {
                return Err(ApplyError::NotAContainer { port: name.to_owned(), path: path(), what });
            }
        }
        let conn = Conn::within(&netns).map_err(link_error(name))?;
        Ok((netns, conn))
    }

    async fn set_up_veth(&mut self, name: &str, port: &Port, a: &Attachment) -> Result<(), ApplyError> {
        let (netns, conn) = self.container(name, a)?;
        let made = self.make_veth(name, port, a, &netns, &conn).await;
        conn.close().await;
        let link = made?;
        self.live.add_port(name, &port.network, PortKind::Packet, Some(LiveLink::from(&link)));
        self.tell_attached(name, port);
        Ok(())
    }

    pub(super) fn tell_attached(&self, name: &str, port: &Port) {
        for address in port.addresses() {
            self.events.tell("address-leased", &address.addr().to_string(), format!("{address} is {name}'s"));
        }
        self.events.tell(
            "port-added",
            name,
            format!("port {name} ({}) in network {}", port.ifname, port.network),
        );
    }

    async fn make_veth(
        &self,
        name: &str,
        port: &Port,
        a: &Attachment,
        netns: &NetNs,
        conn: &Conn,
    ) -> Result<Link, ApplyError> {
        check_free(name, conn, &a.ifname).await?;
        let mtu = self.desired.networks.get(&port.network).map_or(1500, |n| n.mtu);
        let pair = VethPair { name: &port.ifname, mtu, peer: &a.ifname, peer_mac: a.mac, peer_netns: netns };
        let link = self.switch.add_veth(&pair).await.map_err(link_error(name))?;
        let finish = async {
            self.configure(conn, port, a).await?;
            self.switch.enlist(&link, &Mark::Attached.alias(&self.name, name)).await?;
            self.switch.link_by_index(link.index).await
        };
        match finish.await {
            Ok(Some(link)) => Ok(link),
            Ok(None) => Err(ApplyError::NoInterface { ifname: port.ifname.clone() }),
            Err(e) => {
                let _ = self.switch.delete(link.index).await;
                Err(link_error(name)(e))
            }
        }
    }

    /// Addresses, default route, loopback: what the container itself sees.
    async fn configure(&self, conn: &Conn, port: &Port, a: &Attachment) -> Result<(), LinkError> {
        let Some(link) = conn.link(&a.ifname).await? else { return Ok(()) };
        conn.set_up(link.index).await?;
        if let Some(lo) = conn.link("lo").await? {
            conn.set_up(lo.index).await?;
        }
        let gateways = self.desired.networks.get(&port.network).map_or(&[][..], |n| &n.gateways);
        for (subnet, gateway) in gateways {
            let Some(address) = a.addresses.iter().find(|x| subnet.contains(&x.addr())) else { continue };
            if add_address(conn, link.index, *subnet, address.addr()).await? {
                conn.add_default_route(link.index, *gateway).await?;
            }
        }
        Ok(())
    }

    async fn set_up_tap(&mut self, name: &str, port: &Port, a: &Attachment) -> Result<(), ApplyError> {
        let (netns, conn) = self.container(name, a)?;
        let made = self.make_tap(name, port, a, &netns, &conn).await;
        conn.close().await;
        made
    }

    async fn make_tap(
        &mut self,
        name: &str,
        port: &Port,
        a: &Attachment,
        netns: &NetNs,
        conn: &Conn,
    ) -> Result<(), ApplyError> {
        check_free(name, conn, &a.ifname).await?;
        self.check_keeper();
        let tap = |source| ApplyError::Tap { port: name.to_owned(), source };
        let mtu = self.desired.networks.get(&port.network).map_or(1500, |n| n.mtu);
        let [.., b, c, d, e] = Mac::from_seed(name.as_bytes()).0;
        let passing = format!("t{b:02x}{c:02x}{d:02x}{e:02x}");
        let queues = {
            let _inside = self.switch_netns.enter().map_err(tap)?;
            tun::open_tap(&passing, self.workers).map_err(tap)?
        };
        // From here on an error drops the queues, and with them the device.
        let move_in = async {
            let Some(link) = self.switch.link(&passing).await? else { return Ok(()) };
            self.switch.set_shape(link.index, mtu, Some(a.mac)).await?;
            self.switch.move_to(&link, netns, Some(&a.ifname)).await?;
            self.configure(conn, port, a).await
        };
        move_in.await.map_err(link_error(name))?;
        self.keeper.put(name, &queues).map_err(tap)?;
        let id = self.live.add_port(name, &port.network, PortKind::Tap, Some(tap_link(a, mtu)));
        // The workers must know the port before its frames come.
        self.publish();
        self.dataplane.add_tap(id, queues);
        self.tell_attached(name, port);
        Ok(())
    }
}

/// What is known of a TAP's link.
pub(super) fn tap_link(a: &Attachment, mtu: u32) -> LiveLink {
    LiveLink { index: None, up: true, mtu, mac: a.mac, veth: false }
}

async fn check_free(name: &str, conn: &Conn, ifname: &str) -> Result<(), ApplyError> {
    match conn.link(ifname).await.map_err(link_error(name))? {
        None => Ok(()),
        Some(_) => Err(ApplyError::ContainerNameTaken { port: name.to_owned(), ifname: ifname.to_owned() }),
    }
}

/// Adds an address with its subnet's prefix length. Tells false where IPv6 is turned off: then there is none.
async fn add_address(conn: &Conn, index: u32, subnet: IpNet, address: IpAddr) -> Result<bool, LinkError> {
    let Ok(with_prefix) = IpNet::new(address, subnet.prefix_len()) else { return Ok(false) };
    match conn.add_address(index, with_prefix).await {
        Ok(()) => Ok(true),
        Err(e) if address.is_ipv6() && matches!(e.errno(), Some(libc::EACCES | libc::EOPNOTSUPP)) => {
            Ok(false)
        }
        Err(e) => Err(e),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn aliases_are_read_back() {
        for mark in [Mark::Port, Mark::Attached, Mark::Host] {
            let alias = mark.alias("swd", "web.1");
            assert_eq!(Mark::read(&alias, "swd"), Some(("web.1", mark)));
            assert_eq!(Mark::read(&alias, "sw"), None);
            assert_eq!(Mark::read(&alias, "swd2"), None);
        }
        assert_eq!(Mark::Port.alias("swd", "web"), "swd:swd:web");
        for alias in ["", "uplink to ISP", "swd:", "swd:swd", "swd:swd:web:other"] {
            assert_eq!(Mark::read(alias, "swd"), None, "{alias}");
        }
    }
}
