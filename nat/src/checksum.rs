//! The Internet checksum: full sums, incremental updates and the partial-checksum rule.
//!
//! All arithmetic is one's complement over 16-bit big-endian words (RFC 1071). An update replaces words without reading
//! the rest of the packet: with the old and the new word, `HC' = ~(~HC + ~m + m')` (RFC 1624, equation 3).
//!
//! A packet whose checksum a device is still to finish (`VIRTIO_NET_HDR_F_NEEDS_CSUM`, Linux `CHECKSUM_PARTIAL`) carries
//! in its checksum field the sum of the pseudo-header alone, *not complemented*. A change of address is a change of the
//! pseudo-header and updates the field with the sign turned round; a change of a port is in the part that the device
//! will sum itself, and must leave the field alone.

use crate::tuple::{Address, Protocol};

/// Who has summed the transport checksum of a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Checksum {
    /// The field holds the finished checksum.
    Complete,
    /// The field holds the pseudo-header's sum, not complemented; a device finishes it (`NEEDS_CSUM`).
    Partial,
}

/// The one's complement sum of `bytes`, folded, not complemented. An odd last byte counts as the high one of a word.
pub fn sum(bytes: &[u8]) -> u16 {
    // 65,535 bytes sum to less than 2^31; longer input is folded on the way.
    let mut total = 0;
    for part in bytes.chunks(0xfffe) {
        let (words, rest) = part.as_chunks::<2>();
        let mut part_total: u32 = words.iter().map(|&word| u32::from(u16::from_be_bytes(word))).sum();
        if let [last] = rest {
            part_total += u32::from(*last) << 8;
        }
        total += u32::from(fold(part_total));
        total = u32::from(fold(total));
    }
    fold(total)
}

/// The one's complement sum of a pseudo-header (RFC 9293 section 3.1, RFC 8200 section 8.1), not complemented.
///
/// `length` is that of the transport header and its payload, in bytes.
pub fn pseudo_header_sum(source: Address, destination: Address, protocol: Protocol, length: u32) -> u16 {
    let addresses = if source.is_v4() {
        u32::from(sum(&source.v4_octets())) + u32::from(sum(&destination.v4_octets()))
    } else {
        u32::from(sum(&source.v6_octets())) + u32::from(sum(&destination.v6_octets()))
    };
    fold(addresses + u32::from(protocol.number()) + (length >> 16) + (length & 0xffff))
}

/// A change of some words of a packet, to be applied to every checksum that covers them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Delta(u32);

impl Delta {
    /// Adds the replacement of the 16-bit word `old` by `new`. The word must start at an even offset.
    #[must_use]
    pub const fn word(self, old: u16, new: u16) -> Self {
        Self(fold(self.0 + !old as u32 + new as u32) as u32)
    }

    /// Adds the replacement of one address by another of the same family.
    #[must_use]
    pub fn address(self, old: Address, new: Address) -> Self {
        // The mapped prefix of an IPv4 address is equal on both sides and cancels out.
        let (old, new) = (sum(&old.v6_octets()), sum(&new.v6_octets()));
        self.word(old, new)
    }

    /// Adds another change.
    #[must_use]
    pub const fn and(self, other: Self) -> Self {
        Self(fold(self.0 + other.0) as u32)
    }

    /// The checksum that `checksum` becomes by this change (RFC 1624, equation 3).
    #[must_use]
    pub const fn update(self, checksum: u16) -> u16 {
        !fold(!checksum as u32 + self.0)
    }

    /// The pseudo-header sum of a partial checksum that `sum` becomes by this change of its addresses.
    #[must_use]
    pub const fn update_partial(self, sum: u16) -> u16 {
        fold(sum as u32 + self.0)
    }
}

/// Folds the carries of a sum back into sixteen bits.
#[expect(clippy::cast_possible_truncation, reason = "two folds leave sixteen bits")]
const fn fold(sum: u32) -> u16 {
    let sum = (sum & 0xffff) + (sum >> 16);
    ((sum & 0xffff) + (sum >> 16)) as u16
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn sums_the_example_of_rfc_1071() {
        assert_eq!(sum(&[0x00, 0x01, 0xf2, 0x03, 0xf4, 0xf5, 0xf6, 0xf7]), 0xddf2);
        assert_eq!(sum(&[0x12]), 0x1200);
        assert_eq!(sum(&[]), 0);
    }

    #[test]
    fn updates_the_example_of_rfc_1624() {
        // Section 4: HC = 0xdd2f, m = 0x5555 -> m' = 0x3285 gives 0x0000, where RFC 1141 gave 0xffff.
        assert_eq!(Delta::default().word(0x5555, 0x3285).update(0xdd2f), 0x0000);
    }

    #[test]
    fn does_not_overflow_on_the_longest_input() {
        assert_eq!(sum(&vec![0xff; 1 << 20]), 0xffff);
    }

    #[test]
    fn a_partial_sum_takes_the_change_uncomplemented() {
        let old = Address::from(Ipv4Addr::new(172, 18, 0, 10));
        let new = Address::from(Ipv4Addr::new(192, 0, 2, 1));
        let peer = Address::from(Ipv4Addr::new(198, 51, 100, 7));
        let before = pseudo_header_sum(old, peer, Protocol::Tcp, 60_000);
        let after = pseudo_header_sum(new, peer, Protocol::Tcp, 60_000);
        assert_eq!(Delta::default().address(old, new).update_partial(before), after);
    }

    proptest! {
        #[test]
        fn an_update_equals_a_new_sum(
            mut bytes in proptest::collection::vec(any::<u8>(), 2..64),
            at in any::<prop::sample::Index>(),
            new in any::<u16>(),
        ) {
            if bytes.len() % 2 == 1 { bytes.pop(); }
            let at = at.index(bytes.len() / 2) * 2;
            let before = !sum(&bytes);
            let old = u16::from_be_bytes([bytes[at], bytes[at + 1]]);
            bytes[at..at + 2].copy_from_slice(&new.to_be_bytes());
            let updated = Delta::default().word(old, new).update(before);
            // Both verify: a sum over data and checksum is all ones, unless everything is zero.
            bytes.extend(updated.to_be_bytes());
            prop_assert!(matches!(sum(&bytes), 0xffff | 0));
        }
    }
}
