//! Why something that is wanted could not be set up.

use std::io;
use std::path::PathBuf;

use ipnet::IpNet;

use super::super::desired::Class;
use super::super::links::LinkError;
use super::super::portguard::Taken;

/// What could not be set up.
#[derive(Debug, thiserror::Error)]
pub enum ApplyError {
    /// The host has an interface of the name that a host end wants.
    #[error(
        "cannot make the host's interface {ifname} of network {network}: {place} has an interface of that name; rename or delete it"
    )]
    HostNameTaken {
        /// The host end.
        ifname: String,
        /// Its network.
        network: String,
        /// Where.
        place: &'static str,
    },
    /// No such interface.
    #[error("cannot add interface {ifname}: the host has none of that name; 'ip link' lists them")]
    NoInterface {
        /// The interface.
        ifname: String,
    },
    /// It is in another instance.
    #[error(
        "cannot add interface {ifname}: it is a port of instance {instance}; give it back there first ('swctl --socket …/{instance}.sock port rm')"
    )]
    OtherInstance {
        /// The interface.
        ifname: String,
        /// Who has it.
        instance: String,
    },
    /// The loopback device.
    #[error(
        "cannot add interface {ifname}: it is the loopback device; add the host end of a veth pair, or a TAP device"
    )]
    Loopback {
        /// The interface.
        ifname: String,
    },
    /// The uplink.
    #[error(
        "cannot add interface {ifname}: it is the uplink, by which the host reaches the outside; start swd with another --uplink to use it as a port"
    )]
    Uplink {
        /// The interface.
        ifname: String,
    },
    /// Enslaved.
    #[error(
        "cannot add interface {ifname}: it belongs to {controller}; release it first with 'ip link set {ifname} nomaster'"
    )]
    Enslaved {
        /// The interface.
        ifname: String,
        /// Its bridge or bond.
        controller: String,
    },
    /// The switch namespace has an interface of the name.
    #[error(
        "cannot add interface {ifname}: the switch namespace has an interface of that name, which is not a port; delete it with 'ip -n {instance} link del {ifname}', or rename yours"
    )]
    NameTaken {
        /// The interface.
        ifname: String,
        /// The instance.
        instance: String,
    },
    /// No such namespace.
    #[error(
        "cannot attach {port}: there is no network namespace {path} ({source}); 'ip netns' lists those with names"
    )]
    NoNamespace {
        /// The port.
        port: String,
        /// What was looked for.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A namespace that is no container's.
    #[error("cannot attach {port}: {path} is {what}; name a container's namespace or process")]
    NotAContainer {
        /// The port.
        port: String,
        /// What was named.
        path: PathBuf,
        /// Whose it is.
        what: &'static str,
    },
    /// The container has an interface of the name.
    #[error(
        "cannot attach {port}: the container has an interface {ifname} already; choose another name with --ifname"
    )]
    ContainerNameTaken {
        /// The port.
        port: String,
        /// The interface.
        ifname: String,
    },
    /// No TAP device.
    #[error(
        "cannot attach {port}: no TAP device ({source}); is the tun module loaded, and /dev/net/tun there?"
    )]
    Tap {
        /// The port.
        port: String,
        /// Why.
        source: io::Error,
    },
    /// The subnet collides with one of the host's routes.
    #[error(
        "cannot add network {network}: subnet {subnet} overlaps the host's route {route}{via}; choose another, e.g. {free}{how}"
    )]
    Route {
        /// The network.
        network: String,
        /// Its subnet.
        subnet: IpNet,
        /// The host's route.
        route: IpNet,
        /// Its interface.
        via: String,
        /// A subnet that nobody has.
        free: IpNet,
        /// Where to write it.
        how: String,
    },
    /// A program of the host has the port.
    #[error("cannot publish {key}: {taken}; stop it, or choose another port")]
    PortTaken {
        /// What was asked for.
        key: String,
        /// Who has it.
        taken: Taken,
    },
    /// The ports cannot be had.
    #[error("cannot publish {key}: {why}")]
    Publish {
        /// What was asked for.
        key: String,
        /// Why not.
        why: String,
    },
    /// The kernel refused something else.
    #[error("cannot set up {subject}: {source}")]
    Link {
        /// The port or network.
        subject: String,
        /// What was refused.
        source: LinkError,
    },
}

impl ApplyError {
    /// Which kind of problem it is, for the API.
    pub fn class(&self) -> Class {
        match self {
            Self::NoInterface { .. } | Self::NoNamespace { .. } => Class::NotFound,
            Self::Loopback { .. } | Self::NotAContainer { .. } => Class::Invalid,
            Self::Tap { .. } | Self::Link { .. } | Self::Publish { .. } => Class::Failed,
            _ => Class::Conflict,
        }
    }
}
