//! `swctl conntrack`.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::Duration;

use anyhow::Context;
use ctl::{
    api::{Connection, ConnectionFilter, Flow},
    client::Client,
};

use crate::{
    cli,
    output::{self, Format},
    table::{self, Column, Table},
};

/// How often `watch` looks.
const INTERVAL: Duration = Duration::from_millis(500);

/// `swctl conntrack …`.
pub(crate) async fn run(client: &Client, format: Format, command: cli::Conntrack) -> anyhow::Result<()> {
    match command {
        cli::Conntrack::Ls(filter) => {
            format.print(client.connections(&filter.filter()).await?.as_slice(), list)
        }
        cli::Conntrack::Count(filter) => {
            let count = client.count_connections(&filter.filter()).await?;
            format.print(&count, |count| format!("{}\n", count.connections))
        }
        cli::Conntrack::Flush(filter) => {
            let flushed = client.flush_connections(&filter.filter()).await?;
            format.print(&flushed, |flushed| format!("{} ended\n", flushed.flushed))
        }
        cli::Conntrack::Watch(filter) => watch(client, format, &filter.filter()).await,
    }
}

/// Prints what is new, what changed its state, and what has ended, until interrupted.
async fn watch(client: &Client, format: Format, filter: &ConnectionFilter) -> anyhow::Result<()> {
    let mut reader_gone = tokio::task::spawn_blocking(output::wait_for_reader_gone);
    let mut known: BTreeMap<String, Connection> = BTreeMap::new();
    loop {
        let mut now = BTreeMap::new();
        for c in client.connections(filter).await? {
            let name = format!("{} {:?} {:?}", c.protocol, c.original, c.reply);
            match known.remove(&name) {
                None => tell(format, "new", &c)?,
                Some(old) if old.state != c.state => tell(format, "changed", &c)?,
                Some(_) => {}
            }
            now.insert(name, c);
        }
        for c in known.values() {
            tell(format, "ended", c)?;
        }
        known = now;
        tokio::select! {
            () = tokio::time::sleep(INTERVAL) => {}
            _ = &mut reader_gone => return Ok(()),
        }
    }
}

fn tell(format: Format, what: &str, c: &Connection) -> anyhow::Result<()> {
    let line = match format {
        Format::Human => table::printable(&format!(
            "{what:<8}{} {} {}  {} > {}",
            c.protocol,
            c.state,
            c.container.as_deref().unwrap_or(table::NONE),
            end(c.original.src, c.original.sport),
            end(c.original.dst, c.original.dport)
        )),
        Format::Json => {
            let mut value = serde_json::to_value(c).context("cannot write the connection as JSON")?;
            value["event"] = what.into();
            value.to_string()
        }
    };
    output::print(line + "\n")
}

fn end(address: std::net::IpAddr, port: u16) -> String {
    SocketAddr::new(address, port).to_string()
}

fn flow(flow: &Flow) -> String {
    format!("{} > {}", end(flow.src, flow.sport), end(flow.dst, flow.dport))
}

fn list(all: &[Connection]) -> String {
    let mut table = Table::new(&[
        Column::Left("PROTOCOL"),
        Column::Left("STATE"),
        Column::Left("CONTAINER"),
        Column::Left("ORIGINAL"),
        Column::Left("REPLY"),
        Column::Right("PACKETS"),
        Column::Right("BYTES"),
        Column::Right("TIMEOUT"),
    ]);
    for c in all {
        table.row([
            c.protocol.clone(),
            c.state.clone(),
            table::optional(c.container.as_deref()),
            flow(&c.original),
            flow(&c.reply),
            c.packets.to_string(),
            table::bytes(c.bytes),
            table::seconds(c.timeout_s),
        ]);
    }
    table.to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn connections_for_people_and_programs() {
        let text = r#"{"protocol":"tcp","state":"established","network":"default","container":"web",
            "original":{"src":"172.18.0.10","sport":4000,"dst":"192.0.2.7","dport":80},
            "reply":{"src":"192.0.2.7","sport":80,"dst":"192.0.2.1","dport":61234},
            "packets":7,"bytes":2048,"age_s":3,"timeout_s":7440}"#;
        let c: Connection = serde_json::from_str(text).unwrap();
        assert_eq!(
            list(std::slice::from_ref(&c)).lines().nth(1).unwrap(),
            "tcp       established  web        172.18.0.10:4000 > 192.0.2.7:80  192.0.2.7:80 > 192.0.2.1:61234        7  2.0 KiB    2h 4m"
        );
        let json = serde_json::to_value(&c).unwrap();
        let keys: Vec<&str> = json.as_object().unwrap().keys().map(String::as_str).collect();
        let wanted = [
            "age_s",
            "bytes",
            "container",
            "network",
            "original",
            "packets",
            "protocol",
            "reply",
            "state",
            "timeout_s",
        ];
        assert_eq!(keys, wanted);
    }
}
