//! Addresses for ports that ask: what the gateways tell, and what the control plane does where a port has no address yet.
//!
//! A lease is of a port, and kept with the desired state: a line in its journal, so that the work for one does not depend on how many
//! there are. A port's wishes that change something are limited, since each costs a write to the disk.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;
use std::time::Duration;

use ctl::api::{ConnectionFilter, PortKind};
use ipnet::{IpNet, Ipv4Net};

use super::control::{Daemon, Error};
use super::desired::{EditError, Lease, Network};
use super::services::Ask;
use super::state::Change;
use crate::addressing::dhcp::Wish;
use crate::addressing::{Addressing, Advertised, Dhcp, Holder, Terms};
use crate::limit::Size;
use crate::mac::Mac;
use crate::router::gateway::link_local;
use crate::services::{Asker, Services};
use crate::snapshot::NetworkId;
use crate::worker;

/// A wish, to the port's limit.
const ONE: Size = Size { bytes: 0, frames: 1 };

impl Daemon {
    /// What those are told who ask; the gateways do so from then on.
    pub(super) fn addressing(
        &self,
        services: &mut HashMap<NetworkId, Services, foldhash::fast::RandomState>,
    ) -> Addressing {
        let mut new = Addressing::default();
        for (name, network) in &self.desired.networks {
            let Some(id) = self.live.network(name) else { continue };
            let (dhcp, advertised) = (dhcp(network), self.advertised(network));
            let on = services.entry(id).or_default();
            (on.dhcp, on.router) = (dhcp.is_some(), advertised.is_some());
            let terms = Terms {
                domain: name.as_str().into(),
                dns: network.dns,
                mtu: network.mtu,
                gateway_mac: network.gateway_mac,
                dhcp,
                advertised,
            };
            new.terms.insert(id, terms);
        }
        for (name, port) in &self.desired.ports {
            let Some(live) = self.live.port(name) else { continue };
            if let Some((address, mac)) = self.desired.holder(name) {
                new.holders.insert(live.id, Holder { address, mac });
            }
            if port.addresses().iter().any(|net| net.addr().is_ipv6()) {
                new.settled.insert(live.id);
            }
        }
        // The host's own end has the gateway's address.
        let hosts = self.live.ports().filter(|(_, port)| port.kind == PortKind::Host);
        new.settled.extend(hosts.map(|(_, port)| port.id));
        new
    }

    /// What a network advertises. Where the host is the gateway, only if it has the address that routers are known by: one that is made of
    /// the MAC, as the kernel does unless told otherwise.
    fn advertised(&self, network: &Network) -> Option<Advertised> {
        let own = IpAddr::from(link_local(network.gateway_mac));
        let there = network.host_ifname.is_none() || self.live.host_addresses.contains(&own);
        network.advertised().filter(|_| there)
    }

    /// Does what the service of DHCP asks for.
    pub(super) fn serve_ask(&mut self, ask: Ask) {
        if let Some(name) = self.asker(&ask.from)
            && self.live.port(&name).is_some_and(|port| port.wishes.admits(ONE, worker::now()))
            && let Err(e) = self.grant(&name, ask.wish)
        {
            self.events.tell("address-refused", &name, e.to_string());
        }
        // Nobody waiting any more is no concern of ours.
        let _ = ask.done.send(());
    }

    /// The name of the port that asks, if it is there still.
    fn asker(&self, asker: &Asker) -> Option<String> {
        let name = self.live.port_name(asker.port)?;
        let port = self.live.port(name)?;
        Arc::ptr_eq(&port.counters, &asker.counters).then(|| name.to_owned())
    }

    fn grant(&mut self, name: &str, wish: Wish) -> Result<(), Error> {
        let lease = self.desired.leased.get(name).copied();
        match (wish, lease) {
            (Wish::Lease(mac, wanted), _) => self.lease(name, mac, wanted),
            (Wish::Release(_), Some(Lease { reserved: false, .. })) => self.set_lease(name, None),
            (Wish::Decline(address), Some(lease)) => {
                let message = format!("somebody else uses {address}, says the container of port {name}");
                self.events.tell("address-declined", &address.to_string(), message);
                if lease.reserved {
                    return Ok(());
                }
                self.live.note_declined(name, address);
                self.set_lease(name, None)
            }
            // What a port was made with stays its own.
            (Wish::Release(_) | Wish::Decline(_), _) => Ok(()),
        }
    }

