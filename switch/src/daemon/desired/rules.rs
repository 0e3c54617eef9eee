//! Edits of the rules of who may open connections to whom.
//!
//! Rules name ports and networks by name. Those of a network go with it; those of a port stay and wait for another of that
//! name, because a container that is made anew is the same one to the user, and what was forbidden to it must not come back
//! open.

use ctl::api::{Rule, SideKind};

use super::{Desired, EditError, short};

/// Rules: more would make each packet's look at them slow.
const MAX_RULES: usize = 4096;

impl Desired {
    /// Adds a rule, or puts it in the place of the one about the same. Tells it with the kinds of its sides.
    ///
    /// # Errors
    /// When a side is not there or may be two things, or no packet of the two passes the switch.
    pub fn add_rule(&mut self, rule: Rule) -> Result<Rule, EditError> {
        let rule = self.resolve(rule)?;
        self.check_rule(&rule)?;
        let others = self.rules.iter().filter(|other| !other.is_about(&rule)).count();
        if others >= MAX_RULES {
            let why = format!("there are {MAX_RULES} rules already; remove some with 'swctl policy rm'");
            return Err(EditError::Rule { rule: rule.to_string(), why });
        }
        match self.rules.iter_mut().find(|other| other.is_about(&rule)) {
            Some(other) => *other = rule.clone(),
            None => self.rules.push(rule.clone()),
        }
        Ok(rule)
    }

    /// Removes the rule that is about the same; tells it.
    ///
    /// # Errors
    /// When there is none, or a side may be two things.
    pub fn remove_rule(&mut self, rule: &Rule) -> Result<Rule, EditError> {
        let fits = |name: &str, kind: Option<SideKind>, wanted: &str, of: Option<SideKind>| {
            name == wanted && (of.is_none() || of == kind)
        };
        let mut found = self.rules.iter().enumerate().filter(|(_, known)| {
            fits(&known.from, known.from_kind, &rule.from, rule.from_kind)
                && fits(&known.to, known.to_kind, &rule.to, rule.to_kind)
                && known.service == rule.service
        });
        let Some((at, _)) = found.next() else {
            let service = rule.service.as_ref().map(|s| format!(" {s}")).unwrap_or_default();
            let name = format!("from {} to {}{service}", short(&rule.from), short(&rule.to));
            let hint = "'swctl policy' lists them".to_owned();
            return Err(EditError::NotFound { what: "rule", name, hint });
        };
        if found.next().is_some() {
            let why = "there are two such rules; say network:NAME or port:NAME".to_owned();
            return Err(EditError::Rule { rule: rule.to_string(), why });
        }
        Ok(self.rules.remove(at))
    }

    /// Finds out what the sides are.
    fn resolve(&self, mut rule: Rule) -> Result<Rule, EditError> {
        rule.from_kind = Some(self.side(&rule.from, rule.from_kind)?);
        rule.to_kind = Some(self.side(&rule.to, rule.to_kind)?);
        Ok(rule)
    }

    fn side(&self, name: &str, kind: Option<SideKind>) -> Result<SideKind, EditError> {
        let (network, port) = (self.networks.contains_key(name), self.ports.contains_key(name));
        let missing =
            |what, hint: &str| Err(EditError::NotFound { what, name: short(name), hint: hint.to_owned() });
        match (kind, name) {
            (None | Some(SideKind::Host), "host") => Ok(SideKind::Host),
            (None | Some(SideKind::Outside), "outside") => Ok(SideKind::Outside),
            (Some(kind @ (SideKind::Host | SideKind::Outside)), _) => {
                let why = format!(
                    "a side of kind {} has that name",
                    if kind == SideKind::Host { "host" } else { "outside" }
                );
                Err(EditError::Rule { rule: short(name), why })
            }
            (Some(SideKind::Network), _) if !network => missing("network", "'swctl network ls' lists them"),
            (Some(SideKind::Network), _) => Ok(SideKind::Network),
            (Some(SideKind::Port), _) if !port => self.port(name).map(|_| SideKind::Port),
            (Some(SideKind::Port), _) => Ok(SideKind::Port),
            (None, _) => match (network, port) {
                (true, true) => Err(EditError::Ambiguous { name: name.to_owned() }),
                (true, false) => Ok(SideKind::Network),
                (false, true) => Ok(SideKind::Port),
                (false, false) if self.host_end(name).is_some() => {
                    let why = format!("{name} is the host's own port; say 'host'");
                    Err(EditError::Rule { rule: short(name), why })
                }
                (false, false) => missing(
                    "network or port",
                    "'swctl network ls' and 'swctl port ls' list them; the rest is 'host' and 'outside'",
                ),
            },
        }
    }

    fn check_rule(&self, rule: &Rule) -> Result<(), EditError> {
        use SideKind::{Host, Outside, Port};
        let fail = |why: String| Err(EditError::Rule { rule: rule.to_string(), why });
        let (Some(from), Some(to)) = (rule.from_kind, rule.to_kind) else { return Ok(()) };
        if matches!(from, Host | Outside) && matches!(to, Host | Outside) {
            return fail("what passes between the host and the outside does not pass swd; that is for the host's firewall".to_owned());
        }
        if (from, &rule.from) == (to, &rule.to) && from == Port {
            return fail("what a port sends to itself does not pass swd".to_owned());
        }
        let inside = match (from, to) {
            (Host, _) => Some((to, &rule.to)),
            (_, Host) => Some((from, &rule.from)),
            _ => None,
        };
        let network = inside.and_then(|(kind, name)| match kind {
            Port => self.ports.get(name).map(|port| &port.network),
            _ => Some(name),
        });
        match network.and_then(|name| Some((name, self.networks.get(name)?))) {
            Some((name, network)) if network.host_ifname.is_none() => {
                fail(format!("network {name} was made with --no-host-access: the host is not in it"))
            }
            _ => Ok(()),
        }
    }

    /// Forgets the rules of a network that goes.
    pub(super) fn forget_rules(&mut self, network: &str) {
        let of = |name: &str, kind| name == network && kind == Some(SideKind::Network);
        self.rules.retain(|rule| !of(&rule.from, rule.from_kind) && !of(&rule.to, rule.to_kind));
    }

    /// Takes over what an earlier swd kept of networks that may talk.
    pub(crate) fn take_over_allowed(&mut self) {
        for (from, to) in std::mem::take(&mut self.allowed) {
            let kind = Some(SideKind::Network);
            let action = ctl::api::Action::Allow;
            self.rules.push(Rule { action, from, from_kind: kind, to, to_kind: kind, service: None });
        }
    }
}
