//! Keeps what is there in step with what is wanted: at start, and as the kernel tells of changes.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::net::IpAddr;
use std::os::fd::{AsFd, OwnedFd};

use ctl::api::PortKind;
use ctl::config::Config;

use super::apply::{Mark, tap_link};
use super::control::{Daemon, Error};
use super::desired::{Attachment, Origin, Port};
use super::keeper;
use super::links::{Link, LinkError, Notice};
use super::live::LiveLink;
use super::plan::Action;
use crate::dataplane::DataEvent;
use crate::mac::Mac;
use crate::snapshot::PortId;
use crate::sys::{heap, tun};

/// What did not outlive the daemon before this one: its ports get new interfaces where their containers still are.
#[derive(Clone, Copy, Debug)]
pub(super) struct Lost {
    /// The switch namespace with its veth pairs.
    pub(super) pairs: bool,
    /// TAP queues.
    pub(super) queues: bool,
}

/// Everything that was heard in a few milliseconds, each thing once.
#[derive(Debug, Default)]
pub(super) struct Heard {
    links: HashMap<u32, Option<Link>>,
    host_links: HashSet<String>,
    addresses: bool,
    outside: bool,
    neighbors: Vec<(u32, IpAddr, Mac)>,
    lost: bool,
}

impl Heard {
    /// Notes something from the switch namespace.
    pub(super) fn switch(&mut self, notice: Notice) {
        match notice {
            Notice::Link(link) => {
                self.links.insert(link.index, Some(link));
            }
            Notice::Gone(index) => {
                self.links.insert(index, None);
            }
            Notice::Address | Notice::Route | Notice::Neighbor(..) => {}
            Notice::Lost => self.lost = true,
        }
    }

    /// Notes something from the host's namespace.
    pub(super) fn host(&mut self, notice: Notice) {
        match notice {
            Notice::Link(link) => {
                self.outside = true;
                self.host_links.insert(link.name);
            }
            Notice::Route => self.outside = true,
            Notice::Neighbor(ifindex, address, mac) => self.neighbors.push((ifindex, address, mac)),
            Notice::Gone(_) | Notice::Address => self.addresses = true,
            Notice::Lost => {
                self.lost = true;
                self.addresses = true;
            }
        }
    }
}

