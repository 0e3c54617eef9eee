//! Rates and sizes as people write them: the way of tc(8).

use crate::api::{Rate, Unit};

/// Units of rates: what one of them is, in bits or packets a second. Those with `i` are powers of 1024.
const RATES: [(&str, u64, Unit); 22] = [
    ("bit", 1, Unit::Bits),
    ("kbit", 1_000, Unit::Bits),
    ("mbit", 1_000_000, Unit::Bits),
    ("gbit", 1_000_000_000, Unit::Bits),
    ("tbit", 1_000_000_000_000, Unit::Bits),
    ("kibit", 1 << 10, Unit::Bits),
    ("mibit", 1 << 20, Unit::Bits),
    ("gibit", 1 << 30, Unit::Bits),
    ("tibit", 1 << 40, Unit::Bits),
    ("bps", 8, Unit::Bits),
    ("kbps", 8_000, Unit::Bits),
    ("mbps", 8_000_000, Unit::Bits),
    ("gbps", 8_000_000_000, Unit::Bits),
    ("tbps", 8_000_000_000_000, Unit::Bits),
    ("kibps", 8 << 10, Unit::Bits),
    ("mibps", 8 << 20, Unit::Bits),
    ("gibps", 8 << 30, Unit::Bits),
    ("tibps", 8 << 40, Unit::Bits),
    ("", 1, Unit::Bits),
    ("pps", 1, Unit::Packets),
    ("kpps", 1_000, Unit::Packets),
    ("mpps", 1_000_000, Unit::Packets),
];
/// Units of sizes, in bytes; `k`, `m` and `g` are powers of 1024 here, as tc has it.
const SIZES: [(&str, u64); 8] = [
    ("", 1),
    ("b", 1),
    ("k", 1 << 10),
    ("kb", 1 << 10),
    ("m", 1 << 20),
    ("mb", 1 << 20),
    ("g", 1 << 30),
    ("gb", 1 << 30),
];
/// The least rate in bits: below it a full frame would take longer than a second.
pub const LEAST_BITS: u64 = 16_000;
/// The most of anything: 10 Tbit/s.
pub const MOST: u64 = 10_000_000_000_000;

/// A rate: `100mbit`, `1.5gbit`, `12mbps` (bytes), `1000pps`.
///
/// # Errors
/// What to write instead.
pub fn parse_rate(text: &str) -> Result<Rate, String> {
    let (number, unit) = split(text);
    let found = RATES.iter().find(|(name, _, _)| name.eq_ignore_ascii_case(unit));
    let Some((_, factor, unit)) = found else {
        return Err("write a rate as tc does, 100mbit or 12mbps (bytes), or packets: 1000pps".to_owned());
    };
    let per_second = times(number, *factor)
        .ok_or_else(|| "the number is missing; write 100mbit or 1000pps, for example".to_owned())?;
    let least = if *unit == Unit::Bits { LEAST_BITS } else { 1 };
    if !(least..=MOST).contains(&per_second) {
        return Err("a rate is 16kbit to 10tbit, or 1pps and more; 'none' takes a limit away".to_owned());
    }
    Ok(Rate { per_second, unit: *unit, burst: None })
}

/// A size: `256k`, `1mb`, `64000`; for rates in packets it is a number of them.
///
/// # Errors
/// What to write instead.
pub fn parse_size(text: &str) -> Result<u64, String> {
    let (number, unit) = split(text);
    let factor = SIZES.iter().find(|(name, _)| name.eq_ignore_ascii_case(unit));
    let size =
        factor.and_then(|(_, factor)| times(number, *factor)).filter(|size| (1..=1 << 30).contains(size));
    size.ok_or_else(|| "write a size as tc does: 64000, 256k or 1m; at most 1g".to_owned())
}

/// A rate, as short as it can be said exactly.
pub fn rate_text(rate: &Rate) -> String {
    let wanted = match rate.unit {
        Unit::Bits => ["tbit", "gbit", "mbit", "kbit", "bit"].as_slice(),
        Unit::Packets => ["mpps", "kpps", "pps"].as_slice(),
    };
    let fits = |(name, factor, _): &&(&str, u64, Unit)| {
        wanted.contains(name) && rate.per_second >= *factor && rate.per_second.is_multiple_of(*factor)
    };
    match RATES.iter().filter(fits).max_by_key(|(_, factor, _)| *factor) {
        Some((name, factor, _)) => format!("{}{name}", rate.per_second / factor),
        None => rate.per_second.to_string(),
    }
}

fn split(text: &str) -> (&str, &str) {
    let end = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    text.split_at(end)
}

/// A decimal number times a factor, exactly; at most nine decimals.
fn times(number: &str, factor: u64) -> Option<u64> {
    let (whole, part) = number.split_once('.').unwrap_or((number, ""));
    if whole.is_empty() && part.is_empty() || part.len() > 9 {
        return None;
    }
    let digits = |text: &str| if text.is_empty() { Some(0) } else { text.parse::<u128>().ok() };
    let scale = 10_u128.pow(u32::try_from(part.len()).ok()?);
    let all = digits(whole)?.checked_mul(scale)?.checked_add(digits(part)?)?;
    u64::try_from(all.checked_mul(factor.into())? / scale).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates_are_read_as_tc_does() {
        for (text, per_second) in [
            ("100mbit", 100_000_000),
            ("1.5gbit", 1_500_000_000),
            ("1Gbit", 1_000_000_000),
            ("125kbps", 1_000_000),
            ("64kibit", 65_536),
            ("1000000", 1_000_000),
            ("16kbit", 16_000),
        ] {
            let rate = Rate { per_second, unit: Unit::Bits, burst: None };
            assert_eq!(parse_rate(text), Ok(rate), "{text}");
        }
        let packets = Rate { per_second: 1500, unit: Unit::Packets, burst: None };
        assert_eq!(parse_rate("1.5kpps"), Ok(packets));
        for wrong in [
            "",
            "mbit",
            "10mb",
            "-1mbit",
            "1..5mbit",
            "0",
            "0pps",
            "15kbit",
            "100tbit",
            "99999999999999999999gbit",
        ] {
            assert!(parse_rate(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn rates_are_written_as_they_are_read() {
        for text in ["100mbit", "1500mbit", "1gbit", "16001bit", "1000001bit", "1kpps", "7pps", "10tbit"] {
            assert_eq!(rate_text(&parse_rate(text).unwrap()), text);
        }
    }

    #[test]
    fn sizes() {
        for (text, size) in [("64000", 64_000), ("256k", 256 << 10), ("1mb", 1 << 20), ("1.5k", 1536)] {
            assert_eq!(parse_size(text), Ok(size), "{text}");
        }
        for wrong in ["", "k", "0", "1kbit", "2g"] {
            assert!(parse_size(wrong).is_err(), "{wrong}");
        }
    }
}