    /// Gives a port an address, or its address to another MAC behind it.
    fn lease(&mut self, name: &str, mac: Mac, wanted: Option<Ipv4Addr>) -> Result<(), Error> {
        let Some(live) = self.live.port(name) else { return Ok(()) };
        let (id, now) = (live.id, worker::now());
        let Some(network) = self.live.network(&live.network) else { return Ok(()) };
        let lease = match (self.desired.holder(name), self.desired.leased.get(name)) {
            (Some((_, Some(holder))), _) if holder == mac => return Ok(()),
            (Some((address, Some(holder))), lease) => {
                let there = self.dataplane.fdb().lookup(network, holder, now) == Some(id);
                match lease {
                    Some(lease) if !there => Lease { mac: Some(mac), ..*lease },
                    _ => {
                        let why = format!(
                            "{mac} asks for an address, and {holder} has the port's ({address}); give each a port of its own"
                        );
                        return Err(EditError::Lease { port: name.to_owned(), why }.into());
                    }
                }
            }
            (Some(_), Some(lease)) => Lease { mac: Some(mac), ..*lease },
            (Some(_), None) => return Ok(()),
            (None, _) => {
                let elsewhere = |address: IpAddr| {
                    let neighbor = self.dataplane.neighbors().get(network, address, now);
                    neighbor.is_some_and(|neighbor| neighbor.port != id) || live.declined.contains(&address)
                };
                self.desired.choose_lease(name, mac, wanted, elsewhere)?
            }
        };
        self.set_lease(name, Some(lease))?;
        let address = lease.address.addr();
        self.events.tell("address-leased", &address.to_string(), format!("{address} is {name}'s"));
        self.dataplane.announce(id, mac, &[address]);
        Ok(())
    }

    /// Makes this the port's lease; when it returns, the workers know.
    fn set_lease(&mut self, name: &str, lease: Option<Lease>) -> Result<(), Error> {
        let old = self.desired.leased.get(name).copied();
        self.desired.set_lease(name, lease);
        let change = Change::Lease { port: name.to_owned(), lease };
        if let Err(e) = self.store.note(&change, &self.desired) {
            self.desired.set_lease(name, old);
            return Err(e.into());
        }
        self.publish();
        if let Some(gone) = old.filter(|old| lease.is_none_or(|new| new.address != old.address)) {
            self.end_talk(name, gone.address);
        }
        Ok(())
    }

    /// Ends what there is of an address that is a port's no more: whoever has it next must not get its packets.
    fn end_talk(&mut self, name: &str, address: IpNet) {
        let filter = ConnectionFilter {
            container: Some(name.to_owned()),
            address: Some(address.addr()),
            ..ConnectionFilter::default()
        };
        // It can only fail for a port that is not there, whose connections are not either.
        let _ = self.flush_connections(&filter);
        self.end_relayed(&[address]);
        if let Some(live) = self.live.port(name)
            && let Some(network) = self.live.network(&live.network)
        {
            self.dataplane.neighbors().remove(network, address.addr(), live.id);
        }
        let address = address.addr().to_string();
        self.events.tell("address-released", &address, format!("{address} was {name}'s"));
    }
}

/// What a network tells by DHCP.
fn dhcp(network: &Network) -> Option<Dhcp> {
    let v4 = network.gateways.iter().find_map(|gateway| match gateway {
        (IpNet::V4(subnet), IpAddr::V4(gateway)) => Some((*subnet, *gateway)),
        _ => None,
    });
    let (subnet, gateway): (Ipv4Net, Ipv4Addr) = v4.filter(|_| network.dhcp)?;
    Some(Dhcp { subnet, gateway, lease: Duration::from_secs(network.dhcp_lease.into()) })
}