impl Daemon {
    /// Brings the kernel to the desired state after a start.
    ///
    /// # Errors
    /// When a network cannot be set up, or the kernel does not answer. Ports never stop the start: they go missing.
    pub(super) async fn reconcile(&mut self, lost: Lost) -> Result<(), Error> {
        self.host_addresses().await?;
        let links = self.switch.links().await?;
        let mut by_port: BTreeMap<String, Link> = BTreeMap::new();
        for link in links {
            let Some((port, mark)) = link.alias.as_deref().and_then(|a| Mark::read(a, &self.name)) else {
                continue;
            };
            let wanted = match mark {
                Mark::Host => self.desired.host_end(port).is_some(),
                Mark::Port | Mark::Attached => self.desired.ports.get(port).is_some_and(|p| {
                    matches!(
                        (&p.origin, mark),
                        (Origin::Added, Mark::Port)
                            | (Origin::Attached(_) | Origin::Endpoint(_), Mark::Attached)
                    )
                }),
            };
            if wanted {
                by_port.insert(port.to_owned(), link);
                continue;
            }
            // Left behind by a daemon that ended in the middle of removing it.
            tracing::info!("interface {} of port {port} is no longer wanted", link.name);
            let done = if mark == Mark::Port {
                self.give_back(link.index).await
            } else {
                self.switch.delete(link.index).await
            };
            if let Err(e) = done {
                tracing::warn!("{e}");
            }
        }
        let mut queues: HashMap<String, Vec<OwnedFd>> =
            self.keeper.all().unwrap_or_default().into_iter().collect();
        queues.retain(|name, _| !name.starts_with(keeper::NOT_A_PORT));
        for name in self.desired.networks.keys().cloned().collect::<Vec<_>>() {
            self.set_up(&Action::AddNetwork(name)).await?;
        }
        let ports: Vec<_> = self.desired.ports.iter().map(|(n, p)| (n.clone(), p.clone())).collect();
        let mut gone = Vec::new();
        for (name, port) in ports {
            let back = match &port.origin {
                Origin::Added => {
                    self.bring_back(&name, &port, by_port.remove(&name)).await;
                    true
                }
                Origin::Attached(a) if a.tap => {
                    self.bring_back_tap(&name, &port, a, queues.remove(&name)).await
                }
                Origin::Attached(_) | Origin::Endpoint(_) => {
                    self.bring_back_veth(&name, &port, by_port.remove(&name)).await
                }
            };
            // Without an interface, either the container is gone, or only what was ours of it.
            let may_live = match &port.origin {
                // Only Docker can bring an interface to its container.
                Origin::Endpoint(_) => false,
                _ if port.is_tap() => lost.queues,
                _ => lost.pairs,
            };
            let again = Action::AddPort(name.clone());
            if back || (may_live && self.set_up(&again).await.is_ok()) {
                continue;
            }
            gone.push(name);
        }
        for name in queues.keys() {
            let _ = self.keeper.delete(name);
        }
        for s in self.desired.statics.values().cloned().collect::<Vec<_>>() {
            let _ = self.set_up(&Action::AddStatic(s)).await;
        }
        self.set_up_publishes();
        self.look_outside().await?;
        self.publish();
        if !gone.is_empty() {
            for name in &gone {
                self.events.tell("port-missing", name, format!("the container of port {name} is gone"));
            }
            self.forget_ports(&gone).await;
        }
        // A daemon that ended in between may have removed a port and not what goes with it.
        let there: HashSet<String> = self.desired.ports.keys().cloned().collect();
        self.unpublish_with(|port| !there.contains(port));
        Ok(())
    }

    /// The networks of the configuration that are missing; `default` at first start only.
    pub(super) async fn add_configured(&mut self, config: &Config, first_start: bool) -> Result<(), Error> {
        for (name, network) in &config.network {
            let is_default = name == ctl::api::DEFAULT_NETWORK;
            if self.desired.networks.contains_key(name) || (is_default && !first_start) {
                continue;
            }
            let how = format!(
                ": write subnets = [\"{{free}}\"] below [network.{name}] in a file and start swd with --config FILE"
            );
            self.add_network_from(&network.spec(name), &how).await?;
        }
        Ok(())
    }

    async fn bring_back(&mut self, name: &str, port: &Port, link: Option<Link>) {
        let alias = Mark::Port.alias(&self.name, name);
        let found = match self.enlist_found(link, &port.ifname, &alias).await {
            Some(link) => Some(link),
            None => self.take_from_host(name, port).await.ok(),
        };
        if let Some(link) = &found {
            self.note_name(name, &link.name);
        } else {
            self.events.tell(
                "port-missing",
                name,
                format!("port {name} waits for interface {}", port.ifname),
            );
        }
        self.live.add_port(name, &port.network, PortKind::Packet, found.as_ref().map(LiveLink::from));
    }

    async fn bring_back_veth(&mut self, name: &str, port: &Port, link: Option<Link>) -> bool {
        let Some(link) = link else { return false };
        let alias = Mark::Attached.alias(&self.name, name);
        let ifname = link.name.clone();
        match self.enlist_found(Some(link), &ifname, &alias).await {
            Some(link) => {
                self.note_name(name, &link.name);
                self.live.add_port(name, &port.network, PortKind::Packet, Some(LiveLink::from(&link)));
                true
            }
            None => false,
        }
    }

    /// An interface that is ready already is taken as it is: with a thousand ports that is most of the start.
    async fn enlist_found(&self, link: Option<Link>, ifname: &str, alias: &str) -> Option<Link> {
        match link {
            Some(link) if link.up && link.alias.as_deref() == Some(alias) => Some(link),
            Some(link) => self.enlist(&link.name, alias).await.ok().flatten(),
            None => self.enlist(ifname, alias).await.ok().flatten(),
        }
    }

