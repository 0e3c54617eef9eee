//! `swctl port`, `swctl attach`, `swctl stats`.

use anyhow::Context;
use ctl::{
    api::{Port, PortKind, PortState},
    client::Client,
};
use jiff::Unit;

use crate::{
    cli,
    commands::{limits, publish},
    output::Format,
    table::{self, Column, Table},
};

/// `swctl port …`.
pub(crate) async fn run(client: &Client, format: Format, command: cli::Port) -> anyhow::Result<()> {
    match command {
        cli::Port::Add(add) => format.print(&client.add_port(&add.spec()).await?, added),
        cli::Port::Ls => format.print(client.ports().await?.as_slice(), list),
        cli::Port::Show { name } => format.print(&client.port(&name).await?, show),
        cli::Port::Set(set) => {
            format.print(&client.change_port(set.name(), &set.change()).await?, limits::changed)
        }
        cli::Port::Rm { name } => Ok(client.remove_port(&name).await?),
    }
}

/// `swctl attach`.
pub(crate) async fn attach(client: &Client, format: Format, attach: cli::Attach) -> anyhow::Result<()> {
    let publish = attach.endpoint.publish.clone();
    let spec = attach.spec().context("cannot read the working directory")?;
    let port = client.attach(&spec).await?;
    if let Err(e) = publish::for_port(client, &port, &publish).await {
        // All or nothing; what was published goes with the port.
        let _ = client.detach(&port.name).await;
        return Err(e);
    }
    format.print(&port, attached)
}

/// `swctl stats`: of all ports, or of one.
pub(crate) async fn stats(client: &Client, format: Format, name: Option<&str>) -> anyhow::Result<()> {
    match name {
        Some(name) => format.print(&client.port(name).await?, |port| count(std::slice::from_ref(port))),
        None => format.print(client.ports().await?.as_slice(), count),
    }
}

fn added(port: &Port) -> String {
    format!("port {} added: {} in network {}\n", port.name, port.ifname, port.network)
}

fn attached(port: &Port) -> String {
    let ifname = port.container_ifname.as_ref().unwrap_or(&port.ifname);
    let addresses = table::list(&port.addresses);
    format!("port {} attached: {ifname} {addresses} in network {}\n", port.name, port.network)
}

fn list(ports: &[Port]) -> String {
    let mut table = Table::new(&[
        Column::Left("NAME"),
        Column::Left("IFNAME"),
        Column::Left("NETWORK"),
        Column::Left("KIND"),
        Column::Left("STATE"),
        Column::Left("MAC"),
        Column::Right("MTU"),
        Column::Left("ADDRESSES"),
    ]);
    for port in ports {
        table.row([
            port.name.clone(),
            port.ifname.clone(),
            port.network.clone(),
            kind(port.kind).to_owned(),
            state(port.state).to_owned(),
            port.mac.clone(),
            port.mtu.to_string(),
            table::list(&port.addresses),
        ]);
    }
    table.to_string()
}

fn show(port: &Port) -> String {
    let counters = |packets, bytes, dropped| {
        format!("{packets} packets, {} ({bytes} bytes), {dropped} dropped", table::bytes(bytes))
    };
    table::fields([
        ("Name", port.name.clone()),
        ("Network", port.network.clone()),
        ("Kind", kind(port.kind).to_owned()),
        ("State", state(port.state).to_owned()),
        ("Interface", port.ifname.clone()),
        ("MAC", port.mac.clone()),
        ("MTU", port.mtu.to_string()),
        ("Container", table::optional(port.netns.as_deref())),
        ("Its interface", table::optional(port.container_ifname.as_deref())),
        ("Addresses", table::list(&port.addresses)),
        ("Aliases", table::list(&port.aliases)),
        ("Limits", limits::text(&port.limits)),
        ("Sources", limits::guard(&port.guard)),
        ("Since", port.since.round(Unit::Second).unwrap_or(port.since).to_string()),
        ("Received", counters(port.rx_packets, port.rx_bytes, port.rx_dropped)),
        ("Sent", counters(port.tx_packets, port.tx_bytes, port.tx_dropped)),
    ])
}

fn count(ports: &[Port]) -> String {
    let mut table = Table::new(&[
        Column::Left("PORT"),
        Column::Right("RX PACKETS"),
        Column::Right("RX BYTES"),
        Column::Right("RX DROPPED"),
        Column::Right("TX PACKETS"),
        Column::Right("TX BYTES"),
        Column::Right("TX DROPPED"),
    ]);
    for port in ports {
        table.row([
            port.name.clone(),
            port.rx_packets.to_string(),
            table::bytes(port.rx_bytes),
            port.rx_dropped.to_string(),
            port.tx_packets.to_string(),
            table::bytes(port.tx_bytes),
            port.tx_dropped.to_string(),
        ]);
    }
    table.to_string()
}

fn kind(kind: PortKind) -> &'static str {
    match kind {
        PortKind::Host => "host",
        PortKind::Packet => "packet",
        PortKind::Tap => "tap",
    }
}

fn state(state: PortState) -> &'static str {
    match state {
        PortState::Up => "up",
        PortState::Down => "down",
        PortState::Missing => "missing",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ctl::api::{PortGuard, PortLimits};

    fn port() -> Port {
        Port {
            name: "web".into(),
            ifname: "web.p".into(),
            network: "default".into(),
            kind: PortKind::Packet,
            state: PortState::Up,
            mac: "02:ac:12:00:00:02".into(),
            mtu: 1500,
            netns: Some("web".into()),
            container_ifname: Some("eth0".into()),
            addresses: vec!["172.18.0.2/16".parse().unwrap()],
            aliases: vec!["shop".into(), "www".into()],
            since: "2026-11-21T20:00:00.9Z".parse().unwrap(),
            rx_packets: 1,
            tx_packets: 2,
            rx_bytes: 60,
            tx_bytes: 3 << 20,
            rx_dropped: 4,
            tx_dropped: 5,
            connections: 6,
            limits: PortLimits::default(),
            guard: PortGuard::default(),
        }
    }

    #[test]
    fn ports_for_people() {
        assert_eq!(
            list(&[port()]),
            "NAME  IFNAME  NETWORK  KIND    STATE  MAC                 MTU  ADDRESSES\n\
             web   web.p   default  packet  up     02:ac:12:00:00:02  1500  172.18.0.2/16\n"
        );
        assert_eq!(attached(&port()), "port web attached: eth0 172.18.0.2/16 in network default\n");
        assert!(show(&port()).contains("\nAliases        shop, www\n"));
        assert!(show(&port()).contains("\nSent           2 packets, 3.0 MiB (3145728 bytes), 5 dropped\n"));
    }

    #[test]
    fn counters_for_people() {
        assert_eq!(
            count(&[port()]),
            "PORT  RX PACKETS  RX BYTES  RX DROPPED  TX PACKETS  TX BYTES  TX DROPPED\n\
             web            1      60 B           4           2   3.0 MiB           5\n"
        );
    }

    #[test]
    fn json_has_the_keys_that_scripts_rely_on() {
        let json = serde_json::to_value(port()).unwrap();
        for key in ["name", "ifname", "network", "state", "mac", "mtu"] {
            assert!(json.get(key).is_some(), "{key}");
        }
        for key in ["rx_packets", "tx_packets", "rx_bytes", "tx_bytes"] {
            assert!(json[key].is_u64(), "{key}");
        }
        assert_eq!((json["kind"].as_str(), json["state"].as_str()), (Some("packet"), Some("up")));
    }
}
