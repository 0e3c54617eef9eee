//! What has to be done to get from one desired state to another. Pure.

use super::desired::{Desired, Static};

/// One step. What it is about is looked up in the old state for removals, in the new one for the rest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// Unbind a MAC.
    RemoveStatic(Static),
    /// Take a port out.
    RemovePort(String),
    /// Take a network out, with its host end.
    RemoveNetwork(String),
    /// Make a network, with its host end.
    AddNetwork(String),
    /// Make a port.
    AddPort(String),
    /// Bind a MAC.
    AddStatic(Static),
}

impl Action {
    /// What undoes it, when old and new state change places.
    pub fn inverse(&self) -> Self {
        match self.clone() {
            Self::RemoveStatic(s) => Self::AddStatic(s),
            Self::RemovePort(n) => Self::AddPort(n),
            Self::RemoveNetwork(n) => Self::AddNetwork(n),
            Self::AddNetwork(n) => Self::RemoveNetwork(n),
            Self::AddPort(n) => Self::RemovePort(n),
            Self::AddStatic(s) => Self::RemoveStatic(s),
        }
    }
}

/// The steps from `old` to `new`, in an order in which each finds what it needs: what goes, goes first, and from the
/// leaves; what comes, comes from the root. What changed goes and comes again. Publishes have a way of their own
/// ([`Daemon::publish_ports`](super::control::Daemon::publish_ports)), and keep their network from changing.
pub fn plan(old: &Desired, new: &Desired) -> Vec<Action> {
    // A network that only moved its lease cursor is the same network.
    let same_network = |name: &str| match (old.networks.get(name), new.networks.get(name)) {
        (Some(a), Some(b)) => {
            let mut a = a.clone();
            a.last_lease.clone_from(&b.last_lease);
            a == *b
        }
        _ => false,
    };
    let same_port = |name: &str| {
        let (a, b) = (old.ports.get(name), new.ports.get(name));
        a == b && a.is_none_or(|p| same_network(&p.network))
    };
    let same_static = |key: &str| {
        let (a, b) = (old.statics.get(key), new.statics.get(key));
        a == b && a.is_none_or(|s| same_port(&s.port))
    };
    let mut steps = Vec::new();
    steps.extend(
        old.statics.iter().filter(|(k, _)| !same_static(k)).map(|(_, s)| Action::RemoveStatic(s.clone())),
    );
    steps.extend(old.ports.keys().filter(|k| !same_port(k)).cloned().map(Action::RemovePort));
    steps.extend(old.networks.keys().filter(|k| !same_network(k)).cloned().map(Action::RemoveNetwork));
    steps.extend(new.networks.keys().filter(|k| !same_network(k)).cloned().map(Action::AddNetwork));
    steps.extend(new.ports.keys().filter(|k| !same_port(k)).cloned().map(Action::AddPort));
    steps.extend(
        new.statics.iter().filter(|(k, _)| !same_static(k)).map(|(_, s)| Action::AddStatic(s.clone())),
    );
    steps
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mac::Mac;
    use ctl::api::{NetworkSpec, PortSpec};
    use jiff::Timestamp;

    fn with(networks: &[(&str, &str)], ports: &[(&str, &str)], statics: &[(&str, &str)]) -> Desired {
        let mut d = Desired::default();
        for (name, subnet) in networks {
            let json = format!(r#"{{"name":"{name}","subnets":["{subnet}"]}}"#);
            let spec: NetworkSpec = serde_json::from_str(&json).unwrap();
            d.add_network("swd", &spec, |_| false).unwrap();
        }
        for (name, network) in ports {
            let spec = PortSpec {
                ifname: (*name).into(),
                name: None,
                network: Some((*network).into()),
                address: None,
            };
            d.add_port(&spec, Timestamp::UNIX_EPOCH).unwrap();
        }
        for (mac, port) in statics {
            d.add_static(mac, port).unwrap();
        }
        d
    }

    fn text(old: &Desired, new: &Desired) -> String {
        let show = |a: &Action| match a {
            Action::RemoveStatic(s) => format!("-{}", s.mac),
            Action::RemovePort(n) | Action::RemoveNetwork(n) => format!("-{n}"),
            Action::AddNetwork(n) | Action::AddPort(n) => format!("+{n}"),
            Action::AddStatic(s) => format!("+{}", s.mac),
        };
        plan(old, new).iter().map(show).collect::<Vec<_>>().join(" ")
    }

    #[test]
    fn steps() {
        let mac = "02:00:00:00:00:0a";
        let none = Desired::default();
        let one = with(&[("a", "10.0.0.0/24")], &[("p", "a")], &[(mac, "p")]);
        let other_subnet = with(&[("a", "10.0.9.0/24")], &[("p", "a")], &[(mac, "p")]);
        let two =
            with(&[("a", "10.0.0.0/24"), ("b", "10.0.1.0/24")], &[("p", "a"), ("q", "b")], &[(mac, "p")]);
        let moved = with(&[("a", "10.0.0.0/24"), ("b", "10.0.1.0/24")], &[("p", "b"), ("q", "b")], &[]);
        let mut leased = one.clone();
        leased.networks.get_mut("a").unwrap().last_lease = vec![Some("10.0.0.9".parse().unwrap())];
        let all_of_a = "-02:00:00:00:00:0a -p -a +a +p +02:00:00:00:00:0a";
        let cases: &[(&Desired, &Desired, &str)] = &[
            (&none, &none, ""),
            (&none, &one, "+a +p +02:00:00:00:00:0a"),
            (&one, &none, "-02:00:00:00:00:0a -p -a"),
            (&one, &one, ""),
            (&one, &leased, ""),
            (&one, &two, "+b +q"),
            (&two, &moved, "-02:00:00:00:00:0a -p +p"),
            (&one, &other_subnet, all_of_a),
        ];
        for (old, new, expected) in cases {
            assert_eq!(text(old, new), *expected);
        }
    }

    #[test]
    fn the_inverse_undoes() {
        let s = Static { mac: Mac([2, 0, 0, 0, 0, 1]), network: "a".into(), port: "p".into() };
        for action in [Action::AddStatic(s), Action::AddPort("p".into()), Action::RemoveNetwork("a".into())] {
            assert_ne!(action, action.inverse());
            assert_eq!(action, action.inverse().inverse());
        }
    }
}
