//! Limits of ports: from what is wanted to the buckets that the workers use.

use std::sync::Arc;

use ctl::api::{self, PortChange, PortGuard, PortLimits, Unit};

use super::control::{Daemon, Error};
use super::live::LivePort;
use crate::limit::{Bucket, Limits, Rate};
use crate::router::owner;
use crate::worker;

impl Daemon {
    /// `PATCH /v1/ports/{name}`: changes limits, guard and aliases of a port, at once and for good.
    ///
    /// # Errors
    /// When there is no such port, an alias is wrong, or the guard would let nothing pass.
    pub async fn change_port(&mut self, name: &str, change: &PortChange) -> Result<api::Port, Error> {
        self.edit(|_, new| new.change_port(name, change)).await?;
        let port = self.port(name)?;
        self.events.tell("limits-changed", name, format!("settings of port {name} were changed"));
        Ok(port)
    }

    /// Brings the buckets of all ports, and what they may have of connections, to what is wanted. A bucket that stays the
    /// same stays as full as it is.
    pub(super) fn refresh_limits(&mut self) {
        let mut owners = Vec::new();
        for (name, port) in self.live.ports_mut() {
            let wanted = self.desired.settings.get(name).map(|s| s.limits.clone()).unwrap_or_default();
            port.limits = limits(&wanted, port.limits.as_deref());
            port.sources = match (self.desired.sources(name), &port.sources) {
                (Some(new), Some(old)) if new == **old => port.sources.clone(),
                (new, _) => new.map(Arc::new),
            };
            if port.max_connections != wanted.max_connections {
                port.max_connections = wanted.max_connections;
                owners.push((owner(port.id), wanted.max_connections));
            }
        }
        if owners.is_empty() {
            return;
        }
        let mut forwarding = self.dataplane.forwarding();
        for (owner, most) in owners {
            let new_per_second = self.nat.new_per_second;
            let limits = most.map(|connections| nat::OwnerLimits { connections, new_per_second });
            forwarding.nat.set_owner_limits(worker::now(), owner, limits);
        }
    }

    /// The limits of a port as they are, with the bursts that were chosen for it.
    pub(super) fn limits_view(&self, name: &str, live: &LivePort) -> PortLimits {
        let wanted = self.desired.settings.get(name);
        let limits = live.limits.as_deref();
        let view = |of: fn(&Limits) -> &Option<Arc<Bucket>>| {
            let bucket = of(limits?).as_ref()?;
            let (per_second, unit) = match bucket.rate() {
                Rate::Bits(rate) => (rate, Unit::Bits),
                Rate::Frames(rate) => (rate, Unit::Packets),
            };
            Some(api::Rate { per_second, unit, burst: Some(bucket.burst()) })
        };
        PortLimits {
            rate_in: view(|l| &l.rate_in),
            rate_out: view(|l| &l.rate_out),
            storm: view(|l| &l.storm),
            max_connections: wanted.and_then(|s| s.limits.max_connections),
        }
    }

    /// What a port may send from.
    pub(super) fn guard_view(&self, name: &str) -> PortGuard {
        self.desired.sources(name).map_or_else(PortGuard::default, |sources| PortGuard {
            on: true,
            macs: sources.macs().iter().map(ToString::to_string).collect(),
            addresses: sources.nets().to_vec(),
        })
    }
}

/// The buckets of a port; none where nothing is limited.
fn limits(wanted: &PortLimits, old: Option<&Limits>) -> Option<Arc<Limits>> {
    let keep = |of: fn(&Limits) -> &Option<Arc<Bucket>>| old.and_then(|l| of(l).as_ref());
    let new = Limits {
        rate_in: bucket(wanted.rate_in, keep(|l| &l.rate_in)),
        rate_out: bucket(wanted.rate_out, keep(|l| &l.rate_out)),
        storm: bucket(wanted.storm, keep(|l| &l.storm)),
    };
    (new.sees_all() || new.storm.is_some()).then(|| Arc::new(new))
}

fn bucket(wanted: Option<api::Rate>, old: Option<&Arc<Bucket>>) -> Option<Arc<Bucket>> {
    let wanted = wanted?;
    let rate = match wanted.unit {
        Unit::Bits => Rate::Bits(wanted.per_second),
        Unit::Packets => Rate::Frames(wanted.per_second),
    };
    let new = Bucket::new(rate, wanted.burst);
    match old {
        Some(old) if (old.rate(), old.burst()) == (rate, new.burst()) => Some(Arc::clone(old)),
        _ => Some(Arc::new(new)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::limit::Size;

    #[test]
    fn a_bucket_that_stays_is_not_filled_by_a_change_of_another() {
        let rate = |per_second| Some(api::Rate { per_second, unit: Unit::Packets, burst: Some(1) });
        let wanted = PortLimits { rate_in: rate(10), ..PortLimits::default() };
        let first = limits(&wanted, None).unwrap();
        let now = worker::now();
        let one = Size { bytes: 60, frames: 1 };
        assert!(first.rate_in.as_ref().unwrap().admits(one, now));
        let more = PortLimits { storm: rate(5), ..wanted.clone() };
        let second = limits(&more, Some(&first)).unwrap();
        assert!(!second.rate_in.as_ref().unwrap().admits(one, now));
        let third = limits(&PortLimits { rate_in: rate(11), ..more }, Some(&second)).unwrap();
        assert!(third.rate_in.as_ref().unwrap().admits(one, now));
        assert!(limits(&PortLimits::default(), Some(&third)).is_none());
    }
}
