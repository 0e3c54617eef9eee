//! MAC addresses.

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

/// A 48-bit MAC address.
#[derive(Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Mac(pub [u8; 6]);

impl Mac {
    /// ff:ff:ff:ff:ff:ff.
    pub const BROADCAST: Self = Self([0xff; 6]);
    /// 00:00:00:00:00:00: never a valid source.
    pub const ZERO: Self = Self([0; 6]);

    /// The group bit is set: multicast or broadcast.
    pub const fn is_multicast(self) -> bool {
        self.0[0] & 1 != 0
    }

    /// One of 01:80:C2:00:00:00 to 0F, which a bridge never forwards (IEEE 802.1D 7.12.6).
    pub const fn is_link_local(self) -> bool {
        matches!(self.0, [0x01, 0x80, 0xc2, 0, 0, 0..=0x0f])
    }

    /// The address of a multicast group (RFC 1112 6.4, RFC 2464 7), or broadcast for any other address.
    pub const fn group(address: IpAddr) -> Self {
        match address {
            IpAddr::V4(v4) if v4.is_multicast() => {
                let [_, b, c, d] = v4.octets();
                Self([0x01, 0x00, 0x5e, b & 0x7f, c, d])
            }
            IpAddr::V6(v6) if v6.is_multicast() => {
                let [.., a, b, c, d] = v6.octets();
                Self([0x33, 0x33, a, b, c, d])
            }
            _ => Self::BROADCAST,
        }
    }

    /// A locally administered unicast address made from `seed`: the same seed gives the same address.
    pub fn from_seed(seed: &[u8]) -> Self {
        // FNV-1a, so that an address does not change between versions of a hasher of somebody else's.
        let mut hash: u64 = 0xcbf2_9ce4_8422_2325;
        for byte in seed {
            hash = (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3);
        }
        let [a, b, c, d, e, f, ..] = hash.to_be_bytes();
        Self([(a & 0xfc) | 0x02, b, c, d, e, f])
    }
}

impl fmt::Display for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

impl fmt::Debug for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// A text that is not a MAC address.
#[derive(Debug, thiserror::Error)]
#[error("'{0}' is not a MAC address (six hex bytes with colons, as in 02:00:00:00:00:0a)")]
pub struct ParseMacError(String);

impl FromStr for Mac {
    type Err = ParseMacError;

    fn from_str(s: &str) -> Result<Self, Self::Err> {
        let mut mac = [0; 6];
        let mut parts = s.split(':');
        for byte in &mut mac {
            let part = parts.next().filter(|p| p.len() == 2 && p.bytes().all(|b| b.is_ascii_hexdigit()));
            *byte = part
                .and_then(|p| u8::from_str_radix(p, 16).ok())
                .ok_or_else(|| ParseMacError(s.to_owned()))?;
        }
        if parts.next().is_some() {
            return Err(ParseMacError(s.to_owned()));
        }
        Ok(Self(mac))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parses_what_it_prints_and_nothing_else() {
        let mac: Mac = "02:00:5e:10:00:ff".parse().unwrap();
        assert_eq!(mac, Mac([0x02, 0, 0x5e, 0x10, 0, 0xff]));
        assert_eq!(mac.to_string(), "02:00:5e:10:00:ff");
        for bad in [
            "",
            "02:00:5e:10:00",
            "02:00:5e:10:00:ff:00",
            "2:0:5e:10:0:ff",
            "+2:00:5e:10:00:ff",
            "zz:00:5e:10:00:ff",
        ] {
            assert!(bad.parse::<Mac>().is_err(), "{bad}");
        }
    }

    #[test]
    fn classes() {
        assert!(Mac::BROADCAST.is_multicast());
        assert!("01:80:c2:00:00:0f".parse::<Mac>().unwrap().is_link_local());
        assert!(!"01:80:c2:00:00:10".parse::<Mac>().unwrap().is_link_local());
        let made = Mac::from_seed(b"default");
        assert!(!made.is_multicast() && made.0[0] & 2 == 2);
        assert_ne!(made, Mac::from_seed(b"other"));
        for (address, mac) in [
            ("224.0.0.251", "01:00:5e:00:00:fb"),
            ("239.129.2.3", "01:00:5e:01:02:03"),
            ("ff02::1:ff00:1", "33:33:ff:00:00:01"),
            ("255.255.255.255", "ff:ff:ff:ff:ff:ff"),
        ] {
            assert_eq!(Mac::group(address.parse().unwrap()).to_string(), mac);
        }
    }
}
