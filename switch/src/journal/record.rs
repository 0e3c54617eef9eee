//! One connection as bytes.
//!
//! ```text
//!   0 checksum of the rest; 0: nothing here        28 the last 4 bytes of each address
//!   8 place                                        44 opened: seconds since the machine started
//!  12 protocol, state, sharing (+ 16: ruled), wide 48 who sends, original and reply
//!  16 TCP: flags and shift of each end             64 ends: nanoseconds since the machine started
//!  20 ports: original source, destination, reply   72 packets and bytes, original and reply
//!     source, destination                         104
//! ```
//!
//! Addresses are in the order of the ports. Those that are not all of IPv4 have their first twelve bytes in a *wide* part of their
//! own, so that IPv4, which is most, does not pay for IPv6.
//!
//! Little-endian. The checksum begins with a number of the file's own, so a record of another file is none of this one.

use nat::{Address, Counters, Endpoint, NetworkId, OwnerId, Protocol, Record, Shared, State, Time, Tuple};

/// Bytes of a record without its wide part.
pub const SIZE: usize = 104;
/// Bytes of a wide part.
pub const WIDE: usize = 48;

/// A record's bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bytes {
    /// What each record has.
    pub narrow: [u8; SIZE],
    /// The rest of its addresses, where they are not all of IPv4.
    pub wide: Option<[u8; WIDE]>,
}

/// A name as a number that is the same in every run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Key(pub(super) u64);

impl Key {
    /// The key of a name.
    pub fn of(name: &str) -> Self {
        Self(hash(name.bytes()))
    }
}

/// Who sends packets: a port of a network, as a number that is the same in every run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Party(u64);

impl Party {
    /// Someone beyond the uplink.
    pub const OUTSIDE: Self = Self(0);
    /// Who was gone when it was written down.
    pub const GONE: Self = Self(1);

    /// A port by the names of its network and itself, neither of which has a zero byte.
    pub fn of(network: &str, port: &str) -> Self {
        // Neither of the two above.
        Self(hash(network.bytes().chain([0]).chain(port.bytes())) | 2)
    }
}

/// FNV-1a.
fn hash(bytes: impl Iterator<Item = u8>) -> u64 {
    bytes.fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3))
}

/// A record as it was found. Numbers of networks and owners in it mean nothing before they are looked up by `parties`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stored {
    /// Its place.
    pub place: u32,
    /// The connection.
    pub record: Record,
    /// Who sends, in the original direction and in reply.
    pub parties: [Party; 2],
}

/// Why bytes are no record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unreadable {
    /// The checksum is wrong: it was not written to its end, or was changed.
    Torn,
    /// It says what no record says.
    Malformed,
}

/// Sums up words so that no change of a single one goes unnoticed: each step can be undone.
pub fn checksum(seed: u64, bytes: &[u8]) -> u64 {
    let mut sum = seed ^ 0x9e37_79b9_7f4a_7c15;
    for chunk in bytes.chunks(8) {
        let mut word = [0; 8];
        word[..chunk.len()].copy_from_slice(chunk);
        sum = (sum ^ u64::from_le_bytes(word)).wrapping_mul(0xff51_afd7_ed55_8ccd).rotate_left(31);
    }
    // 0 means that there is nothing.
    sum.max(1)
}

/// The checksum of a record.
fn sum(narrow: &[u8; SIZE], wide: Option<&[u8; WIDE]>, seed: u64) -> u64 {
    let sum = checksum(seed, &narrow[8..]);
    wide.map_or(sum, |wide| checksum(sum, wide))
}

