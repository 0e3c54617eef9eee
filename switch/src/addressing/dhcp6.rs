//! DHCP for IPv6 without state (RFC 8415 6.1): what else there is to know, for those who have made their address themselves.

use super::{Advertised, Terms, labels};
use crate::mac::Mac;

/// Message types (RFC 8415 7.3).
const REPLY: u8 = 7;
const INFORMATION_REQUEST: u8 = 11;

/// Options (RFC 8415 21, RFC 3646).
mod option {
    pub(super) const CLIENT: u16 = 1;
    pub(super) const SERVER: u16 = 2;
    /// Addresses and prefixes, which have no place in a question for information.
    pub(super) const IDENTITIES: [u16; 3] = [3, 4, 25];
    pub(super) const DNS_SERVERS: u16 = 23;
    pub(super) const DOMAINS: u16 = 24;
    pub(super) const REFRESH: u16 = 32;
}

/// Longest DUID (RFC 8415 11.1).
const LONGEST_NAME: usize = 130;
/// Seconds after which it should be asked for again.
const REFRESH: u32 = 1800;

/// The answer to a message, if it is a question for information.
pub fn respond(message: &[u8], terms: &Terms, of: &Advertised) -> Option<Vec<u8>> {
    let (head, mut rest) = message.split_first_chunk::<4>()?;
    if head[0] != INFORMATION_REQUEST {
        return None;
    }
    let server = server(terms.gateway_mac);
    let mut client = None;
    while let Some((&[a, b, c, d], after)) = rest.split_first_chunk::<4>() {
        let (data, next) = after.split_at_checked(usize::from(u16::from_be_bytes([c, d])))?;
        match u16::from_be_bytes([a, b]) {
            option::CLIENT => client = Some(data).filter(|name| name.len() <= LONGEST_NAME),
            option::SERVER if data != server => return None,
            kind if option::IDENTITIES.contains(&kind) => return None,
            _ => {}
        }
        rest = next;
    }
    let mut answer = vec![REPLY, head[1], head[2], head[3]];
    let mut add = |kind: u16, data: &[u8]| {
        // None is longer than a name.
        let length = u16::try_from(data.len()).unwrap_or(u16::MAX);
        answer.extend(kind.to_be_bytes());
        answer.extend(length.to_be_bytes());
        answer.extend(data);
    };
    if let Some(client) = client {
        add(option::CLIENT, client);
    }
    add(option::SERVER, &server);
    if terms.dns {
        add(option::DNS_SERVERS, &of.gateway.octets());
        add(option::DOMAINS, &labels(&terms.domain));
    }
    add(option::REFRESH, &REFRESH.to_be_bytes());
    Some(answer)
}

/// What the server calls itself: after its MAC (DUID-LL, RFC 8415 11.4).
fn server(mac: Mac) -> Vec<u8> {
    [&[0, 3, 0, 1][..], &mac.0].concat()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ask(message: &[u8]) -> Option<Vec<u8>> {
        let of = Advertised { prefix: "fd00:7::/64".parse().unwrap(), gateway: "fd00:7::1".parse().unwrap() };
        let terms = Terms {
            domain: "a.lan".into(),
            dns: true,
            mtu: 1400,
            gateway_mac: Mac([2, 0, 0, 0, 0, 1]),
            dhcp: None,
            advertised: Some(of),
        };
        respond(message, &terms, &of)
    }

    #[test]
    fn a_question_for_information_byte_by_byte() {
        let answer = ask(&[11, 1, 2, 3, 0, 1, 0, 2, 9, 9, 0, 6, 0, 2, 0, 23]).unwrap();
        let gateway: std::net::Ipv6Addr = "fd00:7::1".parse().unwrap();
        let expected = [
            &[7, 1, 2, 3, 0, 1, 0, 2, 9, 9, 0, 2, 0, 10, 0, 3, 0, 1, 2, 0, 0, 0, 0, 1, 0, 23, 0, 16][..],
            &gateway.octets(),
            &[0, 24, 0, 7, 1, b'a', 3, b'l', b'a', b'n', 0, 0, 32, 0, 4, 0, 0, 7, 8],
        ];
        assert_eq!(answer, expected.concat());
    }

    #[test]
    fn anything_else_is_nobodys() {
        for odd in [
            &[][..],
            &[11, 1, 2],
            &[1, 1, 2, 3],
            &[11, 1, 2, 3, 0, 1, 0, 9, 9],
            &[11, 1, 2, 3, 0, 2, 0, 1, 9],
            &[11, 1, 2, 3, 0, 3, 0, 0],
        ] {
            assert_eq!(ask(odd), None, "{odd:?}");
        }
        assert!(ask(&[11, 1, 2, 3]).is_some());
    }
}