    async fn bring_back_tap(
        &mut self,
        name: &str,
        port: &Port,
        a: &Attachment,
        queues: Option<Vec<OwnedFd>>,
    ) -> bool {
        let alive = queues.filter(|q| q.first().is_some_and(|q| tun::is_alive(q.as_fd())));
        let Some(queues) = alive else {
            let _ = self.keeper.delete(name);
            return false;
        };
        let mtu = self.desired.networks.get(&port.network).map_or(1500, |n| n.mtu);
        let id = self.live.add_port(name, &port.network, PortKind::Tap, Some(tap_link(a, mtu)));
        self.publish();
        self.dataplane.add_tap(id, queues);
        true
    }

    /// Follows a renamed interface.
    fn note_name(&mut self, port: &str, ifname: &str) {
        let Some(port) = self.desired.ports.get_mut(port).filter(|p| p.ifname != ifname) else { return };
        ifname.clone_into(&mut port.ifname);
        if let Err(e) = self.store.save(&self.desired) {
            tracing::warn!("{e}");
        }
    }

    /// Reads the host's addresses; the workers are told by the caller.
    async fn host_addresses(&mut self) -> Result<bool, LinkError> {
        let new = self.host.addresses().await?.into_iter().map(|(_, a)| a.addr());
        let new = new.filter(|a| !a.is_loopback()).collect();
        let changed = self.live.host_addresses != new;
        self.live.host_addresses = new;
        Ok(changed)
    }

    /// Acts on what the kernel told.
    pub(super) async fn hear(&mut self, heard: Heard) {
        let mut changed = false;
        let mut links = heard.links;
        if heard.lost {
            match self.switch.links().await {
                Ok(all) => {
                    links = self.live.indices().into_iter().map(|index| (index, None)).collect();
                    links.extend(all.into_iter().map(|l| (l.index, Some(l))));
                }
                Err(e) => tracing::warn!("{e}"),
            }
        }
        if heard.addresses || heard.lost {
            match self.host_addresses().await {
                Ok(new) => changed |= new,
                Err(e) => tracing::warn!("{e}"),
            }
        }
        if heard.addresses || heard.outside || heard.lost {
            match self.look_outside().await {
                Ok(()) => changed |= self.outside_is_wanted(),
                Err(e) => tracing::warn!("{e}"),
            }
        }
        self.note_neighbors(&heard.neighbors);
        let mut gone = Vec::new();
        for (index, link) in links {
            let Some(name) = self.live.by_index(index).map(str::to_owned) else {
                if let Some(link) = link {
                    changed |= self.adopt(&link.name).await;
                }
                continue;
            };
            // News may be old: of an interface that went and came back under its old number, or of one that had no carrier
            // while its pair was made. So what would change anything is asked again.
            let link = match link {
                Some(link) if self.is_known(&name, &link) => Some(link),
                old => self.switch.link_by_index(index).await.unwrap_or(old),
            };
            match link {
                Some(link) => changed |= self.follow(&name, &link),
                None => {
                    changed = true;
                    gone.extend(self.lose(&name).await);
                }
            }
        }
        let mut names = heard.host_links;
        if heard.lost {
            names.extend(self.missing());
        }
        for ifname in names {
            changed |= self.adopt(&ifname).await;
        }
        if changed {
            self.publish();
        }
        if !gone.is_empty() {
            self.forget_ports(&gone).await;
        }
        if heard.lost || gone.len() > 100 {
            heap::trim();
        }
    }

    /// Interfaces that ports wait for.
    fn missing(&self) -> Vec<String> {
        let missing = self.live.ports().filter(|(_, p)| p.link.is_none());
        missing.filter_map(|(name, _)| self.desired.ports.get(name).map(|p| p.ifname.clone())).collect()
    }

    /// Whether a port's link is known to be like this.
    fn is_known(&self, name: &str, link: &Link) -> bool {
        self.live.port(name).is_some_and(|p| p.link.as_ref() == Some(&LiveLink::from(link)))
    }

