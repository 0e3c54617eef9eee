//! Why an edit of the desired state is refused: what failed, on what, and what to do.

use std::net::IpAddr;

use ctl::spec::SpecError;
use ipnet::IpNet;
use jiff::Timestamp;

use super::super::ipam;

/// An edit that cannot be.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum EditError {
    /// A value is wrong by itself.
    #[error("cannot {action}: {source}")]
    Spec {
        /// What was asked for.
        action: String,
        /// What is wrong.
        source: SpecError,
    },
    /// The name is taken.
    #[error(
        "cannot add {what} {name}: there is one of that name already; choose another name, or remove it with 'swctl {remove}'"
    )]
    Exists {
        /// `network` or `port`.
        what: &'static str,
        /// The name.
        name: String,
        /// How to remove it.
        remove: String,
    },
    /// The interface is a port.
    #[error("cannot add interface {ifname}: it is port {port} of network {network} already")]
    InterfaceUsed {
        /// The interface.
        ifname: String,
        /// Its port.
        port: String,
        /// Its network.
        network: String,
    },
    /// Subnets overlap.
    #[error(
        "cannot add network {name}: subnet {subnet} overlaps network {other} ({theirs}); choose another, e.g. {free}"
    )]
    Overlap {
        /// The new network.
        name: String,
        /// Its subnet.
        subnet: IpNet,
        /// The network that has it.
        other: String,
        /// That network's subnet.
        theirs: IpNet,
        /// One that nobody has.
        free: IpNet,
    },
    /// The network still has ports.
    #[error(
        "cannot remove network {name}: it has ports ({ports}); remove them first with 'swctl port rm' or 'swctl detach'"
    )]
    InUse {
        /// The network.
        name: String,
        /// Its ports.
        ports: String,
    },
    /// There is none.
    #[error("there is no {what} {name}; {hint}")]
    NotFound {
        /// `network`, `port` …
        what: &'static str,
        /// What was asked for.
        name: String,
        /// Where to look.
        hint: String,
    },
    /// A limit or guard that cannot be.
    #[error("cannot change port {port}: {why}")]
    Setting {
        /// The port.
        port: String,
        /// What is wrong.
        why: String,
    },
    /// An address that cannot be given.
    #[error("cannot give port {port} an address: {why}")]
    Lease {
        /// The port.
        port: String,
        /// What is in the way.
        why: String,
    },
    /// A rule that cannot be.
    #[error("cannot use the rule '{rule}': {why}")]
    Rule {
        /// The rule.
        rule: String,
        /// What is in its way.
        why: String,
    },
    /// A name of two things.
    #[error("{name} is the name of a network and of a port; say network:{name} or port:{name}")]
    Ambiguous {
        /// The name.
        name: String,
    },
    /// A mirror of a port to itself.
    #[error("port {0} cannot mirror itself; name another port to send the copies to")]
    MirrorsItself(String),
    /// A host end cannot be removed by itself.
    #[error(
        "port {port} is the host end of network {network}; it goes with its network ('swctl network rm {network}')"
    )]
    HostEnd {
        /// The port.
        port: String,
        /// Its network.
        network: String,
    },
    /// `port rm` of an attached port, or the other way round.
    #[error("port {port} was made by 'swctl {made}'; remove it with 'swctl {remove} {port}'")]
    OtherKind {
        /// The port.
        port: String,
        /// The command it came from.
        made: &'static str,
        /// The command that removes it.
        remove: &'static str,
    },
    /// `port rm` of a port that is Docker's.
    #[error(
        "port {0} is a Docker container's; take it out with 'docker network disconnect', or cut it off with 'swctl detach {0}'"
    )]
    Docker(String),
    /// Something else in place of an id of Docker's.
    #[error("'{0}' is no id of Docker's: letters and digits are wanted, at least ten")]
    DockerId(String),
    /// An address that the container cannot have.
    #[error("cannot attach {port}: address {address} {why}")]
    Address {
        /// The port.
        port: String,
        /// The address.
        address: IpAddr,
        /// What is wrong with it.
        why: String,
    },
    /// No address left.
    #[error("cannot attach {port} to network {network}: {source}")]
    Exhausted {
        /// The port.
        port: String,
        /// The network.
        network: String,
        /// How full it is.
        source: ipam::Exhausted,
    },
    /// A publish that is wrong by itself.
    #[error("cannot publish: {why}")]
    Publish {
        /// What is wrong.
        why: String,
    },
    /// Ports that are published already.
    #[error(
        "cannot publish {key}: {other} leads to {target} since {since:.0}; take it back first with 'swctl unpublish {other}'"
    )]
    Published {
        /// What was asked for.
        key: String,
        /// What is there.
        other: String,
        /// Where that leads.
        target: std::net::SocketAddr,
        /// Since when.
        since: Timestamp,
    },
    /// A MAC that cannot be used so.
    #[error("cannot use MAC {mac}: {why}")]
    Mac {
        /// The MAC.
        mac: String,
        /// What is wrong with it.
        why: String,
    },
}

impl EditError {
    /// Which kind of problem it is, for the API.
    pub fn class(&self) -> Class {
        match self {
            Self::NotFound { .. } => Class::NotFound,
            Self::Spec { .. }
            | Self::Mac { .. }
            | Self::Publish { .. }
            | Self::MirrorsItself(_)
            | Self::DockerId(_) => Class::Invalid,
            Self::Address { why, .. } if why.starts_with("is outside") || why.starts_with("is the") => {
                Class::Invalid
            }
            _ => Class::Conflict,
        }
    }
}

/// Kinds of problems, as the API tells them apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Class {
    /// The request is wrong by itself.
    Invalid,
    /// There is no such thing.
    NotFound,
    /// The request does not go together with what is there.
    Conflict,
    /// The kernel or the file system refused.
    Failed,
}
