//! `swctl network`.

use ctl::{
    api::{Filtering, Mapping, Network},
    client::Client,
};

use crate::{
    cli,
    output::Format,
    table::{self, Column, Table},
};

/// `swctl network …`.
pub(crate) async fn run(client: &Client, format: Format, command: cli::Network) -> anyhow::Result<()> {
    match command {
        cli::Network::Add(add) => format.print(&client.add_network(&add.spec()).await?, added),
        cli::Network::Ls => format.print(client.networks().await?.as_slice(), list),
        cli::Network::Show { name } => format.print(&client.network(&name).await?, show),
        cli::Network::Rm { name } => Ok(client.remove_network(&name).await?),
    }
}

fn added(network: &Network) -> String {
    let host = network.host_ifname.as_ref().map(|ifname| format!(", host end {ifname}")).unwrap_or_default();
    format!(
        "network {} added: {}, gateway {}{host}\n",
        network.name,
        table::list(&network.subnets),
        table::list(&network.gateways)
    )
}

fn list(networks: &[Network]) -> String {
    let mut table = Table::new(&[
        Column::Left("NAME"),
        Column::Left("SUBNETS"),
        Column::Left("GATEWAYS"),
        Column::Left("HOST END"),
        Column::Left("NAT"),
        Column::Right("MTU"),
        Column::Right("PORTS"),
        Column::Right("LEASES"),
    ]);
    for network in networks {
        table.row([
            network.name.clone(),
            table::list(&network.subnets),
            table::list(&network.gateways),
            table::optional(network.host_ifname.as_deref()),
            nat(network),
            network.mtu.to_string(),
            network.ports.len().to_string(),
            network.leases.to_string(),
        ]);
    }
    table.to_string()
}

/// Mapping and filtering in a word: short for what a table has room for.
fn nat(network: &Network) -> String {
    let mapping = match network.mapping {
        Mapping::EndpointIndependent => "eim",
        Mapping::AddressAndPortDependent => "apdm",
    };
    let filtering = match network.filtering {
        Filtering::AddressAndPortDependent => "apdf",
        Filtering::AddressDependent => "adf",
        Filtering::EndpointIndependent => "eif",
    };
    if network.masquerade { format!("{mapping}/{filtering}") } else { "off".to_owned() }
}

fn show(network: &Network) -> String {
    let yes_no = |yes: bool| if yes { "yes" } else { "no" }.to_owned();
    table::fields([
        ("Name", network.name.clone()),
        ("Subnets", table::list(&network.subnets)),
        ("Gateways", table::list(&network.gateways)),
        ("Gateway MAC", network.gateway_mac.clone()),
        ("MTU", network.mtu.to_string()),
        ("Host end", table::optional(network.host_ifname.as_deref())),
        ("Names", yes_no(network.dns)),
        ("DHCP", if network.dhcp { format!("yes, for {} s", network.dhcp_lease) } else { yes_no(false) }),
        ("Router advertisements", yes_no(network.ra)),
        ("Host access", yes_no(network.host_access)),
        ("Masquerade", yes_no(network.masquerade)),
        ("Mapping", network.mapping.name().to_owned()),
        ("Filtering", network.filtering.name().to_owned()),
        ("Isolated ports", yes_no(network.isolate_ports)),
        ("Internal", yes_no(network.internal)),
        ("Leases", network.leases.to_string()),
        ("Ports", table::list(&network.ports)),
    ])
}
