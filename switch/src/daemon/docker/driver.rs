//! Networks and endpoints: what Docker's network driver protocol asks for, done by what the API uses too.

use std::net::IpAddr;
use std::ops::RangeInclusive;

use ctl::api::{PortKind, PublishSpec, Transport};
use ipnet::IpNet;
use jiff::Timestamp;
use serde_json::{Map, Value, json};

use super::mappings;
use super::options::{self, Wanted};
use super::wire::{
    Binding, CreateEndpoint, CreateNetwork, EndpointCreated, EndpointInfo, Interface, InterfaceName, Joined,
    OfEndpoint, OfNetwork, Program,
};
use crate::daemon::apply::{ApplyError, Mark, link_error};
use crate::daemon::control::{Daemon, Error};
use crate::daemon::desired::docker::{Endpoint, EndpointSpec, check_id};
use crate::daemon::desired::{Class, Desired, EditError, Port};
use crate::daemon::links::VethPair;
use crate::daemon::live::LiveLink;

/// What a request of Docker's failed of.
#[derive(Debug, thiserror::Error)]
pub(super) enum Refusal {
    /// It cannot be.
    #[error("{0}")]
    Wrong(String),
    /// The control plane says no.
    #[error(transparent)]
    Control(#[from] Error),
}

impl From<EditError> for Refusal {
    fn from(e: EditError) -> Self {
        Self::Control(e.into())
    }
}

impl Daemon {
    /// `NetworkDriver.CreateNetwork`.
    ///
    /// # Errors
    /// When the network cannot be made, or is not the one that Docker was told to use.
    pub(super) async fn docker_add_network(&mut self, request: &CreateNetwork) -> Result<(), Refusal> {
        let id = &request.network_id;
        check_id(id)?;
        let Wanted { spec, known } = options::wanted(request).map_err(Refusal::Wrong)?;
        if self.desired.docker.get(id) == Some(&known) {
            // The answer was lost, and Docker asks again.
            return Ok(());
        }
        if known.made {
            let add = |new: &mut Desired| drop(new.docker.insert(id.clone(), known));
            return Ok(self.add_network_and(&spec, "", add).await?);
        }
        let network = self.desired.network(&spec.name)?;
        let mut asked = spec.subnets.iter().copied().zip(spec.gateways.iter().copied());
        if !asked.all(|asked| network.gateways.contains(&asked)) {
            let has = network.gateways.iter().map(|(s, g)| format!("--subnet {s} --gateway {g}"));
            return Err(Refusal::Wrong(format!(
                "network {} has other addresses: create it with {}",
                spec.name,
                has.collect::<Vec<_>>().join(" ")
            )));
        }
        let add = self.edit(|_, new| {
            new.docker.insert(id.clone(), known);
            Ok(())
        });
        Ok(add.await?)
    }

    /// `NetworkDriver.DeleteNetwork`.
    ///
    /// # Errors
    /// When it has ports.
    pub(super) async fn docker_remove_network(&mut self, request: &OfNetwork) -> Result<(), Refusal> {
        if !self.desired.docker.contains_key(&request.network_id) {
            return Ok(());
        }
        Ok(self.edit(|_, new| new.remove_docker_network(&request.network_id)).await?)
    }

