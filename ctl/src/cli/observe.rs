//! The command lines of `swctl trace`, `capture` and `mirror`.

use std::path::PathBuf;

use clap::{Args, Subcommand, builder::NonEmptyStringValueParser};
use ctl::api::{CaptureFormat, CaptureSpec, MirrorKind, Watched, Ways};

#[derive(Args, Debug)]
pub(crate) struct Capture {
    /// PORT, 'network NAME', 'uplink' or 'drops', and a filter
    #[arg(value_name = "WHAT [FILTER]", required = true)]
    words: Vec<String>,
    /// Write pcapng to this file; '-' is standard output
    #[arg(short = 'w', value_name = "FILE")]
    pub(crate) write: Option<PathBuf>,
    /// Stop after this many frames
    #[arg(short = 'c', value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    count: Option<u64>,
    /// Keep this many bytes of each frame [default: all]
    #[arg(short = 's', value_name = "BYTES", value_parser = clap::value_parser!(u32).range(1..))]
    snaplen: Option<u32>,
}

impl Capture {
    /// What to ask swd for.
    pub(crate) fn spec(&self) -> Result<CaptureSpec, String> {
        // A filter may be one word to the shell or several.
        let mut words = self.words.iter().flat_map(|w| w.split_whitespace());
        let first = words.next().unwrap_or_default();
        let mut named =
            || words.next().map(str::to_owned).ok_or_else(|| format!("'{first}' wants a name behind it"));
        let (what, name) = match first {
            "drops" => (Watched::Drops, None),
            "uplink" => (Watched::Uplink, None),
            "network" => (Watched::Network, Some(named()?)),
            "port" => (Watched::Port, Some(named()?)),
            port => (Watched::Port, Some(port.to_owned())),
        };
        let filter = words.collect::<Vec<_>>().join(" ");
        if !filter.trim().is_empty() {
            filter.parse::<ctl::filter::Filter>().map_err(|e| format!("filter: {e}"))?;
        }
        Ok(CaptureSpec {
            what,
            name,
            filter: (!filter.trim().is_empty()).then_some(filter),
            snaplen: self.snaplen,
            count: self.count,
            format: if self.write.is_some() { CaptureFormat::Pcapng } else { CaptureFormat::Text },
        })
    }
}

#[derive(Debug, Subcommand)]
pub(crate) enum Mirror {
    /// Send copies of what passes a port, or a network, to a port; for an existing mirror: change its ways
    Add(MirrorArgs),
    /// List the mirrors
    Ls,
    /// Remove a mirror
    Rm(MirrorArgs),
}

#[derive(Args, Debug)]
pub(crate) struct MirrorArgs {
    /// The port that is mirrored; with --network, the network
    #[arg(value_parser = NonEmptyStringValueParser::new())]
    from: String,
    /// The port that gets the copies
    #[arg(value_parser = NonEmptyStringValueParser::new())]
    to: String,
    /// FROM is a network
    #[arg(long)]
    network: bool,
    /// Only what comes from it
    #[arg(long = "in", conflicts_with = "only_out")]
    only_in: bool,
    /// Only what is sent to it
    #[arg(long = "out")]
    only_out: bool,
}

impl MirrorArgs {
    /// What to ask swd for.
    pub(crate) fn spec(self) -> ctl::api::Mirror {
        let ways = match (self.only_in, self.only_out) {
            (true, _) => Ways::In,
            (_, true) => Ways::Out,
            _ => Ways::Both,
        };
        let kind = if self.network { MirrorKind::Network } else { MirrorKind::Port };
        ctl::api::Mirror { kind, from: self.from, to: self.to, ways }
    }
}

#[derive(Args, Debug)]
pub(crate) struct Trace {
    /// The port that the packet comes from, 'uplink', or the name of an uplink
    #[arg(value_parser = NonEmptyStringValueParser::new())]
    pub(crate) from: String,
    /// The packet, in words
    #[arg(value_parser = packet_text, required_unless_present_any = ["pcap", "live"])]
    pub(crate) packet: Option<String>,
    /// Frames from a pcap or pcapng file, each after what the ones before it did
    #[arg(long, value_name = "FILE", conflicts_with = "packet")]
    pub(crate) pcap: Option<PathBuf>,
    /// Real frames as they come, those that pass a filter as for 'swctl capture'
    #[arg(long, value_name = "FILTER", num_args = 0..=1, default_missing_value = "", value_parser = filter_text, conflicts_with_all = ["packet", "pcap"])]
    pub(crate) live: Option<String>,
    /// With --live, stop after this many frames
    #[arg(short = 'c', value_name = "N", requires = "live", value_parser = clap::value_parser!(u64).range(1..))]
    pub(crate) count: Option<u64>,
}

/// Checked here, told to swd as it is.
fn filter_text(text: &str) -> Result<String, String> {
    match text.trim() {
        "" => Ok(String::new()),
        text => text.parse::<ctl::filter::Filter>().map(|_| text.to_owned()).map_err(|e| e.to_string()),
    }
}

/// Checked here, told to swd as it is.
fn packet_text(text: &str) -> Result<String, String> {
    text.parse::<ctl::packet::Packet>().map(|_| text.to_owned()).map_err(|e| e.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec(words: &str) -> Result<CaptureSpec, String> {
        let words = words.split('|').map(str::to_owned).collect();
        Capture { words, write: None, count: None, snaplen: None }.spec()
    }

    #[test]
    fn what_is_captured_and_what_is_a_filter() {
        let told = |words| spec(words).map(|s| (s.what, s.name, s.filter)).unwrap();
        let some = |text: &str| Some(text.to_owned());
        assert_eq!(told("web"), (Watched::Port, some("web"), None));
        assert_eq!(told("web|tcp port 80"), (Watched::Port, some("web"), some("tcp port 80")));
        assert_eq!(told("network|default|arp"), (Watched::Network, some("default"), some("arp")));
        assert_eq!(told("uplink|host|1.1.1.1"), (Watched::Uplink, None, some("host 1.1.1.1")));
        assert_eq!(told("drops"), (Watched::Drops, None, None));
        assert_eq!(told("port|drops"), (Watched::Port, some("drops"), None));
        assert!(spec("network").unwrap_err().contains("wants a name"));
        assert!(spec("web|tcp|80").unwrap_err().contains("filter: '80'"));
    }
}
