//! Interfaces, addresses and routes: everything that is said to the kernel by rtnetlink; [`watch`] is what is heard from it.
//!
//! A [`Conn`] belongs to the namespace in which it was opened, for ever. It is opened between entering and leaving that
//! namespace, without an `.await` in between: the control plane is one thread.

mod watch;

use std::fmt::Write as _;
use std::io;
use std::net::IpAddr;
use std::os::fd::{AsFd, AsRawFd};

use futures_util::{StreamExt, TryStreamExt};
use ipnet::IpNet;
use rtnetlink::packet_core::{
    NLM_F_ACK, NLM_F_CREATE, NLM_F_EXCL, NLM_F_REQUEST, NetlinkMessage, NetlinkPayload,
};
use rtnetlink::packet_route::address::{AddressAttribute, AddressHeaderFlags, AddressMessage};
use rtnetlink::packet_route::link::{
    InfoData, InfoKind, InfoVeth, LinkAttribute, LinkExtentMask, LinkFlags, LinkInfo, LinkMessage,
};
use rtnetlink::packet_route::route::{RouteAddress, RouteAttribute, RouteMessage};
use rtnetlink::packet_route::{AddressFamily, RouteNetlinkMessage};
use rtnetlink::{Handle, LinkMessageBuilder, LinkUnspec, LinkVeth, RouteMessageBuilder, new_connection};
use tokio::task::JoinHandle;

pub use watch::{Notice, Watch};

use crate::mac::Mac;
use crate::sys::netns::NetNs;

/// The table of the host's own addresses.
const RT_TABLE_LOCAL: u8 = 255;

/// What the kernel did not do.
#[derive(Debug, thiserror::Error)]
pub enum LinkError {
    /// No netlink socket in a namespace.
    #[error("cannot open a netlink socket: {0}")]
    Socket(io::Error),
    /// The kernel said no.
    #[error("cannot {what}: {source}")]
    Refused {
        /// What was asked.
        what: String,
        /// Its answer.
        source: io::Error,
    },
}

impl LinkError {
    /// The kernel's answer.
    pub fn errno(&self) -> Option<i32> {
        match self {
            Self::Socket(e) | Self::Refused { source: e, .. } => e.raw_os_error(),
        }
    }
}

/// An interface.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Link {
    /// Its index in its namespace.
    pub index: u32,
    /// Its name.
    pub name: String,
    /// Its alias.
    pub alias: Option<String>,
    /// Its MAC.
    pub mac: Mac,
    /// Its MTU.
    pub mtu: u32,
    /// Administratively up.
    pub up: bool,
    /// Up, with carrier.
    pub running: bool,
    /// The loopback device.
    pub loopback: bool,
    /// `veth`, `tun`, `bridge` … where the driver tells.
    pub kind: Option<String>,
    /// Index of the bridge or bond it is enslaved to.
    pub controller: Option<u32>,
    /// Index of the other end of a veth pair, in the other end's namespace.
    pub peer: Option<u32>,
    /// The other end, or the lower device, is in another namespace.
    pub peer_elsewhere: bool,
}

impl Link {
    fn of(message: &LinkMessage) -> Self {
        let flags = message.header.flags;
        let mut link = Self {
            index: message.header.index,
            name: String::new(),
            alias: None,
            mac: Mac::ZERO,
            mtu: 0,
            up: flags.contains(LinkFlags::Up),
            running: flags.contains(LinkFlags::Up | LinkFlags::LowerUp),
            loopback: flags.contains(LinkFlags::Loopback),
            kind: None,
            controller: None,
            peer: None,
            peer_elsewhere: false,
        };
        for attribute in &message.attributes {
            match attribute {
                LinkAttribute::IfName(name) => link.name.clone_from(name),
                LinkAttribute::IfAlias(alias) => link.alias = Some(alias.clone()),
                LinkAttribute::Mtu(mtu) => link.mtu = *mtu,
                LinkAttribute::Link(index) => link.peer = Some(*index),
                LinkAttribute::LinkNetNsId(_) => link.peer_elsewhere = true,
                LinkAttribute::Controller(index) => link.controller = Some(*index),
                LinkAttribute::Address(bytes) => {
                    link.mac = bytes.as_slice().try_into().map_or(Mac::ZERO, Mac);
                }
                LinkAttribute::LinkInfo(infos) => {
                    for info in infos {
                        if let LinkInfo::Kind(kind) = info {
                            link.kind = Some(kind.to_string());
                        }
                    }
                }
                _ => {}
            }
        }
        link
    }

