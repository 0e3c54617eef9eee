//! The owner of everything: one value, behind one lock, on one thread.
//!
//! A change is always the same five steps: the edit is checked on a copy, the copy is written to the disk, the difference
//! is carried out, the workers are told, the listeners are told. When carrying it out fails, what was done is undone and
//! the old state is written back.

use std::collections::HashSet;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use ctl::api::{AttachSpec, NetworkSpec, PortSpec};
use ipnet::IpNet;
use jiff::Timestamp;

use super::apply::ApplyError;
use super::capture::Captures;
use super::desired::{self, Class, Desired, EditError, Origin, Port, Static};
use super::docker::Promised;
use super::events::Events;
use super::keeper::{Ending, Keeper};
use super::links::{Conn, LinkError};
use super::live::Live;
use super::namespace::{self, NETNS_DIR};
use super::outside::Outside;
use super::plan::{Action, plan};
use super::state::{StateError, Store};
use crate::dataplane::Dataplane;
use crate::mac::Mac;
use crate::observe::live::LiveTrace;
use crate::sys::netns::{NetNs, NetNsId};

/// The control plane's state.
#[derive(Debug)]
pub struct Daemon {
    pub(super) name: String,
    pub(super) workers: usize,
    pub(super) uplink: Option<String>,
    /// Settings of the translator.
    pub(super) nat: ctl::config::Nat,
    pub(super) outside: Outside,
    pub(super) started: Timestamp,
    pub(super) desired: Desired,
    pub(super) store: Store,
    pub(super) live: Live,
    pub(super) switch_netns: NetNs,
    pub(super) host_netns: NetNs,
    /// Into the switch namespace.
    pub(super) switch: Conn,
    /// Into the host's namespace.
    pub(super) host: Conn,
    pub(super) keeper: Keeper,
    /// Where the keeper's socket is.
    pub(super) runtime_dir: PathBuf,
    pub(super) dataplane: Dataplane,
    pub(super) events: Events,
    /// Captures that run.
    pub(super) captures: Captures,
    /// Live traces that run.
    pub(super) live_traces: Vec<Arc<LiveTrace>>,
    /// Addresses that Docker was given and has not used yet.
    pub(super) promised: Promised,
    /// Connections of the daemon before this one.
    pub(super) restored: ctl::api::Restored,
}

