//! Which ports to publish for an endpoint. Pure.

use std::net::IpAddr;
use std::ops::RangeInclusive;

use ctl::api::{PublishSpec, Transport};
use ctl::mapping::{PortMapping, publishes};
use ipnet::IpNet;

use super::wire::Binding;

/// Ports that are given where any will do: below those that the kernel gives its own clients (32768) and below the pool.
const ANY: RangeInclusive<u16> = 30000..=32767;

/// What to publish.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Wishes {
    /// At these ports.
    pub(super) fixed: Vec<PublishSpec>,
    /// All of each at one port among these.
    pub(super) any: Vec<(RangeInclusive<u16>, Vec<PublishSpec>)>,
}

/// What to publish for the endpoint behind `port`. Docker tells of each port of a range alone.
///
/// # Errors
/// When one of them cannot be published.
pub(super) fn wishes(
    bindings: &[Binding],
    addresses: &[IpNet],
    host_ip: Option<IpAddr>,
    port: &str,
) -> Result<Wishes, String> {
    let addresses: Vec<IpAddr> = addresses.iter().map(IpNet::addr).collect();
    let (mut fixed, mut any) = (Vec::new(), Vec::new());
    for binding in bindings {
        let mapping = read(binding, host_ip)?;
        let among = match (binding.host_port, binding.host_port_end) {
            (0, _) => ANY,
            (first, last) if last > first => first..=last,
            _ => {
                fixed.push(mapping);
                continue;
            }
        };
        any.push((among, mapping.specs(&addresses, port).map_err(|e| e.to_string())?));
    }
    Ok(Wishes { fixed: publishes(&fixed, &addresses, port).map_err(|e| e.to_string())?, any })
}

fn read(binding: &Binding, host_ip: Option<IpAddr>) -> Result<PortMapping, String> {
    let protocol = match binding.proto {
        6 => Transport::Tcp,
        17 => Transport::Udp,
        other => {
            let port = binding.port;
            return Err(format!(
                "cannot publish port {port} of IP protocol {other}: TCP and UDP can be published"
            ));
        }
    };
    let host_ip = match binding.host_ip.as_str() {
        "" => host_ip,
        text => Some(text.parse().map_err(|_| format!("cannot publish at '{text}': it is no address"))?),
    };
    Ok(PortMapping { protocol, host_ip, host_port: binding.host_port, port: binding.port })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bind(host_ip: &str, host: u16, end: u16, port: u16) -> Binding {
        Binding { proto: 6, port, host_ip: host_ip.into(), host_port: host, host_port_end: end }
    }

    fn read(bindings: &[Binding], host_ip: Option<&str>) -> Result<Wishes, String> {
        let addresses = ["10.0.0.2/24".parse().unwrap(), "fd00::2/64".parse().unwrap()];
        wishes(bindings, &addresses, host_ip.map(|h| h.parse().unwrap()), "ep-1")
    }

    #[test]
    fn ranges_come_port_by_port() {
        let all: Vec<_> = (0..1000).map(|n| bind("", 5000 + n, 5000 + n, 7000 + n)).collect();
        let Wishes { fixed, any } = read(&all, None).unwrap();
        assert_eq!((fixed.len(), any.len()), (2, 0), "one for each family");
        assert_eq!(
            (fixed[0].host_port, fixed[0].host_port_end, fixed[0].target_port),
            (5000, Some(5999), 7000)
        );
        assert!(fixed.iter().all(|s| s.port.as_deref() == Some("ep-1") && s.host_ip.is_none()));
    }

    #[test]
    fn one_port_of_several() {
        let any = |b: Binding| read(&[b], None).unwrap().any;
        assert_eq!(any(bind("", 0, 0, 80))[0].0, ANY);
        assert_eq!(any(bind("", 8000, 8010, 80))[0].0, 8000..=8010);
        assert_eq!(any(bind("", 8000, 8010, 80))[0].1.len(), 2, "the same port for both families");
        assert!(any(bind("", 8000, 8000, 80)).is_empty() && any(bind("", 8000, 0, 80)).is_empty());
    }

    #[test]
    fn where_the_network_says_and_what_cannot_be() {
        let host = Some("192.0.2.1");
        let led = read(&[bind("", 80, 80, 80), bind("127.0.0.1", 81, 81, 81)], host).unwrap().fixed;
        let hosts: Vec<_> = led.iter().filter_map(|s| Some(s.host_ip?.to_string())).collect();
        assert_eq!(hosts, ["127.0.0.1", "192.0.2.1"]);
        let sctp = Binding { proto: 132, ..bind("", 80, 80, 80) };
        assert!(read(&[sctp], None).unwrap_err().contains("IP protocol 132"));
        assert!(read(&[bind("here", 80, 80, 80)], None).unwrap_err().contains("it is no address"));
    }
}