    /// Whether it is one end of a veth pair: that needs no promiscuous mode.
    pub fn is_veth(&self) -> bool {
        self.kind.as_deref() == Some("veth")
    }
}

/// A veth pair to make: this end here, the other one elsewhere. This end comes up; the other cannot before it has a peer
/// (`ENOTCONN`).
#[derive(Debug)]
pub struct VethPair<'a> {
    /// Name of this end.
    pub name: &'a str,
    /// MTU of both.
    pub mtu: u32,
    /// Name of the other end.
    pub peer: &'a str,
    /// MAC of the other end.
    pub peer_mac: Mac,
    /// Where the other end goes.
    pub peer_netns: &'a NetNs,
}

/// A route of the main table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Route {
    /// Where to.
    pub destination: IpNet,
    /// By which interface.
    pub interface: Option<u32>,
}

/// A connection to the kernel for one namespace.
#[derive(Debug)]
pub struct Conn {
    pub(super) handle: Handle,
    task: JoinHandle<()>,
}

impl Drop for Conn {
    fn drop(&mut self) {
        // The socket keeps its namespace alive: it goes now, not when the last answer has come.
        self.task.abort();
    }
}

impl Conn {
    /// Opens one in the calling thread's namespace.
    ///
    /// # Errors
    /// When there is no socket to be had.
    pub fn here() -> Result<Self, LinkError> {
        let (connection, handle, _) = new_connection().map_err(LinkError::Socket)?;
        Ok(Self { handle, task: tokio::spawn(connection) })
    }

    /// Opens one in another namespace.
    ///
    /// # Errors
    /// When the namespace cannot be entered, or there is no socket to be had.
    pub fn within(netns: &NetNs) -> Result<Self, LinkError> {
        let _inside = netns.enter().map_err(LinkError::Socket)?;
        Self::here()
    }

    /// Closes it; when this returns the socket is gone.
    pub async fn close(mut self) {
        self.task.abort();
        let _ = (&mut self.task).await;
    }

    /// The interface of this name.
    ///
    /// # Errors
    /// When the kernel refuses for another reason than that there is none.
    pub async fn link(&self, name: &str) -> Result<Option<Link>, LinkError> {
        self.one(self.get().match_name(name.to_owned()), name).await
    }

    /// The interface of this index.
    ///
    /// # Errors
    /// As [`Conn::link`].
    pub async fn link_by_index(&self, index: u32) -> Result<Option<Link>, LinkError> {
        self.one(self.get().match_index(index), &index.to_string()).await
    }

    /// Asks for interfaces without their statistics, which are most of the answer.
    fn get(&self) -> rtnetlink::LinkGetRequest {
        self.handle.link().get().set_filter_mask(AddressFamily::Unspec, vec![LinkExtentMask::SkipStats])
    }

    async fn one(&self, request: rtnetlink::LinkGetRequest, which: &str) -> Result<Option<Link>, LinkError> {
        let mut answers = std::pin::pin!(request.execute());
        match answers.try_next().await {
            Ok(message) => Ok(message.as_ref().map(Link::of)),
            Err(e) => match refused(format!("look up interface {which}"), e) {
                e if e.errno() == Some(libc::ENODEV) => Ok(None),
                e => Err(e),
            },
        }
    }

