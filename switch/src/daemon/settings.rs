//! What the configuration means to the parts below, and what the system has to say to it.

use std::fs;
use std::io;
use std::ops::RangeInclusive;
use std::time::Duration;

use ctl::api;
use ctl::config;
use nix::sys::resource::{Resource, getrlimit, setrlimit};

use super::desired::Network;
use super::portguard::Mechanism;

/// Limits of connections, and the ports that they leave by.
pub(super) fn of_instance(settings: &config::Nat) -> nat::Config {
    let default = nat::Config::default();
    nat::Config {
        connections: settings.max_connections,
        owner: nat::OwnerLimits {
            connections: settings.per_container(),
            new_per_second: settings.new_per_second,
        },
        ports: settings.pool.ports(),
        ..default
    }
}

/// How a network is translated.
pub(super) fn of_network(network: &Network, timeouts: &config::Timeouts) -> nat::NetworkConfig {
    let s = Duration::from_secs;
    nat::NetworkConfig {
        mapping: match network.mapping {
            api::Mapping::AddressAndPortDependent => nat::Mapping::AddressAndPortDependent,
            api::Mapping::EndpointIndependent => nat::Mapping::EndpointIndependent,
        },
        filtering: match network.filtering {
            api::Filtering::AddressAndPortDependent => nat::Filtering::AddressAndPortDependent,
            api::Filtering::AddressDependent => nat::Filtering::AddressDependent,
            api::Filtering::EndpointIndependent => nat::Filtering::EndpointIndependent,
        },
        timeouts: nat::Timeouts {
            tcp_syn_sent: s(timeouts.tcp_syn_sent),
            tcp_syn_received: s(timeouts.tcp_syn_received),
            tcp_established: s(timeouts.tcp_established),
            tcp_closing: s(timeouts.tcp_closing),
            tcp_closed: s(timeouts.tcp_closed),
            tcp_reset: s(timeouts.tcp_reset),
            udp_unreplied: s(timeouts.udp_unreplied),
            udp_replied: s(timeouts.udp_replied),
            udp_dns: s(timeouts.udp_dns),
            icmp_query: s(timeouts.icmp_query),
            other: s(timeouts.other),
        },
        ..nat::NetworkConfig::default()
    }
}

/// How ports are to be guarded; `None` leaves it to the guards.
pub(super) const fn mechanism(wanted: config::Guards) -> Option<Mechanism> {
    match wanted {
        config::Guards::Auto => None,
        config::Guards::Bpf => Some(Mechanism::Lookup),
        config::Guards::Sockets => Some(Mechanism::Sockets),
    }
}

/// Whether the pool is apart from the ports that the kernel gives to the host's own connections; says what to do if not.
/// A system that does not tell its ranges is not asked again.
pub(super) fn check_pool(settings: &config::Nat) -> Result<(), String> {
    let read = |name: &str| fs::read_to_string(format!("/proc/sys/net/ipv4/{name}")).unwrap_or_default();
    let (ephemeral, reserved) = (read("ip_local_port_range"), read("ip_local_reserved_ports"));
    if settings.pool_overlaps_ephemeral || !overlaps(&settings.pool.ports(), &ephemeral, &reserved) {
        return Ok(());
    }
    let pool = settings.pool;
    let ephemeral: Vec<&str> = ephemeral.split_ascii_whitespace().collect();
    Err(format!(
        "the pool {pool} has ports that the host's own connections use (net.ipv4.ip_local_port_range {}): set 'pool' in \
         [nat] to others, or keep the host from these with 'sysctl net.ipv4.ip_local_reserved_ports={pool}', or say \
         'pool_overlaps_ephemeral = true'",
        ephemeral.join("-")
    ))
}

/// Whether the kernel may choose a port of the pool: `ephemeral` is "32768 60999", `reserved` "8080,61000-65535" or empty.
fn overlaps(pool: &RangeInclusive<u16>, ephemeral: &str, reserved: &str) -> bool {
    let port = |text: &str| text.trim().parse::<u16>().ok();
    let mut ends = ephemeral.split_ascii_whitespace().filter_map(port);
    let (Some(first), Some(last)) = (ends.next(), ends.next()) else { return false };
    let reserved: Vec<RangeInclusive<u16>> = reserved
        .split(',')
        .filter_map(|part| {
            let (first, last) = part.split_once('-').unwrap_or((part, part));
            Some(port(first)?..=port(last)?)
        })
        .collect();
    let mut both = first.max(*pool.start())..=last.min(*pool.end());
    both.any(|port| !reserved.iter().any(|range| range.contains(&port)))
}

/// Lets this process open as many descriptors as it may at most: the relay and the guards need one for each connection and
/// port, and the usual soft limit of 1,024 is for programs that use select(2).
pub(super) fn raise_descriptors() {
    let raised = getrlimit(Resource::RLIMIT_NOFILE)
        .and_then(|(_, hard)| setrlimit(Resource::RLIMIT_NOFILE, hard, hard));
    if let Err(e) = raised {
        tracing::warn!("cannot raise the limit of open files: {}", io::Error::from(e));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_defaults_are_those_of_nat() {
        assert_eq!(of_instance(&config::Nat::default()), nat::Config::default());
        let network = config::Network::default().spec("default");
        let mut desired = super::super::desired::Desired::default();
        desired.add_network("swd", &network, |_| false).unwrap();
        let network = of_network(desired.network("default").unwrap(), &config::Timeouts::default());
        assert_eq!(network, nat::NetworkConfig::default());
    }

    #[test]
    fn a_pool_apart_from_the_hosts_own_ports() {
        let pool = 61_000..=65_535;
        for (ephemeral, reserved, expected) in [
            ("32768\t60999\n", "\n", false),
            ("1024\t65535\n", "\n", true),
            ("1024 61000", "", true),
            ("1024 65535", "8080,61000-65535", false),
            ("1024 65535", "61001-65535", true),
            ("", "", false),
        ] {
            assert_eq!(overlaps(&pool, ephemeral, reserved), expected, "{ephemeral} {reserved}");
        }
    }
}
