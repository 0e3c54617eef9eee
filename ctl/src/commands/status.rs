//! `swctl status`, `swctl drops`.

use std::collections::BTreeMap;

use ctl::{
    api::{DropCount, Guards, Restored, Status},
    client::Client,
};
use jiff::{Timestamp, Unit};

use crate::{
    output::Format,
    table::{self, Column, Table},
};

/// `swctl status`.
pub(crate) async fn status(client: &Client, format: Format) -> anyhow::Result<()> {
    format.print(&client.status().await?, |status| describe(status, Timestamp::now()))
}

/// `swctl drops`: JSON has every reason, the table those that occurred.
pub(crate) async fn drops(client: &Client, format: Format, all: bool) -> anyhow::Result<()> {
    format.print(client.drops().await?.as_slice(), |drops| list(drops, all))
}

fn describe(status: &Status, now: Timestamp) -> String {
    let up = now.duration_since(status.started).as_secs().try_into().unwrap_or(0);
    let started = status.started.round(Unit::Second).unwrap_or(status.started);
    table::fields([
        ("Instance", format!("{} (version {}, process {})", status.name, status.version, status.pid)),
        ("State", if status.ready { "ready" } else { "starting" }.to_owned()),
        ("Up", format!("{}, since {started}", table::seconds(up))),
        ("Uplink", table::optional(status.uplink.as_deref())),
        ("Workers", status.workers.to_string()),
        ("Networks", status.networks.to_string()),
        ("Ports", status.ports.to_string()),
        ("MACs", status.fdb_entries.to_string()),
        (
            "fast path",
            if status.fast_path { format!("{} flows", status.fast_flows) } else { "off".to_owned() },
        ),
        ("Connections", format!("{} of {}", status.connections, status.max_connections)),
        ("Taken over", taken_over(&status.restored)),
        ("Pool", table::optional(status.pool.as_deref())),
        ("Port guards", table::optional(status.guards.map(Guards::name))),
        ("Names", questions(&status.names)),
        ("Received", status.received.to_string()),
        ("Forwarded", status.forwarded.to_string()),
        ("Answered", status.answered.to_string()),
        ("Dropped", status.drops.to_string()),
        ("Parked", status.parked.to_string()),
        ("Not received", status.not_received.to_string()),
    ])
}

/// Questions for names, and what became of them.
fn questions(names: &BTreeMap<String, u64>) -> String {
    let some: Vec<String> = names
        .iter()
        .filter(|(_, count)| **count > 0)
        .map(|(what, count)| format!("{count} {what}"))
        .collect();
    table::list(&some)
}

/// Connections of the daemon before this one.
fn taken_over(restored: &Restored) -> String {
    let refused: Vec<String> = restored.refused.iter().map(|(why, count)| format!("{count} {why}")).collect();
    match refused.is_empty() {
        true => restored.connections.to_string(),
        false => format!("{} (not: {})", restored.connections, refused.join(", ")),
    }
}

fn list(drops: &[DropCount], all: bool) -> String {
    let mut table = Table::new(&[Column::Right("COUNT"), Column::Left("REASON"), Column::Left("HELP")]);
    for drop in drops.iter().filter(|drop| all || drop.count > 0) {
        table.row([drop.count.to_string(), drop.reason.clone(), drop.help.clone()]);
    }
    table.to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn status_for_people() {
        let status = Status {
            ready: true,
            version: "0.1.0".into(),
            name: "swd".into(),
            pid: 42,
            started: "2026-11-21T20:00:00.25Z".parse().unwrap(),
            uplink: None,
            workers: 1,
            networks: 2,
            ports: 3,
            connections: 4,
            drops: 5,
            received: 6,
            forwarded: 7,
            answered: 8,
            parked: 3,
            dropped: [("no-route".to_owned(), 5)].into(),
            names: [("answered".to_owned(), 12), ("failed".to_owned(), 0)].into(),
            not_received: 10,
            fdb_entries: 9,
            max_connections: 10,
            pool: None,
            guards: Some(Guards::Bpf),
            fast_path: true,
            fast_flows: 2,
            restored: Restored { connections: 11, refused: [("torn".to_owned(), 2)].into() },
            unjournalled: 0,
        };
        let text = describe(&status, "2026-11-21T21:02:03Z".parse().unwrap());
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(
            lines[..4],
            [
                "Instance      swd (version 0.1.0, process 42)",
                "State         ready",
                "Up            1h 2m, since 2026-11-21T20:00:00Z",
                "Uplink        -",
            ]
        );
        assert_eq!(lines[lines.len() - 2..], ["Parked        3", "Not received  10"]);
        assert!(
            lines.contains(&"Connections   4 of 10")
                && lines.contains(&"Names         12 answered")
                && lines.contains(&"Port guards   bpf"),
            "{text}"
        );

        // The clock was set back since.
        let text = describe(&status, "2026-11-21T19:00:00Z".parse().unwrap());
        assert!(text.contains("\nUp            0s, since "), "{text}");
    }

    #[test]
    fn drops_that_occurred_or_all() {
        let drops = [("a", 0), ("b", 12)].map(|(reason, count)| DropCount {
            reason: reason.into(),
            count,
            help: format!("help for {reason}"),
        });
        assert_eq!(list(&drops, false), "COUNT  REASON  HELP\n   12  b       help for b\n");
        assert_eq!(list(&drops, true).lines().count(), 3);
    }
}