/// Writes a record.
pub fn encode(stored: &Stored, seed: u64) -> Bytes {
    let Stored { place, record, parties } = stored;
    let mut to = [0; SIZE];
    let mut wide = [0; WIDE];
    let mut put = |at: usize, bytes: &[u8]| to[at..at + bytes.len()].copy_from_slice(bytes);
    let [original, reply] = &record.tuples;
    put(8, &place.to_le_bytes());
    let sharing = shared_number(record.shared) | u8::from(record.ruled) << 4;
    let endpoints = [original.source, original.destination, reply.source, reply.destination];
    let is_wide = !endpoints.iter().all(|endpoint| endpoint.address.is_v4());
    put(12, &[original.protocol.number(), state_number(record.state), sharing, u8::from(is_wide)]);
    put(16, record.ends.as_flattened());
    for (i, endpoint) in endpoints.iter().enumerate() {
        let octets = endpoint.address.v6_octets();
        let (first, last) = octets.split_at(12);
        put(20 + 2 * i, &endpoint.port.to_le_bytes());
        put(28 + 4 * i, last);
        wide[12 * i..12 * (i + 1)].copy_from_slice(first);
    }
    let opened = u32::try_from(record.created.as_secs()).unwrap_or(u32::MAX);
    put(44, &opened.to_le_bytes());
    let [opener, answerer] = parties;
    let [went, came] = record.counters;
    let words = [
        opener.0,
        answerer.0,
        record.deadline.as_nanos(),
        went.packets,
        went.bytes,
        came.packets,
        came.bytes,
    ];
    for (i, word) in words.iter().enumerate() {
        put(48 + 8 * i, &word.to_le_bytes());
    }
    let wide = is_wide.then_some(wide);
    let sum = sum(&to, wide.as_ref(), seed);
    to[..8].copy_from_slice(&sum.to_le_bytes());
    Bytes { narrow: to, wide }
}

/// Reads a record; `None`: there is none. `wide` is what its wide part would be.
///
/// # Errors
/// When it is none of the file that `seed` is of, or says what no record says.
pub fn decode(
    bytes: &[u8; SIZE],
    wide: Option<&[u8; WIDE]>,
    seed: u64,
) -> Result<Option<Stored>, Unreadable> {
    let word = |at: usize| bytes[at..at + 8].try_into().map_or(0, u64::from_le_bytes);
    let half = |at: usize| u16::from_le_bytes([bytes[at], bytes[at + 1]]);
    let found = word(0);
    if found == 0 {
        return Ok(None);
    }
    let wide = match bytes[15] {
        0 => None,
        _ => Some(wide.ok_or(Unreadable::Torn)?),
    };
    if found != sum(bytes, wide, seed) {
        return Err(Unreadable::Torn);
    }
    let endpoint = |i: usize| {
        let last: [u8; 4] = bytes[28 + 4 * i..32 + 4 * i].try_into().unwrap_or_default();
        let address = match wide {
            None => Address::from_v4_octets(last),
            Some(wide) => {
                let mut octets = [0; 16];
                octets[..12].copy_from_slice(&wide[12 * i..12 * (i + 1)]);
                octets[12..].copy_from_slice(&last);
                Address::from_v6_octets(octets)
            }
        };
        Endpoint { address, port: half(20 + 2 * i) }
    };
    let protocol = Protocol::from(bytes[12]);
    let tuple = |i: usize| Tuple {
        source: endpoint(i),
        destination: endpoint(i + 1),
        protocol,
        network: NetworkId::OUTSIDE,
    };
    let counters = |i: usize| Counters { packets: word(72 + 16 * i), bytes: word(80 + 16 * i) };
    let found = state(bytes[13]).zip(shared(bytes[14] & 0x0f));
    let needless = wide.is_some() && (0..4).all(|i| endpoint(i).address.is_v4());
    let spare = bytes[14] >> 5 != 0 || bytes[15] > 1 || needless;
    let Some((state, shared)) = found.filter(|_| !spare) else {
        return Err(Unreadable::Malformed);
    };
    let record = Record {
        tuples: [tuple(0), tuple(2)],
        owners: [OwnerId::OUTSIDE; 2],
        state,
        ends: [[bytes[16], bytes[17]], [bytes[18], bytes[19]]],
        ruled: bytes[14] & 0x10 != 0,
        shared,
        created: Time::from_secs(u64::from(u32::from_le_bytes([bytes[44], bytes[45], bytes[46], bytes[47]]))),
        deadline: Time::from_nanos(word(64)),
        counters: [counters(0), counters(1)],
    };
    let place = u32::from_le_bytes([bytes[8], bytes[9], bytes[10], bytes[11]]);
    Ok(Some(Stored { place, record, parties: [Party(word(48)), Party(word(56))] }))
}

const fn state_number(state: State) -> u8 {
    match state {
        State::Closed => 1,
        State::Closing => 2,
        State::Established => 3,
        State::Replied => 4,
        State::Reset => 5,
        State::SynReceived => 6,
        State::SynSent => 7,
        State::Unreplied => 8,
    }
}