    /// `NetworkDriver.CreateEndpoint`: makes the pair.
    ///
    /// # Errors
    /// When an address or the MAC cannot be had, or the kernel refuses.
    pub(super) async fn docker_add_endpoint(
        &mut self,
        request: &CreateEndpoint,
    ) -> Result<EndpointCreated, Refusal> {
        let asked = &request.interface;
        let given = [&asked.address, &asked.address_ipv6].into_iter().filter(|text| !text.is_empty());
        let addresses =
            given.map(|text| Ok(options::address_of(text)?.addr())).collect::<Result<Vec<_>, _>>();
        let addresses = addresses.map_err(Refusal::Wrong)?;
        let chosen: Vec<IpAddr> =
            addresses.iter().copied().filter(|address| self.promised.release(*address)).collect();
        self.forget_dead("", &addresses).await;
        let spec = EndpointSpec {
            network: &request.of.network_id,
            id: &request.of.endpoint_id,
            addresses: &addresses,
            given: &chosen,
            mac: Some(asked.mac_address.as_str()).filter(|mac| !mac.is_empty()),
        };
        let name = self
            .edit(|daemon, new| {
                let seen = |network: &str, address: IpAddr| daemon.is_seen(network, address);
                new.add_endpoint(spec, Timestamp::now(), seen)
            })
            .await?;
        let port = self.desired.port(&name)?;
        let mut open = Interface::default();
        if asked.mac_address.is_empty() {
            open.mac_address = port.container_mac().unwrap_or_default().to_string();
        }
        for address in port.addresses().iter().filter(|a| !addresses.contains(&a.addr())) {
            let field = if address.addr().is_ipv4() { &mut open.address } else { &mut open.address_ipv6 };
            *field = address.to_string();
        }
        Ok(EndpointCreated { interface: open })
    }

    /// `NetworkDriver.DeleteEndpoint`. That it is gone already is fine: it goes when its container's namespace ends.
    ///
    /// # Errors
    /// When that cannot be kept.
    pub(super) async fn docker_remove_endpoint(&mut self, request: &OfEndpoint) -> Result<(), Refusal> {
        match self.desired.endpoint(&request.endpoint_id)?.map(|(name, ..)| name) {
            Some(name) => Ok(self.detach(&name).await?),
            None => Ok(()),
        }
    }

    /// `NetworkDriver.Join`: what Docker is to take, and the way out.
    ///
    /// # Errors
    /// When network or endpoint are not known.
    pub(super) fn docker_join(&self, request: &OfEndpoint) -> Result<Joined, Refusal> {
        let (_, port, endpoint) = self.docker_endpoint(request)?;
        let (known, network) = self.desired.docker_network(&request.network_id)?;
        let gateway = |v4: bool| {
            let has = |subnet: &IpNet| port.addresses().iter().any(|a| subnet.contains(&a.addr()));
            let found =
                network.gateways.iter().find(|(s, g)| g.is_ipv4() == v4 && has(s) && !network.internal);
            found.map(|(_, gateway)| gateway.to_string()).unwrap_or_default()
        };
        Ok(Joined {
            interface_name: InterfaceName {
                src_name: endpoint.ifname.clone(),
                dst_prefix: known.prefix.clone(),
            },
            gateway: gateway(true),
            gateway_ipv6: gateway(false),
            disable_gateway_service: network.internal,
        })
    }

    /// `NetworkDriver.EndpointOperInfo`.
    ///
    /// # Errors
    /// When the endpoint is not known.
    pub(super) fn docker_endpoint_info(&self, request: &OfEndpoint) -> Result<EndpointInfo, Refusal> {
        let (name, port, _) = self.docker_endpoint(request)?;
        let mut value = Map::new();
        let mac = port.container_mac().unwrap_or_default().to_string();
        value.insert("com.docker.network.endpoint.macaddress".into(), Value::String(mac));
        let published = self.desired.publishes.iter().map(|(_, p)| p);
        let published = published.filter(|p| p.port.as_deref() == Some(&name));
        let bindings: Vec<Binding> = published
            .flat_map(|p| {
                p.ports().map(|host_port| Binding {
                    proto: if p.transport == Transport::Tcp { 6 } else { 17 },
                    port: p.target_of(host_port).map_or(0, |t| t.port()),
                    host_ip: p.host.map(|h| h.to_string()).unwrap_or_default(),
                    host_port,
                    host_port_end: host_port,
                })
            })
            .collect();
        value.insert("com.docker.network.portmap".into(), json!(bindings));
        Ok(EndpointInfo { value })
    }

