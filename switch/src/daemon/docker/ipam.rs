//! Addresses: what Docker's IPAM protocol asks for. Leases are the addresses of ports, whoever made them, so a container of
//! Docker's and one that was attached never get the same.

use std::net::IpAddr;
use std::time::Instant;

use ipnet::IpNet;
use serde_json::Map;

use super::driver::Refusal;
use super::options::first_host;
use super::pools::PoolId;
use super::wire::{AddressGiven, OfAddress, PoolGiven, ReleasePool, RequestPool};
use crate::daemon::control::{Daemon, Error};
use crate::daemon::ipam::{self, Use};

impl Daemon {
    /// `IpamDriver.RequestPool`.
    ///
    /// # Errors
    /// When the pool cannot be one.
    pub(super) async fn docker_request_pool(&mut self, request: &RequestPool) -> Result<PoolGiven, Refusal> {
        let now = Instant::now();
        let subnet = match request.pool.as_str() {
            "" if !request.sub_pool.is_empty() => {
                return Err(Refusal::Wrong("a range needs a subnet: give both".into()));
            }
            "" => self.free_pool(request.v6, now).await?.to_string(),
            given => given.to_owned(),
        };
        let pool = PoolId::new(&subnet, &request.sub_pool).map_err(Refusal::Wrong)?;
        self.promised.hold_pool(pool.subnet, now);
        Ok(PoolGiven { pool_id: pool.to_string(), pool: pool.subnet.to_string(), data: Map::new() })
    }

    /// A subnet that neither a network nor the host nor a request under way has.
    async fn free_pool(&self, v6: bool, now: Instant) -> Result<IpNet, Refusal> {
        let routes = self.host.routes().await.map_err(Error::from)?;
        let mut taken: Vec<IpNet> =
            routes.iter().map(|r| r.destination).filter(|d| d.prefix_len() > 1).collect();
        taken.extend(self.promised.pools(now));
        let like = if v6 { "fd00::/64" } else { "172.16.0.0/16" };
        let like = like.parse().map_err(|_| Refusal::Wrong(format!("{like} is no subnet")))?;
        Ok(self.desired.free_subnet(like, &taken))
    }

    /// `IpamDriver.ReleasePool`.
    ///
    /// # Errors
    /// When the id is none.
    pub(super) fn docker_release_pool(&mut self, request: &ReleasePool) -> Result<(), Refusal> {
        let pool: PoolId = request.pool_id.parse().map_err(Refusal::Wrong)?;
        self.promised.release_pool(pool.subnet);
        Ok(())
    }

    /// `IpamDriver.RequestAddress`.
    ///
    /// # Errors
    /// When the address cannot be had, or there is none left.
    pub(super) fn docker_request_address(&mut self, request: &OfAddress) -> Result<AddressGiven, Refusal> {
        let now = Instant::now();
        let pool: PoolId = request.pool_id.parse().map_err(Refusal::Wrong)?;
        let given = |address: IpAddr| {
            let address = format!("{address}/{}", pool.subnet.prefix_len());
            Ok(AddressGiven { address, data: Map::new() })
        };
        let wanted = match request.address.as_str() {
            "" => None,
            text => Some(text.parse().map_err(|_| Refusal::Wrong(format!("'{text}' is no address")))?),
        };
        if let Some(address) = wanted
            && !ipam::is_host(pool.subnet, address)
        {
            return Err(Refusal::Wrong(format!("{address} is no container's address in {}", pool.subnet)));
        }
        let networks = self.desired.networks.iter();
        let mut subnets = networks
            .flat_map(|(name, n)| n.gateways.iter().enumerate().map(move |(at, g)| (name, n, at, *g)));
        let Some((name, network, at, (_, gateway))) =
            subnets.find(|(_, _, _, (subnet, _))| *subnet == pool.subnet)
        else {
            // The network is about to be made, and this is its gateway or an address that is to be left alone.
            return given(wanted.unwrap_or_else(|| first_host(pool.subnet)));
        };
        if request.is_gateway() {
            return given(wanted.unwrap_or(gateway));
        }
        let leased = self.desired.leases(name);
        let reserved = |address: &IpAddr| {
            self.desired.docker.values().any(|d| d.network == *name && d.reserved.contains(address))
        };
        let held = |address| leased.contains(&address) || self.promised.holds(address, now);
        let address = match wanted {
            Some(address) if address == gateway || held(address) => {
                let whose = if address == gateway { "the gateway's" } else { "another container's" };
                return Err(Refusal::Wrong(format!(
                    "address {address} is {whose}; 'swctl port ls' lists them"
                )));
            }
            Some(address) => address,
            None => {
                let last = self.promised.last(pool.subnet);
                let last = last.or_else(|| network.last_lease.get(at).copied().flatten());
                let used = |address| match held(address) || reserved(&address) {
                    true => Use::Leased,
                    false if self.is_seen(name, address) => Use::Seen,
                    false => Use::Free,
                };
                let found = ipam::next(pool.range, gateway, last, used);
                found.map_err(|e| Refusal::Wrong(e.to_string()))?
            }
        };
        self.promised.hold(address, wanted.is_none(), now);
        given(address)
    }

    /// `IpamDriver.ReleaseAddress`. An address that nobody has is free already.
    ///
    /// # Errors
    /// None.
    pub(super) fn docker_release_address(&mut self, request: &OfAddress) -> Result<(), Refusal> {
        if let Ok(address) = request.address.parse() {
            self.promised.release(address);
        }
        Ok(())
    }
}