const fn state(number: u8) -> Option<State> {
    Some(match number {
        1 => State::Closed,
        2 => State::Closing,
        3 => State::Established,
        4 => State::Replied,
        5 => State::Reset,
        6 => State::SynReceived,
        7 => State::SynSent,
        8 => State::Unreplied,
        _ => return None,
    })
}

const fn shared_number(shared: Shared) -> u8 {
    match shared {
        Shared::Unleased => 1,
        Shared::Dependent => 2,
        Shared::Independent => 3,
        Shared::Overloaded => 4,
    }
}

const fn shared(number: u8) -> Option<Shared> {
    Some(match number {
        1 => Shared::Unleased,
        2 => Shared::Dependent,
        3 => Shared::Independent,
        4 => Shared::Overloaded,
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stored() -> Stored {
        let endpoint = |text: &str, port| Endpoint::new(text.parse::<std::net::IpAddr>().unwrap(), port);
        let tuple = |source, destination| Tuple {
            source,
            destination,
            protocol: Protocol::Tcp,
            network: NetworkId::OUTSIDE,
        };
        let server = endpoint("198.51.100.7", 443);
        Stored {
            place: 9,
            record: Record {
                tuples: [
                    tuple(endpoint("172.18.0.10", 40_000), server),
                    tuple(server, endpoint("192.0.2.1", 61_000)),
                ],
                owners: [OwnerId::OUTSIDE; 2],
                state: State::Established,
                ends: [[7, 8], [9, 10]],
                ruled: true,
                shared: Shared::Independent,
                created: Time::from_secs(5),
                deadline: Time::from_secs(u64::MAX / 2_000_000_000),
                counters: [Counters { packets: 1, bytes: 2 }, Counters { packets: 3, bytes: u64::MAX }],
            },
            parties: [Party::of("default", "web"), Party::OUTSIDE],
        }
    }

    /// The same with an inside of IPv6.
    fn wide() -> Stored {
        let mut stored = stored();
        let address = "2001:db8::10".parse::<std::net::IpAddr>().unwrap().into();
        stored.record.tuples[0].source.address = address;
        stored.record.tuples[1].destination.address = address;
        stored
    }

    fn read(bytes: &Bytes, seed: u64) -> Result<Option<Stored>, Unreadable> {
        decode(&bytes.narrow, bytes.wide.as_ref(), seed)
    }

    #[test]
    fn what_is_written_is_read() {
        for (stored, is_wide) in [(stored(), false), (wide(), true)] {
            let bytes = encode(&stored, 1);
            assert_eq!(bytes.wide.is_some(), is_wide);
            assert_eq!(read(&bytes, 1), Ok(Some(stored)));
            assert_eq!(read(&encode(&stored, 1), 2), Err(Unreadable::Torn), "it is another file's");
        }
        assert_eq!(decode(&[0; SIZE], None, 1), Ok(None));
    }

    #[test]
    fn no_changed_bit_goes_unnoticed() {
        for bytes in [encode(&stored(), 1), encode(&wide(), 1)] {
            for bit in 0..8 * SIZE {
                let mut changed = bytes;
                changed.narrow[bit / 8] ^= 1 << (bit % 8);
                assert_eq!(read(&changed, 1), Err(Unreadable::Torn), "bit {bit}");
            }
        }
        for bit in 0..8 * WIDE {
            let mut changed = encode(&wide(), 1);
            changed.wide.as_mut().unwrap()[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(read(&changed, 1), Err(Unreadable::Torn), "bit {bit}");
        }
    }

    #[test]
    fn half_a_record_is_torn() {
        for bytes in [encode(&stored(), 1), encode(&wide(), 1)] {
            for length in 1..SIZE {
                let mut half = Bytes { narrow: [0; SIZE], ..bytes };
                half.narrow[..length].copy_from_slice(&bytes.narrow[..length]);
                if half != bytes {
                    assert_eq!(read(&half, 1), Err(Unreadable::Torn), "{length} bytes");
                }
            }
        }
        assert_eq!(decode(&encode(&wide(), 1).narrow, None, 1), Err(Unreadable::Torn));
    }

    #[test]
    fn every_state_and_sharing_has_a_number() {
        for number in 1..=8 {
            assert_eq!(state(number).map(state_number), Some(number));
        }
        for number in 1..=4 {
            assert_eq!(shared(number).map(shared_number), Some(number));
        }
        assert_eq!((state(0), state(9), shared(0), shared(5)), (None, None, None, None));
    }
}
