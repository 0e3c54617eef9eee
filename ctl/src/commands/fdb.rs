//! `swctl fdb`.

use ctl::{
    api::{FdbEntry, FdbFlush, FdbKind, FdbSpec},
    client::Client,
};

use crate::{
    cli,
    output::Format,
    table::{self, Column, Table},
};

/// `swctl fdb …`.
pub(crate) async fn run(client: &Client, format: Format, command: cli::Fdb) -> anyhow::Result<()> {
    match command {
        cli::Fdb::Ls => format.print(client.fdb().await?.as_slice(), list),
        cli::Fdb::Add { mac, port } => format.print(&client.add_fdb(&FdbSpec { mac, port }).await?, added),
        cli::Fdb::Rm { mac, network } => Ok(client.remove_fdb(&network, &mac).await?),
        cli::Fdb::Flush { port, network } => {
            let flushed = client.flush_fdb(&FdbFlush { port, network }).await?;
            format.print(&flushed, |flushed| format!("{} forgotten\n", flushed.flushed))
        }
    }
}

fn added(entry: &FdbEntry) -> String {
    let port = table::optional(entry.port.as_deref());
    format!("{} added: at port {port} in network {}\n", entry.mac, entry.network)
}

fn list(entries: &[FdbEntry]) -> String {
    let mut table = Table::new(&[
        Column::Left("MAC"),
        Column::Left("PORT"),
        Column::Left("NETWORK"),
        Column::Left("KIND"),
        Column::Right("AGE"),
    ]);
    for entry in entries {
        let (kind, age) = match entry.kind {
            FdbKind::Dynamic => ("dynamic", table::seconds(entry.age_s)),
            FdbKind::Static => ("static", table::NONE.to_owned()),
            FdbKind::Local => ("local", table::NONE.to_owned()),
        };
        let port = table::optional(entry.port.as_deref());
        table.row([entry.mac.clone(), port, entry.network.clone(), kind.to_owned(), age]);
    }
    table.to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_for_people() {
        let entry = |mac: &str, port: Option<&str>, kind, age_s| FdbEntry {
            mac: mac.into(),
            port: port.map(Into::into),
            network: "default".into(),
            kind,
            age_s,
        };
        let entries = [
            entry("02:00:00:00:00:01", Some("web"), FdbKind::Dynamic, 75),
            entry("02:00:00:00:00:02", None, FdbKind::Local, 0),
        ];
        assert_eq!(
            list(&entries),
            "MAC                PORT  NETWORK  KIND        AGE\n\
             02:00:00:00:00:01  web   default  dynamic  1m 15s\n\
             02:00:00:00:00:02  -     default  local         -\n"
        );
        assert_eq!(added(&entries[0]), "02:00:00:00:00:01 added: at port web in network default\n");
        let json = serde_json::to_value(&entries[0]).unwrap();
        let keys: Vec<&str> = json.as_object().unwrap().keys().map(String::as_str).collect();
        assert_eq!(keys, ["age_s", "kind", "mac", "network", "port"]);
    }
}
