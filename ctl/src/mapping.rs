//! Port mappings, as container engines know them: one for each port, many in a row.

use std::net::IpAddr;

use thiserror::Error;

use crate::api::{PublishSpec, Transport};

/// A port of the host that is to lead to one of a container.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct PortMapping {
    /// The protocol.
    pub protocol: Transport,
    /// The host's address; every address of the container's families when left out.
    pub host_ip: Option<IpAddr>,
    /// The host's port.
    pub host_port: u16,
    /// The container's port.
    pub port: u16,
}

/// A host's address for which the container has none of the same family.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
#[error("cannot publish at {0}: the container has no address of that family")]
pub struct NoFamily(pub IpAddr);

impl PortMapping {
    /// What to publish for a container with these addresses: one for each family that is meant. `0.0.0.0` and `::` mean a
    /// family if the container has it.
    ///
    /// # Errors
    /// When the container has no address for this one.
    pub fn specs(&self, addresses: &[IpAddr], with: &str) -> Result<Vec<PublishSpec>, NoFamily> {
        let meant = addresses.iter().filter(|a| self.host_ip.is_none_or(|h| h.is_ipv4() == a.is_ipv4()));
        let specs: Vec<PublishSpec> = meant
            .map(|target| PublishSpec {
                host_ip: self.host_ip,
                host_port: self.host_port,
                host_port_end: None,
                protocol: self.protocol,
                target_ip: *target,
                target_port: self.port,
                from: Vec::new(),
                port: Some(with.to_owned()),
            })
            .collect();
        match self.host_ip {
            Some(host) if specs.is_empty() && !host.is_unspecified() => Err(NoFamily(host)),
            _ => Ok(specs),
        }
    }
}

/// What to publish for a container with these addresses, so that it goes `with` its port. Mappings in a row become a range.
///
/// # Errors
/// When a host's address has none of the container's to lead to.
pub fn publishes(
    mappings: &[PortMapping],
    addresses: &[IpAddr],
    with: &str,
) -> Result<Vec<PublishSpec>, NoFamily> {
    let mut sorted = mappings.to_vec();
    sorted.sort_unstable();
    sorted.dedup();
    let mut all: Vec<PublishSpec> = Vec::new();
    for address in addresses {
        for mapping in &sorted {
            // Once for each address, so that those of a family follow each other.
            mapping.specs(addresses, with)?;
            for spec in mapping.specs(&[*address], with).unwrap_or_default() {
                match all.last_mut() {
                    Some(last) if follows(last, &spec) => last.host_port_end = Some(spec.host_port),
                    _ => all.push(spec),
                }
            }
        }
    }
    Ok(all)
}

/// Whether the ports of `next` are those after the ones of `last`, here and in the container.
fn follows(last: &PublishSpec, next: &PublishSpec) -> bool {
    let end = last.host_port_end.unwrap_or(last.host_port);
    let target = last.target_port.checked_add(end.saturating_sub(last.host_port));
    (last.host_ip, last.protocol, last.target_ip) == (next.host_ip, next.protocol, next.target_ip)
        && end.checked_add(1) == Some(next.host_port)
        && target.and_then(|t| t.checked_add(1)) == Some(next.target_port)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn map(host_ip: &str, host_port: u16, port: u16) -> PortMapping {
        let host_ip = (!host_ip.is_empty()).then(|| host_ip.parse().unwrap());
        PortMapping { protocol: Transport::Tcp, host_ip, host_port, port }
    }

    /// `HOST:FIRST-LAST>TARGET:PORT` of each.
    fn read(mappings: &[PortMapping], addresses: &[&str]) -> Result<Vec<String>, NoFamily> {
        let addresses: Vec<IpAddr> = addresses.iter().map(|a| a.parse().unwrap()).collect();
        let show = |s: &PublishSpec| {
            let host = s.host_ip.map(|h| h.to_string()).unwrap_or_default();
            let last = s.host_port_end.unwrap_or(s.host_port);
            assert_eq!(s.port.as_deref(), Some("p"));
            format!("{host}:{}-{last}>{}:{}", s.host_port, s.target_ip, s.target_port)
        };
        Ok(publishes(mappings, &addresses, "p")?.iter().map(show).collect())
    }

    #[test]
    fn ports_in_a_row_are_one_range() {
        let mut all: Vec<_> = (0..1000).map(|n| map("", 5000 + n, 7000 + n)).collect();
        all.reverse();
        all.push(all[0]);
        let both = ["10.0.0.2", "fd00::2"];
        assert_eq!(read(&all, &both).unwrap(), [":5000-5999>10.0.0.2:7000", ":5000-5999>fd00::2:7000"]);
        // Not in a row here, or not there.
        let apart = [map("", 80, 80), map("", 81, 90), map("", 83, 92), map("127.0.0.1", 84, 93)];
        let expected =
            [":80-80>10.0.0.2:80", ":81-81>10.0.0.2:90", ":83-83>10.0.0.2:92", "127.0.0.1:84-84>10.0.0.2:93"];
        assert_eq!(read(&apart, &both[..1]).unwrap(), expected);
        let udp = PortMapping { protocol: Transport::Udp, ..map("", 81, 81) };
        assert_eq!(read(&[map("", 80, 80), udp], &both[..1]).unwrap().len(), 2);
        assert_eq!(read(&[map("", 65535, 65535), map("", 1, 1)], &both[..1]).unwrap().len(), 2);
    }

    #[test]
    fn each_family_that_is_meant() {
        let both = ["10.0.0.2", "fd00::2"];
        assert_eq!(read(&[map("0.0.0.0", 80, 80)], &both).unwrap(), ["0.0.0.0:80-80>10.0.0.2:80"]);
        assert_eq!(read(&[map("::", 80, 80)], &both[..1]).unwrap(), Vec::<String>::new());
        assert_eq!(read(&[map("::1", 80, 80)], &both[..1]), Err(NoFamily("::1".parse().unwrap())));
    }
}