    /// Every interface.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub async fn links(&self) -> Result<Vec<Link>, LinkError> {
        let all = self.get().execute().map_ok(|m| Link::of(&m));
        all.try_collect().await.map_err(|e| refused("list interfaces".into(), e))
    }

    /// Makes a veth pair; the other end appears in its namespace at once, never here.
    ///
    /// # Errors
    /// `EEXIST`: one of the names is taken.
    pub async fn add_veth(&self, pair: &VethPair<'_>) -> Result<Link, LinkError> {
        let peer = LinkMessageBuilder::<LinkUnspec>::new()
            .name(pair.peer)
            .mtu(pair.mtu)
            .address(pair.peer_mac.0.to_vec())
            .setns_by_fd(pair.peer_netns.as_fd().as_raw_fd())
            .build();
        let message = LinkMessageBuilder::<LinkVeth>::new_with_info_kind(InfoKind::Veth)
            .name(pair.name)
            .mtu(pair.mtu)
            .set_info_data(InfoData::Veth(InfoVeth::Peer(peer)))
            .up()
            .build();
        let what = || format!("make the veth pair {} and {}", pair.name, pair.peer);
        self.handle.link().add(message).execute().await.map_err(|e| refused(what(), e))?;
        let gone = || LinkError::Refused { what: what(), source: io::Error::from_raw_os_error(libc::ENODEV) };
        self.link(pair.name).await?.ok_or_else(gone)
    }

    /// Changes an interface; `what` says what is done, for the error.
    async fn set(
        &self,
        index: u32,
        what: String,
        change: impl FnOnce(LinkMessageBuilder<LinkUnspec>) -> LinkMessageBuilder<LinkUnspec>,
    ) -> Result<(), LinkError> {
        let message = change(LinkUnspec::new_with_index(index)).build();
        self.handle.link().set(message).execute().await.map_err(|e| refused(what, e))
    }

    /// Makes a port of an interface: its alias, up, and promiscuous where the device filters by MAC.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub async fn enlist(&self, link: &Link, alias: &str) -> Result<(), LinkError> {
        let promiscuous = !link.is_veth();
        self.set(link.index, format!("set up interface {}", link.name), |m| {
            let m = m.alias(alias).up();
            if promiscuous { m.promiscuous(true) } else { m }
        })
        .await
    }

    /// The opposite of [`Conn::enlist`]: no alias, not promiscuous, down.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub async fn discharge(&self, link: &Link) -> Result<(), LinkError> {
        let promiscuous = !link.is_veth();
        self.set(link.index, format!("set down interface {}", link.name), |m| {
            let m = m.alias("").down();
            if promiscuous { m.promiscuous(false) } else { m }
        })
        .await
    }

    /// Sets an interface up.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub async fn set_up(&self, index: u32) -> Result<(), LinkError> {
        self.set(index, "set the interface up".into(), |m| m.up()).await
    }

    /// Sets an interface's alias.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub async fn set_alias(&self, index: u32, alias: &str) -> Result<(), LinkError> {
        self.set(index, "set the alias".into(), |m| m.alias(alias)).await
    }

    /// Sets MTU and, where given, the MAC.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub async fn set_shape(&self, index: u32, mtu: u32, mac: Option<Mac>) -> Result<(), LinkError> {
        self.set(index, format!("set the MTU to {mtu}"), |m| {
            let m = m.mtu(mtu);
            match mac {
                Some(mac) => m.address(mac.0.to_vec()),
                None => m,
            }
        })
        .await
    }

    /// Moves an interface into another namespace, under a new name if wanted. It arrives down.
    ///
    /// # Errors
    /// `EEXIST`: the name is taken there; `EINVAL`: the device cannot be moved.
    pub async fn move_to(&self, link: &Link, netns: &NetNs, name: Option<&str>) -> Result<(), LinkError> {
        self.set(link.index, format!("move interface {} to another namespace", link.name), |m| {
            let m = m.setns_by_fd(netns.as_fd().as_raw_fd());
            match name {
                Some(name) => m.name(name),
                None => m,
            }
        })
        .await
    }

    /// Deletes an interface; that it is gone already is fine.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub async fn delete(&self, index: u32) -> Result<(), LinkError> {
        match self.handle.link().del(index).execute().await {
            Ok(()) => Ok(()),
            Err(e) => match refused("delete the interface".into(), e) {
                e if e.errno() == Some(libc::ENODEV) => Ok(()),
                e => Err(e),
            },
        }
    }

    /// Gives an interface an address, usable at once (no duplicate address detection); having it already is fine.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub async fn add_address(&self, index: u32, address: IpNet) -> Result<(), LinkError> {
        let mut request = self.handle.address().add(index, address.addr(), address.prefix_len());
        if address.addr().is_ipv6() {
            request.message_mut().header.flags |= AddressHeaderFlags::Nodad;
        }
        match request.execute().await {
            Ok(()) => Ok(()),
            Err(e) => match refused(format!("add address {address}"), e) {
                e if e.errno() == Some(libc::EEXIST) => Ok(()),
                e => Err(e),
            },
        }
    }

    /// Every address with its interface.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub async fn addresses(&self) -> Result<Vec<(u32, IpNet)>, LinkError> {
        let all = self.handle.address().get().execute().map_ok(|m| address_of(&m));
        let all: Vec<_> = all.try_collect().await.map_err(|e| refused("list addresses".into(), e))?;
        Ok(all.into_iter().flatten().collect())
    }

    /// Adds a default route; that there is one already is fine.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub async fn add_default_route(&self, index: u32, gateway: IpAddr) -> Result<(), LinkError> {
        let message = match gateway {
            IpAddr::V4(gateway) => RouteMessageBuilder::<std::net::Ipv4Addr>::new()
                .output_interface(index)
                .gateway(gateway)
                .build(),
            IpAddr::V6(gateway) => RouteMessageBuilder::<std::net::Ipv6Addr>::new()
                .output_interface(index)
                .gateway(gateway)
                .build(),
        };
        // Not `route().add()`: its flags replace, and a container that has a default route keeps it.
        let mut request = NetlinkMessage::from(RouteNetlinkMessage::NewRoute(message));
        request.header.flags = NLM_F_REQUEST | NLM_F_ACK | NLM_F_CREATE | NLM_F_EXCL;
        let what = || format!("add a default route by {gateway}");
        let mut answers = self.handle.clone().request(request).map_err(|e| refused(what(), e))?;
        while let Some(answer) = answers.next().await {
            if let NetlinkPayload::Error(e) = answer.payload {
                match e.to_io() {
                    e if e.raw_os_error() == Some(libc::EEXIST) || e.raw_os_error() == Some(0) => {}
                    source => return Err(LinkError::Refused { what: what(), source }),
                }
            }
        }
        Ok(())
    }

    /// The routes of all tables but the local ones; default routes are `0.0.0.0/0` and `::/0`.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub async fn routes(&self) -> Result<Vec<Route>, LinkError> {
        let mut routes = Vec::new();
        for v4 in [true, false] {
            let request = if v4 {
                RouteMessageBuilder::<std::net::Ipv4Addr>::new().build()
            } else {
                RouteMessageBuilder::<std::net::Ipv6Addr>::new().build()
            };
            let all = self.handle.route().get(request).execute().map_ok(|m| route_of(&m, v4));
            let all: Vec<_> = all.try_collect().await.map_err(|e| refused("list routes".into(), e))?;
            routes.extend(all.into_iter().flatten());
        }
        Ok(routes)
    }
}

