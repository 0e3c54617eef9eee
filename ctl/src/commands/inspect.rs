//! `swctl inspect`.

use anyhow::Context;
use ctl::{
    api::{Inspected, InspectedRoute},
    client::Client,
};

use crate::{
    cli,
    output::Format,
    table::{self, Column, Table},
};

/// `swctl inspect`.
pub(crate) async fn inspect(client: &Client, format: Format, netns: &str) -> anyhow::Result<()> {
    let netns = cli::namespace(netns).context("cannot tell which namespace that is")?;
    format.print(&client.inspect(&netns).await?, describe)
}

fn describe(seen: &Inspected) -> String {
    let mut devices = Table::new(&[
        Column::Left("DEVICE"),
        Column::Left("STATE"),
        Column::Right("MTU"),
        Column::Left("MAC"),
        Column::Left("ADDRESSES"),
        Column::Left("PORT"),
    ]);
    for device in &seen.devices {
        let state = match (device.up, device.carrier) {
            (false, _) => "down",
            (true, false) => "no link",
            (true, true) => "up",
        };
        devices.row([
            device.name.clone(),
            state.to_owned(),
            device.mtu.to_string(),
            table::optional(device.mac.as_deref()),
            table::list(&device.addresses),
            table::optional(device.port.as_deref()),
        ]);
    }
    let mut routes = Table::new(&[Column::Left("ROUTE"), Column::Left("WAY"), Column::Right("METRIC")]);
    for route in &seen.routes {
        routes.row([route.destination.to_string(), way(route), route.metric.to_string()]);
    }
    let mut neighbors = Table::new(&[Column::Left("NEIGHBOR"), Column::Left("MAC"), Column::Left("DEVICE")]);
    for neighbor in &seen.neighbors {
        neighbors.row([neighbor.address.to_string(), neighbor.mac.clone(), neighbor.device.clone()]);
    }
    let dns = match &seen.dns_file {
        Some(file) => format!("{} (from {file})", table::list(&seen.dns)),
        None => table::NONE.to_owned(),
    };
    let head =
        table::fields([("Namespace", seen.netns.clone()), ("Ports", table::list(&seen.ports)), ("DNS", dns)]);
    format!("{head}\n{devices}\n{routes}\n{neighbors}")
}

fn way(route: &InspectedRoute) -> String {
    let via = route.via.map(|via| format!("via {via}"));
    let device = route.device.as_ref().map(|device| format!("dev {device}"));
    let parts: Vec<String> = [via, device].into_iter().flatten().collect();
    if parts.is_empty() { route.action.clone() } else { parts.join(" ") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_container_for_people() {
        let text = r#"{"netns":"/run/netns/web","ports":["web"],"dns_file":"/etc/resolv.conf","dns":["1.1.1.1"],
            "devices":[{"name":"eth0","kind":"veth","mac":"02:00:00:00:00:01","mtu":1500,"up":true,"carrier":false,
                "addresses":["172.18.0.10/16"],"port":"web"}],
            "routes":[{"destination":"0.0.0.0/0","action":"forward","via":"172.18.0.1","device":"eth0","metric":0},
                {"destination":"10.0.0.0/8","action":"blackhole","via":null,"device":null,"metric":5}],
            "neighbors":[{"address":"172.18.0.1","mac":"02:00:00:00:00:02","device":"eth0"}]}"#;
        let expected = "\
Namespace  /run/netns/web
Ports      web
DNS        1.1.1.1 (from /etc/resolv.conf)

DEVICE  STATE     MTU  MAC                ADDRESSES       PORT
eth0    no link  1500  02:00:00:00:00:01  172.18.0.10/16  web

ROUTE       WAY                      METRIC
0.0.0.0/0   via 172.18.0.1 dev eth0       0
10.0.0.0/8  blackhole                     5

NEIGHBOR    MAC                DEVICE
172.18.0.1  02:00:00:00:00:02  eth0
";
        assert_eq!(describe(&serde_json::from_str(text).unwrap()), expected);
    }
}
