//! Questions for names, as programs ask them and as they are on the wire.

use crate::netns::Namespace;
use crate::site::{Container, GATEWAY, Site};

/// What `dig` prints for its words, asked of the gateway of `default`.
#[track_caller]
pub fn dig(ns: &Namespace, words: &[&str]) -> String {
    dig_at(ns, GATEWAY, words)
}

/// The same, asked of another.
#[track_caller]
pub fn dig_at(ns: &Namespace, server: &str, words: &[&str]) -> String {
    let server = format!("@{server}");
    let all = [&["dig", &server, "+tries=2", "+timeout=3"], words].concat();
    ns.run(&all).ok().stdout
}

/// The addresses that a name has for a container of `default`.
#[track_caller]
pub fn addresses(ns: &Namespace, name: &str) -> Vec<String> {
    dig(ns, &["+short", name]).lines().map(str::to_owned).collect()
}

/// Attaches a new container with this address.
#[track_caller]
pub fn attach(site: &Site, name: &str, address: &str, more: &[&str]) -> Container {
    let ns = Namespace::new();
    site.ctl(&[&["attach", ns.name(), "--name", name, "--ip", address], more].concat());
    Container { ns, port: name.to_owned(), address: address.to_owned() }
}

/// A question with an id, as it is on the wire.
///
/// # Panics
/// When a label is too long.
pub fn query(id: u16, name: &str, kind: u8) -> Vec<u8> {
    let mut bytes = [&id.to_be_bytes()[..], &[1, 0, 0, 1, 0, 0, 0, 0, 0, 0]].concat();
    for label in name.split('.') {
        bytes.push(u8::try_from(label.len()).expect("a label"));
        bytes.extend(label.as_bytes());
    }
    bytes.extend([0, 0, kind, 0, 1]);
    bytes
}

/// The same as it goes into a stream.
///
/// # Panics
/// When it is too long for one.
pub fn framed(message: &[u8]) -> Vec<u8> {
    let length = u16::try_from(message.len()).expect("a message");
    [&length.to_be_bytes(), message].concat()
}

/// Id, code and number of records of an answer.
///
/// # Panics
/// When it is none.
#[track_caller]
pub fn answer(bytes: &[u8]) -> (u16, u8, u16) {
    assert!(bytes.len() >= 12 && bytes[2] & 0x80 != 0, "no answer: {bytes:?}");
    (u16::from_be_bytes([bytes[0], bytes[1]]), bytes[3] & 0x0f, u16::from_be_bytes([bytes[6], bytes[7]]))
}
