//! Who may open connections to whom.

use std::fmt;
use std::ops::RangeInclusive;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};
use utoipa::ToSchema;

/// What a rule does.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, PartialEq, Serialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum Action {
    /// Lets connections be opened.
    #[default]
    Allow,
    /// Refuses them, and ends those that there are.
    Deny,
}

impl Action {
    /// `allow` or `deny`.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Allow => "allow",
            Self::Deny => "deny",
        }
    }
}

/// What a side of a rule is.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum SideKind {
    /// All ports of a network but the host's.
    Network,
    /// One port.
    Port,
    /// The host itself.
    Host,
    /// What is reached by an uplink.
    Outside,
}

/// A rule: who may, or may not, open connections to whom. The most specific of those that match decides.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Rule {
    /// What it does; `allow` when left out.
    #[serde(default)]
    pub action: Action,
    /// Who opens: the name of a network or a port, `host` or `outside`.
    pub from: String,
    /// What that is; found out when left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub from_kind: Option<SideKind>,
    /// Who is called.
    pub to: String,
    /// What that is; found out when left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub to_kind: Option<SideKind>,
    /// What for: `tcp`, `udp`, `icmp`, `tcp/80`, `udp/8000-8099`; null for everything.
    #[serde(default)]
    #[schema(value_type = Option<String>)]
    pub service: Option<Service>,
}

impl Rule {
    /// Whether it is about the same as another.
    pub fn is_about(&self, other: &Self) -> bool {
        let key = |rule: &Self| (rule.from.clone(), rule.from_kind, rule.to.clone(), rule.to_kind);
        key(self) == key(other) && self.service == other.service
    }
}

impl fmt::Display for Rule {
    /// As it is given to swctl.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {} {}", self.action.name(), self.from, self.to)?;
        self.service.as_ref().map_or(Ok(()), |service| write!(f, " {service}"))
    }
}

/// A protocol of services.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum ServiceProtocol {
    /// ICMP and ICMPv6.
    Icmp,
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
}

impl ServiceProtocol {
    const fn name(self) -> &'static str {
        match self {
            Self::Icmp => "icmp",
            Self::Tcp => "tcp",
            Self::Udp => "udp",
        }
    }
}

/// What a rule is for: a protocol, or some of its ports.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Service {
    /// The protocol.
    pub protocol: ServiceProtocol,
    /// Ports; none for all of them. ICMP has none.
    pub ports: Option<RangeInclusive<u16>>,
}

impl FromStr for Service {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (name, ports) = text.split_once('/').map_or((text, None), |(name, ports)| (name, Some(ports)));
        let all = [ServiceProtocol::Icmp, ServiceProtocol::Tcp, ServiceProtocol::Udp];
        let Some(protocol) = all.into_iter().find(|p| p.name() == name) else {
            return Err(
                "write tcp, udp or icmp, and ports behind the first two: tcp/443, udp/8000-8099".to_owned()
            );
        };
        let Some(ports) = ports else { return Ok(Self { protocol, ports: None }) };
        if protocol == ServiceProtocol::Icmp {
            return Err("icmp has no ports; write icmp alone".to_owned());
        }
        let (first, last) = ports.split_once('-').unwrap_or((ports, ports));
        let port = |text: &str| text.parse::<u16>().ok().filter(|port| *port > 0);
        match port(first).zip(port(last)) {
            Some((first, last)) if first <= last => Ok(Self { protocol, ports: Some(first..=last) }),
            Some(_) => Err(format!("the ports {ports} are in the wrong order; write {last}-{first}")),
            None => Err("a port is one of 1 to 65535; write tcp/443 or tcp/8000-8099".to_owned()),
        }
    }
}

impl fmt::Display for Service {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.protocol.name())?;
        match &self.ports {
            None => Ok(()),
            Some(ports) if ports.start() == ports.end() => write!(f, "/{}", ports.start()),
            Some(ports) => write!(f, "/{}-{}", ports.start(), ports.end()),
        }
    }
}

impl Serialize for Service {
    fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        s.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Service {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        String::deserialize(d)?.parse().map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn services_are_read_and_written() {
        for text in ["tcp", "udp", "icmp", "tcp/443", "udp/8000-8099"] {
            assert_eq!(text.parse::<Service>().unwrap().to_string(), text);
        }
        for (wrong, hint) in [
            ("", "tcp/443"),
            ("sctp", "tcp/443"),
            ("icmp/8", "no ports"),
            ("tcp/0", "1 to 65535"),
            ("tcp/", "1 to 65535"),
            ("tcp/9-x", "1 to 65535"),
            ("tcp/90-80", "write 80-90"),
        ] {
            let error = wrong.parse::<Service>().unwrap_err();
            assert!(error.contains(hint), "{wrong}: {error}");
        }
    }

    #[test]
    fn a_pair_of_names_is_a_rule() {
        let rule: Rule = serde_json::from_str(r#"{"from":"a","to":"b"}"#).unwrap();
        assert_eq!((rule.action, rule.to_string().as_str()), (Action::Allow, "allow a b"));
        let rule: Rule = serde_json::from_str(
            r#"{"action":"deny","from":"a","from_kind":"port","to":"host","service":"tcp/22"}"#,
        )
        .unwrap();
        assert_eq!((rule.from_kind, rule.to_string().as_str()), (Some(SideKind::Port), "deny a host tcp/22"));
    }
}
