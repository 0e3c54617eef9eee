//! `swctl publish`, `unpublish`, `published`.

use anyhow::bail;
use ctl::{
    api::{Port, PublishSpec, Published},
    client::Client,
    spec::PublishedPorts,
};

use crate::{
    output::Format,
    table::{self, Column, Table},
};

/// `swctl publish`.
pub(crate) async fn publish(client: &Client, format: Format, spec: &PublishSpec) -> anyhow::Result<()> {
    format.print(&client.publish(spec).await?, |p| format!("{} leads to {}\n", p.name, target(p)))
}

/// Publishes ports of the host for a container, from the one given on, for as long as it is attached.
pub(crate) async fn for_port(
    client: &Client,
    port: &Port,
    publish: &[(PublishedPorts, u16)],
) -> anyhow::Result<()> {
    for (PublishedPorts { host_ip, first, last, protocol }, target) in publish {
        let v4 = host_ip.is_none_or(|ip| ip.is_ipv4());
        let address = port.addresses.iter().map(|a| a.addr()).find(|a| a.is_ipv4() == v4);
        let address = address.or_else(|| port.addresses.first().map(|a| a.addr()));
        let Some(target_ip) = address else { bail!("{} has no address to publish a port for", port.name) };
        let spec = PublishSpec {
            host_ip: *host_ip,
            host_port: *first,
            host_port_end: Some(*last),
            protocol: *protocol,
            target_ip,
            target_port: *target,
            from: Vec::new(),
            port: Some(port.name.clone()),
        };
        client.publish(&spec).await?;
    }
    Ok(())
}

/// `swctl published`.
pub(crate) async fn list(client: &Client, format: Format) -> anyhow::Result<()> {
    format.print(client.published().await?.as_slice(), describe)
}

fn target(p: &Published) -> String {
    let first = std::net::SocketAddr::new(p.target_ip, p.target_port);
    match p.host_port_end.saturating_sub(p.host_port) {
        0 => first.to_string(),
        more => format!("{first}-{}", p.target_port.saturating_add(more)),
    }
}

fn describe(all: &[Published]) -> String {
    let mut table = Table::new(&[
        Column::Left("PUBLISHED"),
        Column::Left("TARGET"),
        Column::Left("NETWORK"),
        Column::Left("FROM"),
        Column::Right("CONNECTIONS"),
    ]);
    for p in all {
        let count = p.connections.to_string();
        table.row([p.name.clone(), target(p), p.network.clone(), table::list(&p.from), count]);
    }
    let problems = all.iter().filter_map(|p| Some((&p.name, p.problem.as_ref()?)));
    problems.fold(table.to_string(), |text, (name, why)| {
        text + &table::printable(&format!("{name} does not work: {why}")) + "\n"
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use ctl::api::Transport;

    #[test]
    fn publishes_for_people() {
        let published = Published {
            name: "8000-8009/udp".into(),
            host_ip: None,
            host_port: 8000,
            host_port_end: 8009,
            protocol: Transport::Udp,
            target_ip: "172.18.0.10".parse().unwrap(),
            target_port: 80,
            network: "default".into(),
            from: Vec::new(),
            connections: 3,
            port: None,
            problem: None,
            since: "2026-11-21T20:00:00Z".parse().unwrap(),
        };
        let json = serde_json::to_value(&published).unwrap();
        assert_eq!((&json["protocol"], &json["host_ip"]), (&"udp".into(), &serde_json::Value::Null));
        assert_eq!(
            describe(std::slice::from_ref(&published)),
            "PUBLISHED      TARGET             NETWORK  FROM  CONNECTIONS\n\
             8000-8009/udp  172.18.0.10:80-89  default  -               3\n"
        );
        let refused = Published { problem: Some("port 8000/udp is used by nc (pid 9)".into()), ..published };
        assert_eq!(
            describe(&[refused]).lines().last(),
            Some("8000-8009/udp does not work: port 8000/udp is used by nc (pid 9)")
        );
    }
}