    /// A port's interface changed.
    fn follow(&mut self, name: &str, link: &Link) -> bool {
        let before = self.live.port(name).and_then(|p| p.link.as_ref().map(|l| l.up));
        self.note_name(name, &link.name);
        let changed = self.live.set_link(name, Some(LiveLink::from(link)));
        if before != Some(link.running) {
            let kind = if link.running { "port-up" } else { "port-down" };
            let state = if link.running { "up" } else { "down" };
            self.events.tell(kind, name, format!("the link of port {name} ({}) is {state}", link.name));
        }
        changed
    }

    /// A port's interface is gone. Tells the port's name if it goes with it.
    async fn lose(&mut self, name: &str) -> Option<String> {
        let id = self.live.port(name).map(|p| p.id);
        self.live.set_link(name, None);
        if let Some(network) = self.desired.host_end(name).map(str::to_owned) {
            // Somebody deleted it. The network cannot do without: it is made again.
            self.events.tell("port-missing", name, format!("the host end of network {network} was deleted"));
            let wanted = self.desired.networks.get(&network).cloned()?;
            match self.host_pair(&network, name, &wanted).await {
                Ok(link) => {
                    self.live.set_link(name, Some(LiveLink::from(&link)));
                    self.events.tell("port-up", name, format!("the host end of network {network} is back"));
                }
                Err(e) => tracing::error!("{e}"),
            }
            return None;
        }
        let port = self.desired.ports.get(name)?;
        if port.origin != Origin::Added {
            self.events.tell("port-missing", name, format!("the container of port {name} is gone"));
            return Some(name.to_owned());
        }
        let message = format!("interface {} is gone; port {name} waits for its return", port.ifname);
        self.events.tell("port-missing", name, message);
        if let Some(id) = id {
            self.dataplane.fdb().flush(|_, p| p == id);
        }
        None
    }

    /// An interface appeared, here or on the host: if a port waits for it, it is that port's.
    async fn adopt(&mut self, ifname: &str) -> bool {
        let waiting = self.live.ports().find_map(|(name, live)| {
            let port = self.desired.ports.get(name)?;
            let waits = live.link.is_none() && port.ifname == ifname && port.origin == Origin::Added;
            waits.then(|| (name.clone(), port.clone()))
        });
        let Some((name, port)) = waiting else { return false };
        let alias = Mark::Port.alias(&self.name, &name);
        let link = match self.enlist(ifname, &alias).await {
            Ok(Some(link)) => link,
            _ => match self.take_from_host(&name, &port).await {
                Ok(link) => link,
                Err(e) => {
                    tracing::debug!("{e}");
                    return false;
                }
            },
        };
        self.follow(&name, &link)
    }

    /// Acts on what the workers told.
    pub(super) async fn data_event(&mut self, event: DataEvent) {
        let name = |id: PortId| self.live.port_name(id).unwrap_or("?").to_owned();
        match event {
            DataEvent::TapGone(tap) => {
                let name = name(tap.port);
                if self.dataplane.has_tap(tap) {
                    self.events.tell("port-missing", &name, format!("the container of port {name} is gone"));
                    self.forget_ports(&[name]).await;
                }
            }
            // The main loop's to act on.
            DataEvent::FastPath => {}
            DataEvent::AddressMoved => self.dataplane.readdress(),
            DataEvent::MacMoved { mac, from, to } => {
                let message = format!("{mac} moved from port {} to port {}", name(from), name(to));
                self.events.tell("mac-moved", &mac.to_string(), message);
            }
            DataEvent::MacDamped { mac, port } => {
                let message = format!(
                    "{mac} moves between ports too fast (a loop, or two containers with one MAC); held at port {}",
                    name(port)
                );
                self.events.tell("mac-damped", &mac.to_string(), message);
            }
            DataEvent::FdbFull { port } => {
                let name = name(port);
                let message =
                    format!("port {name} has as many MAC addresses as it may; more are not learned");
                self.events.tell("fdb-full", &name, message);
            }
        }
    }
}
