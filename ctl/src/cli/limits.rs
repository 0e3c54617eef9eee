//! The command line of `swctl port set`.

use clap::{Args, ValueEnum, builder::NonEmptyStringValueParser};
use ctl::{
    api::{PortChange, Rate, Source},
    rate::{parse_rate, parse_size},
};

#[derive(Args, Debug)]
#[command(group = clap::ArgGroup::new("what").multiple(true).required(true))]
pub(crate) struct PortSet {
    /// Its name
    #[arg(value_parser = NonEmptyStringValueParser::new())]
    name: String,
    /// What may come from it, as tc writes it: 100mbit, 12mbps (bytes), 5000pps; 'none': all
    #[arg(long, value_name = "RATE", value_parser = or_none(parse_rate), group = "what")]
    rate_in: Option<OrNone<Rate>>,
    /// How much of it at once: 256k; packets, where the rate is one [default: what suits the rate]
    #[arg(long, value_name = "SIZE", value_parser = parse_size, requires = "rate_in")]
    burst_in: Option<u64>,
    /// What may be sent to it
    #[arg(long, value_name = "RATE", value_parser = or_none(parse_rate), group = "what")]
    rate_out: Option<OrNone<Rate>>,
    /// How much of it at once
    #[arg(long, value_name = "SIZE", value_parser = parse_size, requires = "rate_out")]
    burst_out: Option<u64>,
    /// Broadcasts, multicasts and frames for unknown receivers that may come from it, together: 1000pps
    #[arg(long, value_name = "RATE", value_parser = or_none(parse_rate), group = "what")]
    storm: Option<OrNone<Rate>>,
    /// Connections that it may have at once; 'none': as many as the configuration says
    #[arg(long, value_name = "N", value_parser = or_none(connections), group = "what")]
    max_connections: Option<OrNone<u32>>,
    /// Drop what it sends from MACs and addresses that are not its own; 'default': for attached ports
    #[arg(long, group = "what")]
    guard: Option<Guard>,
    /// A MAC, an address or a subnet that it may send from besides its own; may be given several times, and stands for all that were
    /// given before; 'none': no others
    #[arg(long = "source", value_name = "MAC|IP|CIDR", value_parser = or_none(str::parse::<Source>), group = "what")]
    sources: Vec<OrNone<Source>>,
    /// A further name in its network; may be given several times, and stands for all that were given before; '': none
    #[arg(long = "alias", value_name = "NAME", group = "what")]
    aliases: Vec<String>,
}

/// A value, or none.
#[derive(Clone, Debug)]
pub(crate) struct OrNone<T>(Option<T>);

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Guard {
    On,
    Off,
    Default,
}

impl PortSet {
    /// The port.
    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    /// What to ask swd for.
    pub(crate) fn change(&self) -> PortChange {
        let rate = |rate: &Option<OrNone<Rate>>, burst: Option<u64>| {
            rate.as_ref().map(|OrNone(rate)| rate.map(|rate| Rate { burst, ..rate }))
        };
        let sources = self.sources.iter().filter_map(|OrNone(source)| source.clone()).collect();
        let aliases = self.aliases.iter().filter(|alias| !alias.is_empty()).cloned().collect();
        PortChange {
            rate_in: rate(&self.rate_in, self.burst_in),
            rate_out: rate(&self.rate_out, self.burst_out),
            storm: rate(&self.storm, None),
            max_connections: self.max_connections.as_ref().map(|OrNone(most)| *most),
            guard: self.guard.map(|guard| match guard {
                Guard::On => Some(true),
                Guard::Off => Some(false),
                Guard::Default => None,
            }),
            sources: (!self.sources.is_empty()).then_some(sources),
            aliases: (!self.aliases.is_empty()).then_some(aliases),
        }
    }
}

fn or_none<T>(
    parse: impl Fn(&str) -> Result<T, String> + Clone,
) -> impl Fn(&str) -> Result<OrNone<T>, String> + Clone {
    move |text| if text == "none" { Ok(OrNone(None)) } else { parse(text).map(|value| OrNone(Some(value))) }
}

fn connections(text: &str) -> Result<u32, String> {
    let count = text.parse().ok().filter(|count| *count > 0);
    count.ok_or_else(|| {
        "a number of connections is wanted, 1 and more; 'none' takes the limit away".to_owned()
    })
}
