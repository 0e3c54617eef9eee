//! What users write in words: packets of `swctl trace`, filters of `swctl capture`, rates, ports.

use std::fmt::Display;

use ctl::filter::Filter;
use ctl::packet::Packet;
use ctl::{rate, spec};
use switch::mac::Mac;
use switch::observe::matcher;

/// Lines: each is read as everything, and a filter that is understood is held against the other lines as frames.
///
/// # Panics
/// When something is wrong with swd.
pub fn words(data: &[u8]) {
    let lines: Vec<&[u8]> = data.split(|b| *b == b'\n').take(32).collect();
    for line in &lines {
        let Ok(text) = std::str::from_utf8(line) else { continue };
        if let Some(filter) = in_one_line(text.parse::<Filter>()) {
            for frame in &lines {
                let both = [
                    matcher::matches(&filter, frame),
                    !matcher::matches(&Filter::Not(Box::new(filter.clone())), frame),
                ];
                assert_eq!(both[0], both[1], "a frame fits a filter and its opposite: {filter:?}");
            }
        }
        if let Some(packet) = in_one_line(text.parse::<Packet>()) {
            assert_eq!(packet.source.is_ipv4(), packet.destination.is_ipv4(), "two families: {packet:?}");
        }
        if let Some(rate) = in_one_line(rate::parse_rate(text)) {
            let again = rate::parse_rate(&rate::rate_text(&rate)).expect("what is shown can be written");
            assert_eq!(again.per_second, rate.per_second, "{text:?}");
        }
        let _ = in_one_line(rate::parse_size(text));
        if let Some(ports) = in_one_line(spec::parse_published(text)) {
            assert!(ports.first > 0 && ports.first <= ports.last, "{ports:?}");
        }
        if let Some((_, first, last)) = in_one_line(spec::parse_target(text)) {
            assert!(first > 0 && first <= last, "{text:?}");
        }
        if spec::check_ifname(text).is_ok() {
            assert!(text.len() < 16 && !text.contains(['/', ' ']), "{text:?} is no interface's name");
        }
        if let Ok(mac) = text.parse::<Mac>() {
            assert_eq!(mac.to_string().parse::<Mac>().expect("what is shown can be written"), mac);
        }
    }
}

/// What is refused is refused in one line.
#[track_caller]
fn in_one_line<T, E: Display>(read: Result<T, E>) -> Option<T> {
    read.map_err(|e| assert_eq!(e.to_string().lines().count(), 1, "{:?}", e.to_string())).ok()
}