/// The default route's interface.
pub async fn default_interface(conn: &Conn) -> Result<Option<String>, LinkError> {
    let routes = conn.routes().await?;
    let default = routes.iter().find(|r| r.destination.prefix_len() == 0).and_then(|r| r.interface);
    match default {
        Some(index) => Ok(conn.link_by_index(index).await?.map(|l| l.name)),
        None => Ok(None),
    }
}

fn address_of(message: &AddressMessage) -> Option<(u32, IpNet)> {
    let find = |local: bool| {
        message.attributes.iter().find_map(|a| match a {
            AddressAttribute::Local(ip) if local => Some(*ip),
            AddressAttribute::Address(ip) if !local => Some(*ip),
            _ => None,
        })
    };
    // On point-to-point links `Address` is the other side's.
    let ip = find(true).or_else(|| find(false))?;
    Some((message.header.index, IpNet::new(ip, message.header.prefix_len).ok()?))
}

fn route_of(message: &RouteMessage, v4: bool) -> Option<Route> {
    use rtnetlink::packet_route::route::RouteType;
    if message.header.table == RT_TABLE_LOCAL || message.header.kind != RouteType::Unicast {
        return None;
    }
    let mut address: IpAddr =
        if v4 { std::net::Ipv4Addr::UNSPECIFIED.into() } else { std::net::Ipv6Addr::UNSPECIFIED.into() };
    let mut interface = None;
    for attribute in &message.attributes {
        match attribute {
            RouteAttribute::Destination(RouteAddress::Inet(ip)) => address = (*ip).into(),
            RouteAttribute::Destination(RouteAddress::Inet6(ip)) => address = (*ip).into(),
            RouteAttribute::Oif(index) => interface = Some(*index),
            _ => {}
        }
    }
    let destination = IpNet::new(address, message.header.destination_prefix_length).ok()?;
    Some(Route { destination, interface })
}

pub(super) fn refused(what: String, error: rtnetlink::Error) -> LinkError {
    let source = match error {
        rtnetlink::Error::NetlinkError(e) => e.to_io(),
        other => io::Error::other({
            let mut text = String::new();
            let _ = write!(text, "{other}");
            text
        }),
    };
    LinkError::Refused { what, source }
}
