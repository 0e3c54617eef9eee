//! What changes in a namespace, as the kernel tells it: rtnetlink's multicast groups.

use std::net::IpAddr;

use futures_util::StreamExt;
use rtnetlink::packet_core::{NetlinkMessage, NetlinkPayload};
use rtnetlink::packet_route::RouteNetlinkMessage;
use rtnetlink::sys::{AsyncSocket, SocketAddr};
use rtnetlink::{MulticastGroup, new_multicast_connection};
use tokio::task::JoinHandle;

use super::{Link, LinkError};
use crate::mac::Mac;
use crate::sys::netns::NetNs;

/// Something that changed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Notice {
    /// An interface came or changed.
    Link(Link),
    /// An interface is gone.
    Gone(u32),
    /// Addresses changed.
    Address,
    /// Routes changed.
    Route,
    /// What MAC an address has on an interface.
    Neighbor(u32, IpAddr, Mac),
    /// Notices were lost: look at everything again.
    Lost,
}

/// What changes in a namespace, as it does.
#[derive(Debug)]
pub struct Watch {
    messages: futures_channel::Receiver,
    task: JoinHandle<()>,
}

mod futures_channel {
    use super::{NetlinkMessage, RouteNetlinkMessage, SocketAddr};
    use futures_util::Stream;
    use std::pin::Pin;

    /// A receiver whose crate is not among ours: only its being a stream is used.
    pub(super) struct Receiver(
        pub(super) Pin<Box<dyn Stream<Item = (NetlinkMessage<RouteNetlinkMessage>, SocketAddr)> + Send>>,
    );

    impl std::fmt::Debug for Receiver {
        fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
            f.write_str("Receiver")
        }
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Watch {
    /// Watches the calling thread's namespace: interfaces and addresses.
    ///
    /// # Errors
    /// When there is no socket to be had.
    pub fn here() -> Result<Self, LinkError> {
        Self::of(&[MulticastGroup::Link, MulticastGroup::Ipv4Ifaddr, MulticastGroup::Ipv6Ifaddr])
    }

    /// The same, with routes and neighbors: the host's.
    ///
    /// # Errors
    /// As [`Watch::here`].
    pub fn with_routes() -> Result<Self, LinkError> {
        Self::of(&[
            MulticastGroup::Link,
            MulticastGroup::Ipv4Ifaddr,
            MulticastGroup::Ipv6Ifaddr,
            MulticastGroup::Ipv4Route,
            MulticastGroup::Ipv6Route,
            MulticastGroup::Neigh,
        ])
    }

    fn of(groups: &[MulticastGroup]) -> Result<Self, LinkError> {
        let (mut connection, _, messages) = new_multicast_connection(groups).map_err(LinkError::Socket)?;
        // Room for a burst: a thousand interfaces that come or go at once.
        let _ = connection.socket_mut().socket_mut().set_rx_buf_sz(4 << 20);
        let messages = futures_channel::Receiver(Box::pin(messages));
        Ok(Self { messages, task: tokio::spawn(connection) })
    }

    /// Watches another namespace.
    ///
    /// # Errors
    /// When the namespace cannot be entered, or there is no socket to be had.
    pub fn within(netns: &NetNs) -> Result<Self, LinkError> {
        let _inside = netns.enter().map_err(LinkError::Socket)?;
        Self::here()
    }

    /// The next change; never returns when the kernel closed the connection. May be cancelled without loss.
    pub async fn next(&mut self) -> Notice {
        loop {
            let Some((message, _)) = self.messages.0.next().await else {
                return std::future::pending().await;
            };
            match message.payload {
                NetlinkPayload::InnerMessage(RouteNetlinkMessage::NewLink(m)) => {
                    return Notice::Link(Link::of(&m));
                }
                NetlinkPayload::InnerMessage(RouteNetlinkMessage::DelLink(m)) => {
                    return Notice::Gone(m.header.index);
                }
                NetlinkPayload::InnerMessage(
                    RouteNetlinkMessage::NewAddress(_) | RouteNetlinkMessage::DelAddress(_),
                ) => return Notice::Address,
                NetlinkPayload::InnerMessage(
                    RouteNetlinkMessage::NewRoute(_) | RouteNetlinkMessage::DelRoute(_),
                ) => return Notice::Route,
                NetlinkPayload::InnerMessage(RouteNetlinkMessage::NewNeighbour(m)) => {
                    if let Some((ifindex, address, mac)) = super::super::routes::neighbor_of(&m) {
                        return Notice::Neighbor(ifindex, address, mac);
                    }
                }
                NetlinkPayload::Overrun(_) => return Notice::Lost,
                _ => {}
            }
        }
    }
}