    /// `NetworkDriver.ProgramExternalConnectivity`: publishes the ports, all of them or none.
    ///
    /// # Errors
    /// When one of them cannot be had.
    pub(super) fn docker_publish(&mut self, request: &Program) -> Result<(), Refusal> {
        let (name, port, _) = self.docker_endpoint(&request.of)?;
        let (known, _) = self.desired.docker_network(&request.of.network_id)?;
        let wishes = mappings::wishes(&request.options.mappings, port.addresses(), known.host_ip, &name);
        let wishes = wishes.map_err(Refusal::Wrong)?;
        self.unpublish_with(|port| port == name);
        let fixed = wishes.fixed.iter().try_for_each(|spec| self.publish_ports(spec).map(drop));
        let done = fixed.map_err(Refusal::from).and_then(|()| {
            wishes.any.iter().try_for_each(|(among, specs)| self.publish_at_any(among, specs))
        });
        if done.is_err() {
            self.unpublish_with(|port| port == name);
        }
        done
    }

    /// `NetworkDriver.RevokeExternalConnectivity`, and part of `NetworkDriver.Leave`.
    ///
    /// # Errors
    /// When the id is none.
    pub(super) fn docker_unpublish(&mut self, request: &OfEndpoint) -> Result<(), Refusal> {
        if let Some((name, ..)) = self.desired.endpoint(&request.endpoint_id)? {
            self.unpublish_with(|port| port == name);
        }
        Ok(())
    }

    /// Publishes all of `specs` at the first port at which each can be had.
    fn publish_at_any(&mut self, among: &RangeInclusive<u16>, specs: &[PublishSpec]) -> Result<(), Refusal> {
        for host_port in among.clone() {
            let mut names = Vec::new();
            let tried = specs.iter().try_for_each(|spec| {
                let spec = PublishSpec { host_port, ..spec.clone() };
                names.push(self.publish_ports(&spec)?.name);
                Ok::<_, Error>(())
            });
            match tried {
                Ok(()) => return Ok(()),
                Err(e) if e.class() == Class::Conflict => {
                    for name in names {
                        self.unpublish_ports(&name)?;
                    }
                }
                Err(e) => return Err(e.into()),
            }
        }
        let (first, last) = (among.start(), among.end());
        Err(Refusal::Wrong(format!("cannot publish: every port from {first} to {last} is taken")))
    }

    fn docker_endpoint(&self, of: &OfEndpoint) -> Result<(String, &Port, &Endpoint), Refusal> {
        let found = self.desired.endpoint(&of.endpoint_id)?;
        let missing = || EditError::NotFound {
            what: "endpoint",
            name: of.endpoint_id.chars().take(64).collect(),
            hint: "its port was removed; start the container again".into(),
        };
        Ok(found.ok_or_else(missing)?)
    }

    /// Whether an address is in use on the wire.
    pub(super) fn is_seen(&self, network: &str, address: IpAddr) -> bool {
        self.live.network(network).is_some_and(|n| self.dataplane.address_in_use(n, address))
    }

    /// The pair of an endpoint: the other end waits on the host for Docker.
    pub(in crate::daemon) async fn set_up_endpoint(
        &mut self,
        name: &str,
        port: &Port,
        endpoint: &Endpoint,
    ) -> Result<(), ApplyError> {
        let mtu = self.desired.networks.get(&port.network).map_or(1500, |n| n.mtu);
        let pair = VethPair {
            name: &port.ifname,
            mtu,
            peer: &endpoint.ifname,
            peer_mac: endpoint.mac,
            peer_netns: &self.host_netns,
        };
        let link = self.switch.add_veth(&pair).await.map_err(link_error(name))?;
        let finish = async {
            self.switch.enlist(&link, &Mark::Attached.alias(&self.name, name)).await?;
            self.switch.link_by_index(link.index).await
        };
        let link = match finish.await {
            Ok(Some(link)) => link,
            Ok(None) => return Err(ApplyError::NoInterface { ifname: port.ifname.clone() }),
            Err(e) => {
                let _ = self.switch.delete(link.index).await;
                return Err(link_error(name)(e));
            }
        };
        self.live.add_port(name, &port.network, PortKind::Packet, Some(LiveLink::from(&link)));
        self.tell_attached(name, port);
        Ok(())
    }
}
