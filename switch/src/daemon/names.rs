//! Who is called what, as the workers and the gateway's services are to know it.

use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;

use ipnet::IpNet;

use super::control::Daemon;
use crate::names::Names;
use crate::services::{Count, Services};
use crate::snapshot::NetworkId;

impl Daemon {
    /// The names of every network that has names; their gateways serve them from then on.
    pub(super) fn names(
        &self,
        services: &mut HashMap<NetworkId, Services, foldhash::fast::RandomState>,
    ) -> Names {
        let mut names = Names::default();
        for (name, network) in self.desired.networks.iter().filter(|(_, network)| network.dns) {
            let Some(id) = self.live.network(name) else { continue };
            services.entry(id).or_default().dns = true;
            names.add_network(id, name, network.gateways.iter().map(|(subnet, _)| *subnet));
        }
        for (name, port) in &self.desired.ports {
            // One whose interface is not there yet has no number.
            let (Some(_), Some(network)) = (self.live.port(name), self.live.network(&port.network)) else {
                continue;
            };
            let addresses: Vec<IpAddr> = self.desired.addresses(name).iter().map(IpNet::addr).collect();
            if !addresses.is_empty() {
                let aliases = self.desired.aliases.get(name).map(Vec::as_slice).unwrap_or_default();
                names.add_port(network, name, aliases.iter().map(String::as_str), &addresses);
            }
        }
        names
    }

    /// Questions so far, by what became of them.
    pub(super) fn questions(&self) -> BTreeMap<String, u64> {
        let counts = self.dataplane.served();
        Count::ALL.into_iter().map(|count| (count.name().to_owned(), counts.get(count))).collect()
    }
}
