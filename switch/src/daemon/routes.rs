//! The host's routes and neighbors, as the router mirrors them.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use futures_util::TryStreamExt;
use ipnet::IpNet;
use rtnetlink::RouteMessageBuilder;
use rtnetlink::packet_route::AddressFamily;
use rtnetlink::packet_route::neighbour::{
    NeighbourAddress, NeighbourAttribute, NeighbourMessage, NeighbourState,
};
use rtnetlink::packet_route::route::{
    RouteAddress, RouteAttribute, RouteMessage, RouteMetric, RouteType, RouteVia,
};

use super::links::{Conn, LinkError, refused};
use crate::mac::Mac;
use crate::router::route::{Action, Route};

/// The main table.
const RT_TABLE_MAIN: u32 = 254;

impl Conn {
    /// The routes of the main tables.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub(super) async fn main_routes(&self) -> Result<Vec<Route>, LinkError> {
        let mut routes = Vec::new();
        for v4 in [true, false] {
            let request = if v4 {
                RouteMessageBuilder::<Ipv4Addr>::new().build()
            } else {
                RouteMessageBuilder::<Ipv6Addr>::new().build()
            };
            let all = self.handle.route().get(request).execute().map_ok(|m| route_of(&m));
            let all: Vec<_> = all.try_collect().await.map_err(|e| refused("list routes".into(), e))?;
            routes.extend(all.into_iter().flatten());
        }
        Ok(routes)
    }

    /// What MACs the kernel knows: interface, address, MAC.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub(super) async fn neighbors(&self) -> Result<Vec<(u32, IpAddr, Mac)>, LinkError> {
        let mut neighbors = Vec::new();
        for family in [AddressFamily::Inet, AddressFamily::Inet6] {
            let all = self.handle.neighbours().get().set_address_family(family).execute();
            let all: Vec<_> = all
                .map_ok(|m| neighbor_of(&m))
                .try_collect()
                .await
                .map_err(|e| refused("list neighbors".into(), e))?;
            neighbors.extend(all.into_iter().flatten());
        }
        Ok(neighbors)
    }
}

/// Interface, address and MAC of a neighbor whose MAC the kernel believes.
pub(super) fn neighbor_of(message: &NeighbourMessage) -> Option<(u32, IpAddr, Mac)> {
    let believed = matches!(
        message.header.state,
        NeighbourState::Reachable
            | NeighbourState::Stale
            | NeighbourState::Delay
            | NeighbourState::Probe
            | NeighbourState::Permanent
    );
    if !believed {
        return None;
    }
    let (mut address, mut mac) = (None, None);
    for attribute in &message.attributes {
        match attribute {
            NeighbourAttribute::Destination(NeighbourAddress::Inet(ip)) => address = Some(IpAddr::V4(*ip)),
            NeighbourAttribute::Destination(NeighbourAddress::Inet6(ip)) => address = Some(IpAddr::V6(*ip)),
            NeighbourAttribute::LinkLayerAddress(bytes) => mac = bytes.as_slice().try_into().ok().map(Mac),
            _ => {}
        }
    }
    Some((message.header.ifindex, address?, mac?))
}

fn ip_of(address: &RouteAddress) -> Option<IpAddr> {
    match address {
        RouteAddress::Inet(ip) => Some((*ip).into()),
        RouteAddress::Inet6(ip) => Some((*ip).into()),
        _ => None,
    }
}

fn route_of(message: &RouteMessage) -> Option<Route> {
    let mut table = u32::from(message.header.table);
    let unspecified: IpAddr = match message.header.address_family {
        AddressFamily::Inet => Ipv4Addr::UNSPECIFIED.into(),
        AddressFamily::Inet6 => Ipv6Addr::UNSPECIFIED.into(),
        _ => return None,
    };
    let (mut address, mut metric) = (unspecified, 0);
    let (mut ifindex, mut gateway, mut source, mut mtu) = (None, None, None, None);
    for attribute in &message.attributes {
        match attribute {
            RouteAttribute::Table(n) => table = *n,
            RouteAttribute::Destination(a) => address = ip_of(a)?,
            RouteAttribute::Priority(n) => metric = *n,
            RouteAttribute::Oif(n) => ifindex = Some(*n),
            RouteAttribute::Gateway(a) => gateway = ip_of(a),
            RouteAttribute::Via(RouteVia::Inet(ip)) => gateway = Some((*ip).into()),
            RouteAttribute::Via(RouteVia::Inet6(ip)) => gateway = Some((*ip).into()),
            RouteAttribute::PrefSource(a) => source = ip_of(a),
            RouteAttribute::Metrics(metrics) => {
                mtu = metrics.iter().find_map(|m| if let RouteMetric::Mtu(n) = m { Some(*n) } else { None });
            }
            // Of several ways the first is taken: packets of a connection must not change between them.
            RouteAttribute::MultiPath(hops) => {
                let first = hops.first()?;
                ifindex = Some(first.interface_index);
                gateway = first.attributes.iter().find_map(|a| match a {
                    RouteAttribute::Gateway(a) => ip_of(a),
                    _ => None,
                });
            }
            _ => {}
        }
    }
    if table != RT_TABLE_MAIN {
        return None;
    }
    let action = match message.header.kind {
        RouteType::Unicast => Action::Forward { ifindex: ifindex?, gateway, source, mtu },
        RouteType::BlackHole => Action::Blackhole,
        RouteType::Unreachable => Action::Unreachable,
        RouteType::Prohibit => Action::Prohibit,
        _ => return None,
    };
    let destination = IpNet::new(address, message.header.destination_prefix_length).ok()?;
    Some(Route { destination, metric, action })
}
