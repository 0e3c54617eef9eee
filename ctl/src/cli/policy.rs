//! The command lines of `swctl allow`, `deny` and `policy`.

use clap::{Args, Subcommand};
use ctl::api::{Action, Rule, Service, SideKind};

/// What a rule is about.
#[derive(Args, Debug)]
pub(crate) struct RuleArgs {
    /// Who opens connections: NETWORK, PORT, host or outside
    #[arg(value_parser = side)]
    from: Side,
    /// Who is called: NETWORK, PORT, host or outside
    #[arg(value_parser = side)]
    to: Side,
    /// What for: tcp, udp or icmp, the first two with ports if wanted: tcp/443, udp/8000-8099 [default: everything]
    #[arg(value_name = "SERVICE", value_parser = str::parse::<Service>)]
    service: Option<Service>,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Policy {
    /// List the rules
    Ls,
    /// Remove a rule: then others that match decide, or what holds without any
    Rm(RuleArgs),
}

/// A side, as it was given.
#[derive(Clone, Debug)]
pub(crate) struct Side {
    name: String,
    kind: Option<SideKind>,
}

impl RuleArgs {
    /// What to ask swd for.
    pub(crate) fn rule(self, action: Action) -> Rule {
        let Self { from, to, service } = self;
        let (from, from_kind, to, to_kind) = (from.name, from.kind, to.name, to.kind);
        Rule { action, from, from_kind, to, to_kind, service }
    }
}

fn side(text: &str) -> Result<Side, String> {
    let (kind, name) = match text.split_once(':') {
        Some(("network", name)) => (Some(SideKind::Network), name),
        Some(("port", name)) => (Some(SideKind::Port), name),
        Some((what, _)) => {
            return Err(format!("'{what}:' is no kind of side; write network:NAME or port:NAME"));
        }
        None => (None, text),
    };
    if name.is_empty() {
        return Err("a name is missing".to_owned());
    }
    Ok(Side { name: name.to_owned(), kind })
}
