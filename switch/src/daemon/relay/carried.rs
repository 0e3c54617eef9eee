//! What one relay gives away and another goes on with: descriptors, and in a line of text what they are.

use std::net::SocketAddr;
use std::os::fd::OwnedFd;

use serde::{Deserialize, Serialize};

/// A connection or session.
#[derive(Debug)]
pub struct Carried {
    pub(super) what: What,
    pub(super) fds: Vec<OwnedFd>,
}

/// What it is. Names are short: it has to go into a message to the keeper.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq, Serialize)]
pub(super) struct What {
    #[serde(rename = "d")]
    pub(super) dialled: SocketAddr,
    #[serde(rename = "t")]
    pub(super) target: SocketAddr,
    /// Of a session; a connection's own socket knows.
    #[serde(rename = "c", default, skip_serializing_if = "Option::is_none")]
    pub(super) client: Option<SocketAddr>,
    /// Of a connection: what has ended.
    #[serde(rename = "f")]
    pub(super) flags: u8,
    /// Of a connection: bytes in the pipes, there and back.
    #[serde(rename = "h")]
    pub(super) held: [usize; 2],
}

impl Carried {
    /// As text and descriptors. The text has less than 240 bytes.
    pub fn to_parts(&self) -> (String, &[OwnedFd]) {
        // A struct of plain fields always becomes JSON.
        (serde_json::to_string(&self.what).unwrap_or_default(), &self.fds)
    }

    /// From what [`Carried::to_parts`] told; `None` if it is something else.
    pub fn from_parts(text: &str, fds: Vec<OwnedFd>) -> Option<Self> {
        Some(Self { what: serde_json::from_str(text).ok()?, fds })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_longest_text_fits_into_a_message() {
        let long: SocketAddr = "[2001:db8:1111:2222:3333:4444:5555:6666]:65535".parse().unwrap();
        let what = What { dialled: long, target: long, client: Some(long), flags: 31, held: [1 << 20; 2] };
        let carried = Carried { what: what.clone(), fds: Vec::new() };
        let (text, _) = carried.to_parts();
        assert!(text.len() < 240, "{}: {text}", text.len());
        assert_eq!(Carried::from_parts(&text, Vec::new()).unwrap().what, what);
        assert!(Carried::from_parts("{}", Vec::new()).is_none());
    }
}
