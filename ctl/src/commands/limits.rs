//! Limits and guard of a port, in words.

use ctl::{
    api::{Port, PortGuard, PortLimits, Rate, Unit},
    rate::rate_text,
};

use crate::table::{self, NONE};

/// What `swctl port set` says.
pub(crate) fn changed(port: &Port) -> String {
    let aliases = match port.aliases.is_empty() {
        true => String::new(),
        false => format!("; aliases: {}", table::list(&port.aliases)),
    };
    format!("port {}: {}; sources: {}{aliases}\n", port.name, text(&port.limits), guard(&port.guard))
}

/// The limits, on a line.
pub(crate) fn text(limits: &PortLimits) -> String {
    let rates = [("in", limits.rate_in), ("out", limits.rate_out), ("storm", limits.storm)];
    let rates = rates.into_iter().filter_map(|(what, rate)| Some(format!("{what} {}", one(&rate?))));
    let most = limits.max_connections.map(|most| format!("{most} connections"));
    let all: Vec<String> = rates.chain(most).collect();
    if all.is_empty() { NONE.to_owned() } else { all.join(", ") }
}

/// What the port may send from, on a line.
pub(crate) fn guard(guard: &PortGuard) -> String {
    if !guard.on {
        return "any".to_owned();
    }
    let nets = guard.addresses.iter().map(|net| match net.prefix_len() == net.max_prefix_len() {
        true => net.addr().to_string(),
        false => net.to_string(),
    });
    table::list(&guard.macs.iter().cloned().chain(nets).collect::<Vec<_>>())
}

/// Rates both ways, as short as a column of `top` is.
pub(crate) fn short(limits: &PortLimits) -> String {
    let rate = |rate: Option<Rate>| rate.map_or_else(|| NONE.to_owned(), |rate| rate_text(&rate));
    match (limits.rate_in, limits.rate_out) {
        (None, None) => String::new(),
        (a, b) => format!("{}/{}", rate(a), rate(b)),
    }
}

fn one(rate: &Rate) -> String {
    let burst = match (rate.burst, rate.unit) {
        (None, _) => String::new(),
        (Some(burst), Unit::Bits) => format!(" (burst {})", table::bytes(burst)),
        (Some(burst), Unit::Packets) => format!(" (burst {burst})"),
    };
    format!("{}{burst}", rate_text(rate))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_for_people() {
        let rate = |per_second, unit, burst| Some(Rate { per_second, unit, burst });
        let limits = PortLimits {
            rate_in: rate(100_000_000, Unit::Bits, Some(128 << 10)),
            rate_out: None,
            storm: rate(1000, Unit::Packets, Some(50)),
            max_connections: Some(9),
        };
        assert_eq!(text(&limits), "in 100mbit (burst 128.0 KiB), storm 1kpps (burst 50), 9 connections");
        assert_eq!((short(&limits).as_str(), short(&PortLimits::default()).as_str()), ("100mbit/-", ""));
        assert_eq!(text(&PortLimits::default()), "-");
        let sources = PortGuard {
            on: true,
            macs: vec!["02:00:00:00:00:0a".into()],
            addresses: vec!["172.18.0.2/32".parse().unwrap(), "172.18.9.0/24".parse().unwrap()],
        };
        assert_eq!(guard(&sources), "02:00:00:00:00:0a, 172.18.0.2, 172.18.9.0/24");
        assert_eq!(guard(&PortGuard::default()), "any");
    }
}