/// What a request failed of.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// It cannot be.
    #[error(transparent)]
    Edit(Box<EditError>),
    /// It cannot be kept.
    #[error(transparent)]
    State(#[from] StateError),
    /// It cannot be done.
    #[error(transparent)]
    Apply(Box<ApplyError>),
    /// The kernel does not answer.
    #[error(transparent)]
    Link(#[from] LinkError),
}

impl From<EditError> for Error {
    fn from(e: EditError) -> Self {
        Self::Edit(Box::new(e))
    }
}

impl From<ApplyError> for Error {
    fn from(e: ApplyError) -> Self {
        Self::Apply(Box::new(e))
    }
}

impl Error {
    /// Which kind of problem it is, for the API.
    pub fn class(&self) -> Class {
        match self {
            Self::Edit(e) => e.class(),
            Self::Apply(e) => e.class(),
            Self::State(_) | Self::Link(_) => Class::Failed,
        }
    }
}

impl Daemon {
    /// Starts another keeper where it was killed, and gives it what the first one had. Tells when it ends; none where there
    /// is no keeper to be had.
    pub(super) fn check_keeper(&mut self) -> Option<Ending> {
        if self.keeper.netns().is_err() {
            tracing::warn!("the keeper is gone; another one is started");
            match namespace::start_keeper(&self.name, &self.runtime_dir, &self.switch_netns) {
                Ok(keeper) => self.keeper = keeper,
                Err(e) => {
                    tracing::error!("TAP ports end with this swd: {e}");
                    return None;
                }
            }
            for (port, queues) in self.dataplane.tap_queues() {
                let Some(name) = self.live.port_name(port) else { continue };
                if let Err(e) = self.keeper.put(name, &queues) {
                    tracing::error!("TAP port {name} ends with this swd: {e}");
                }
            }
            self.leave_guards_again();
        }
        self.keeper.watch().ok()
    }

    /// Keeps the state's journal short.
    pub(super) fn tidy(&mut self) {
        if let Err(e) = self.store.tidy(&self.desired) {
            tracing::warn!("{e}");
        }
    }

    /// Makes `new` the desired state, or changes nothing.
    pub(super) async fn commit(&mut self, new: Desired) -> Result<(), Error> {
        let steps = plan(&self.desired, &new);
        self.store.save(&new)?;
        let old = std::mem::replace(&mut self.desired, new);
        let (down, up): (Vec<_>, Vec<_>) = steps.into_iter().partition(|s| {
            matches!(s, Action::RemoveStatic(_) | Action::RemovePort(_) | Action::RemoveNetwork(_))
        });
        if !down.is_empty() {
            self.take_down(&down, &old).await;
        }
        for (done, step) in up.iter().enumerate() {
            if let Err(error) = self.set_up(step).await {
                self.roll_back(&down, up.get(..done).unwrap_or_default(), old).await;
                return Err(error.into());
            }
        }
        // What leads to no step may still be told: what networks may talk.
        self.publish();
        self.announce(&up);
        Ok(())
    }

    /// Tells the neighbors of new ports whose their addresses are.
    fn announce(&self, up: &[Action]) {
        for step in up {
            let Action::AddPort(name) = step else { continue };
            let (Some(live), Some(port)) = (self.live.port(name), self.desired.ports.get(name)) else {
                continue;
            };
            let Some(mac) = port.container_mac() else { continue };
            let addresses: Vec<IpAddr> = port.addresses().iter().map(IpNet::addr).collect();
            self.dataplane.announce(live.id, mac, &addresses);
        }
    }

    async fn roll_back(&mut self, down: &[Action], up: &[Action], old: Desired) {
        let failed = std::mem::replace(&mut self.desired, old);
        let undo: Vec<_> = up.iter().rev().map(Action::inverse).collect();
        self.take_down(&undo, &failed).await;
        for step in down.iter().rev().map(Action::inverse) {
            if let Err(e) = self.set_up(&step).await {
                tracing::error!("cannot restore what was there before: {e}");
            }
        }
        self.publish();
        if let Err(e) = self.store.save(&self.desired) {
            tracing::error!("{e}");
        }
    }

    pub(super) async fn edit<T>(
        &mut self,
        change: impl FnOnce(&Self, &mut Desired) -> Result<T, EditError>,
    ) -> Result<T, Error> {
        let mut new = self.desired.clone();
        let result = change(self, &mut new)?;
        self.commit(new).await?;
        Ok(result)
    }

    /// Adds a network.
    ///
    /// # Errors
    /// When it is wrong, collides with another or with one of the host's routes, or the kernel refuses.
    pub async fn add_network(&mut self, spec: &NetworkSpec) -> Result<(), Error> {
        self.add_network_from(spec, "").await
    }

    /// The same; `how` says where another subnet would be written, for the error.
    pub(super) async fn add_network_from(&mut self, spec: &NetworkSpec, how: &str) -> Result<(), Error> {
        self.add_network_and(spec, how, |_| ()).await
    }

    /// The same, with `more` that is wanted from the same moment on.
    pub(super) async fn add_network_and(
        &mut self,
        spec: &NetworkSpec,
        how: &str,
        more: impl FnOnce(&mut Desired),
    ) -> Result<(), Error> {
        let names: HashSet<String> = self.host.links().await?.into_iter().map(|l| l.name).collect();
        let mut new = self.desired.clone();
        new.add_network(&self.name, spec, |ifname| names.contains(ifname))?;
        self.check_routes(spec, how).await?;
        more(&mut new);
        self.commit(new).await
    }

    /// Refuses a subnet that the host reaches somewhere else.
    async fn check_routes(&self, spec: &NetworkSpec, how: &str) -> Result<(), Error> {
        let routes = self.host.routes().await?;
        let all: Vec<IpNet> = routes
            .iter()
            .map(|r| r.destination)
            .filter(|d| d.prefix_len() > 0 && !is_everywhere(d))
            .collect();
        for subnet in &spec.subnets {
            let Some(at) = routes
                .iter()
                .find(|r| all.contains(&r.destination) && ctl::spec::overlap(&r.destination, subnet))
            else {
                continue;
            };
            let via = match at.interface {
                Some(index) => self.host.link_by_index(index).await?.map(|l| format!(" (dev {})", l.name)),
                None => None,
            };
            let free = self.desired.free_subnet(*subnet, &all);
            return Err(ApplyError::Route {
                network: spec.name.clone(),
                subnet: *subnet,
                route: at.destination,
                via: via.unwrap_or_default(),
                free,
                how: how.replace("{free}", &free.to_string()),
            }
            .into());
        }
        Ok(())
    }

    /// Removes a network without ports.
    ///
    /// # Errors
    /// When there is none, or it has ports.
    pub async fn remove_network(&mut self, name: &str) -> Result<(), Error> {
        self.edit(|_, new| new.remove_network(name)).await
    }

    /// Makes a port of an interface of the host; tells the port's name.
    ///
    /// # Errors
    /// When it cannot be one.
    pub async fn add_port(&mut self, spec: &PortSpec) -> Result<String, Error> {
        self.forget_dead(spec.name.as_deref().unwrap_or(&spec.ifname), &[]).await;
        self.edit(|_, new| new.add_port(spec, Timestamp::now())).await
    }

    /// Gives a port's interface back to the host.
    ///
    /// # Errors
    /// When there is none, or it is of another kind.
    pub async fn remove_port(&mut self, name: &str) -> Result<(), Error> {
        self.edit(|_, new| new.remove_port(name)).await?;
        self.unpublish_with(|port| port == name);
        Ok(())
    }

    /// Attaches a container; tells the port's name.
    ///
    /// # Errors
    /// When the namespace, a name or an address cannot be had.
    pub async fn attach(&mut self, spec: &AttachSpec) -> Result<String, Error> {
        let netns = resolve(&spec.netns).map_err(|(path, source)| {
            let port = spec.name.clone().unwrap_or_else(|| spec.netns.chars().take(64).collect());
            ApplyError::NoNamespace { port, path, source }
        })?;
        let name = spec.name.clone().unwrap_or_else(|| desired::name_of(&spec.netns));
        self.forget_dead(&name, &spec.addresses).await;
        self.edit(|daemon, new| {
            let seen = |network: &str, address: IpAddr| {
                daemon.live.network(network).is_some_and(|n| daemon.dataplane.address_in_use(n, address))
            };
            new.attach(spec, netns, Timestamp::now(), seen)
        })
        .await
    }

    /// Takes a container's interface away.
    ///
    /// # Errors
    /// When there is none, or it is of another kind.
    pub async fn detach(&mut self, name: &str) -> Result<(), Error> {
        self.edit(|_, new| new.detach(name)).await?;
        self.unpublish_with(|port| port == name);
        Ok(())
    }

    /// Removes ports of containers that are gone and hold this name, or one of these addresses. The kernel takes its time
    /// to end a namespace; whoever replaces a container should not have to wait for it.
    pub(super) async fn forget_dead(&mut self, name: &str, addresses: &[IpAddr]) {
        let holds = |port: &Port| port.addresses().iter().any(|a| addresses.contains(&a.addr()));
        let wanted = self.desired.ports.iter().filter(|(n, port)| *n == name || holds(port));
        let dead: Vec<String> = wanted
            .filter(|(_, port)| match &port.origin {
                // Docker says when an endpoint ends.
                Origin::Added | Origin::Endpoint(_) => false,
                Origin::Attached(a) => {
                    let there = NetNs::open(Path::new(&a.netns)).and_then(|netns| netns.id());
                    !there.is_ok_and(|id| id == a.id())
                }
            })
            .map(|(n, _)| n.clone())
            .collect();
        if !dead.is_empty() {
            self.forget_ports(&dead).await;
        }
    }

    /// Removes ports whose containers are gone.
    pub(super) async fn forget_ports(&mut self, names: &[String]) {
        let forgotten = self.edit(|_, new| {
            names.iter().for_each(|name| new.forget(name));
            Ok(())
        });
        if let Err(e) = forgotten.await {
            // The disk is full, say. They are gone all the same; the next start sees that too.
            tracing::warn!("{e}");
            let mut new = self.desired.clone();
            names.iter().for_each(|name| new.forget(name));
            let steps = plan(&self.desired, &new);
            let old = std::mem::replace(&mut self.desired, new);
            self.take_down(&steps, &old).await;
        }
        self.unpublish_with(|port| names.iter().any(|name| name == port));
    }

    /// Binds a MAC to a port.
    ///
    /// # Errors
    /// When MAC or port are wrong.
    pub async fn add_static(&mut self, mac: &str, port: &str) -> Result<Static, Error> {
        self.edit(|_, new| new.add_static(mac, port)).await
    }

    /// Forgets a MAC of any kind but the gateway's; tells whether it was known.
    ///
    /// # Errors
    /// When there is no such network, or the MAC is the gateway's.
    pub async fn remove_mac(&mut self, network: &str, mac: Mac) -> Result<bool, Error> {
        let gateway = self.desired.network(network)?.gateway_mac;
        if gateway == mac {
            let why = format!("it is that of the gateway of network {network}, and stays");
            return Err(EditError::Mac { mac: mac.to_string(), why }.into());
        }
        let was_static = self.edit(|_, new| Ok(new.remove_static(network, mac))).await?;
        let learned = self.live.network(network).is_some_and(|id| self.dataplane.fdb().remove(id, mac));
        Ok(was_static || learned)
    }

    /// Forgets what was learned on a port, in a network, or everywhere; tells how many addresses.
    ///
    /// # Errors
    /// When there is no such port or network.
    pub fn flush(&self, port: Option<&str>, network: Option<&str>) -> Result<usize, Error> {
        let port = match port {
            None => None,
            Some(name) => match self.live.port(name) {
                Some(live) => Some(live.id),
                None => {
                    self.desired.port(name)?;
                    return Ok(0);
                }
            },
        };
        let network = match network {
            None => None,
            Some(name) => {
                self.desired.network(name)?;
                self.live.network(name)
            }
        };
        Ok(self
            .dataplane
            .fdb()
            .flush(|n, p| port.is_none_or(|port| port == p) && network.is_none_or(|x| x == n)))
    }
}

/// Half of everything, as VPNs write their default route.
fn is_everywhere(net: &IpNet) -> bool {
    net.prefix_len() <= 1
}

/// The namespace that a user means: a process id, a path, or a name below /run/netns.
pub(super) fn resolve(text: &str) -> Result<(String, NetNsId), (PathBuf, std::io::Error)> {
    let path = if !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit()) {
        PathBuf::from(format!("/proc/{text}/ns/net"))
    } else if text.contains('/') {
        PathBuf::from(text)
    } else {
        PathBuf::from(NETNS_DIR).join(text)
    };
    match NetNs::open(&path).and_then(|ns| ns.id()) {
        Ok(id) => Ok((path.display().to_string(), id)),
        Err(e) => {
            let short = |p: PathBuf| p.display().to_string().chars().take(120).collect::<String>().into();
            Err((short(path), e))
        }
    }
}
