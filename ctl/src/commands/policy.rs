//! `swctl allow`, `deny`, `policy`.

use ctl::{
    api::{Action, Rule, SideKind},
    client::Client,
};

use crate::{
    cli,
    output::Format,
    table::{Column, NONE, Table},
};

/// `swctl allow` and `swctl deny`.
pub(crate) async fn add(client: &Client, format: Format, rule: Rule) -> anyhow::Result<()> {
    // As it is the first thing that a script calls, it says nothing when all is well.
    let kept = client.add_rule(&rule).await?;
    format.print(&kept, |_| String::new())
}

/// `swctl policy …`.
pub(crate) async fn run(client: &Client, format: Format, command: Option<cli::Policy>) -> anyhow::Result<()> {
    match command {
        None | Some(cli::Policy::Ls) => format.print(client.policy().await?.as_slice(), list),
        Some(cli::Policy::Rm(rule)) => Ok(client.remove_rule(&rule.rule(Action::Allow)).await?),
    }
}

fn list(rules: &[Rule]) -> String {
    let mut table = Table::new(&[
        Column::Left("ACTION"),
        Column::Left("FROM"),
        Column::Left("TO"),
        Column::Left("SERVICE"),
    ]);
    for rule in rules {
        table.row([
            rule.action.name().to_owned(),
            side(&rule.from, rule.from_kind),
            side(&rule.to, rule.to_kind),
            rule.service.as_ref().map_or_else(|| NONE.to_owned(), ToString::to_string),
        ]);
    }
    table.to_string()
}

/// As `allow` and `deny` take it, whatever else has the name.
fn side(name: &str, kind: Option<SideKind>) -> String {
    match kind {
        Some(SideKind::Network) => format!("network:{name}"),
        Some(SideKind::Port) => format!("port:{name}"),
        None | Some(SideKind::Host | SideKind::Outside) => name.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rules_for_people() {
        let text = r#"[{"action":"deny","from":"default","from_kind":"network","to":"host","to_kind":"host","service":"tcp/22"},
            {"action":"allow","from":"web","from_kind":"port","to":"db","to_kind":"network","service":null}]"#;
        let rules: Vec<Rule> = serde_json::from_str(text).unwrap();
        assert_eq!(
            list(&rules),
            "ACTION  FROM             TO          SERVICE\n\
             deny    network:default  host        tcp/22\n\
             allow   port:web         network:db  -\n"
        );
    }
}
