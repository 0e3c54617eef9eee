//! One connection as bytes.
//!
//! ```text
//!   0 checksum of the rest; 0: nothing here        32 addresses: original source, destination, reply source, destination
//!   8 place                                        96 keys: original network, port, reply network, port
//!  12 protocol, state, sharing (+ 16: ruled), 0   128 opened, ends: nanoseconds since the machine started
//!  16 TCP: flags and shift of each end            144 packets and bytes, original and reply
//!  20 ports, in the order of the addresses        176
//! ```
//!
//! Little-endian. The checksum begins with a number of the file's own, so a record of another file is none of this one.

use nat::{Address, Counters, Endpoint, NetworkId, OwnerId, Protocol, Record, Shared, State, Time, Tuple};

/// Bytes of a record.
pub const SIZE: usize = 176;

/// The name of a port or network, as a number that is the same in every run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Key(pub(super) u64);

impl Key {
    const OUTSIDE: Self = Self(0);
    /// Of something that was gone when it was written down.
    pub const GONE: Self = Self(1);

    /// The key of a name (FNV-1a).
    pub fn of(name: &str) -> Self {
        let hash = name.bytes().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
            (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
        });
        // Neither of the two above.
        Self(hash | 2)
    }
}

/// Who sends packets: a port of a network.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Party {
    /// The network.
    pub network: Key,
    /// The port.
    pub port: Key,
}

impl Party {
    /// Someone beyond the uplink.
    pub const OUTSIDE: Self = Self { network: Key::OUTSIDE, port: Key::OUTSIDE };
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

/// Writes a record.
pub fn encode(stored: &Stored, seed: u64) -> [u8; SIZE] {
    let Stored { place, record, parties } = stored;
    let mut to = [0; SIZE];
    let mut put = |at: usize, bytes: &[u8]| to[at..at + bytes.len()].copy_from_slice(bytes);
    let [original, reply] = &record.tuples;
    put(8, &place.to_le_bytes());
    let sharing = shared_number(record.shared) | u8::from(record.ruled) << 4;
    put(12, &[original.protocol.number(), state_number(record.state), sharing, 0]);
    put(16, record.ends.as_flattened());
    let endpoints = [original.source, original.destination, reply.source, reply.destination];
    for (i, endpoint) in endpoints.iter().enumerate() {
        put(20 + 2 * i, &endpoint.port.to_le_bytes());
        put(32 + 16 * i, &endpoint.address.v6_octets());
    }
    let [opener, answerer] = parties;
    let [went, came] = record.counters;
    let words = [
        opener.network.0,
        opener.port.0,
        answerer.network.0,
        answerer.port.0,
        record.created.as_nanos(),
        record.deadline.as_nanos(),
        went.packets,
        went.bytes,
        came.packets,
        came.bytes,
    ];
    for (i, word) in words.iter().enumerate() {
        put(96 + 8 * i, &word.to_le_bytes());
    }
    let sum = checksum(seed, &to[8..]);
    to[..8].copy_from_slice(&sum.to_le_bytes());
    to
}

/// Reads a record; `None`: there is none.
///
/// # Errors
/// When it is none of the file that `seed` is of, or says what no record says.
pub fn decode(bytes: &[u8; SIZE], seed: u64) -> Result<Option<Stored>, Unreadable> {
    let word = |at: usize| bytes[at..at + 8].try_into().map_or(0, u64::from_le_bytes);
    let half = |at: usize| u16::from_le_bytes([bytes[at], bytes[at + 1]]);
    let sum = word(0);
    if sum == 0 {
        return Ok(None);
    }
    if sum != checksum(seed, &bytes[8..]) {
        return Err(Unreadable::Torn);
    }
    let endpoint = |i: usize| {
        let octets: [u8; 16] = bytes[32 + 16 * i..48 + 16 * i].try_into().unwrap_or_default();
        Endpoint { address: Address::from_v6_octets(octets), port: half(20 + 2 * i) }
    };
    let protocol = Protocol::from(bytes[12]);
    let party = |i: usize| Party { network: Key(word(96 + 16 * i)), port: Key(word(104 + 16 * i)) };
    let parties = [party(0), party(1)];
    let halves_agree = |p: &Party| (p.network == Key::OUTSIDE) == (p.port == Key::OUTSIDE);
    let tuple = |i: usize| Tuple {
        source: endpoint(i),
        destination: endpoint(i + 1),
        protocol,
        network: NetworkId::OUTSIDE,
    };
    let counters = |i: usize| Counters { packets: word(144 + 16 * i), bytes: word(152 + 16 * i) };
    let found = state(bytes[13]).zip(shared(bytes[14] & 0x0f));
    let spare = bytes[14] >> 5 != 0 || bytes[15] != 0 || bytes[28..32] != [0; 4];
    let Some((state, shared)) = found.filter(|_| !spare && parties.iter().all(halves_agree)) else {
        return Err(Unreadable::Malformed);
    };
    let record = Record {
        tuples: [tuple(0), tuple(2)],
        owners: [OwnerId::OUTSIDE; 2],
        state,
        ends: [[bytes[16], bytes[17]], [bytes[18], bytes[19]]],
        ruled: bytes[14] & 0x10 != 0,
        shared,
        created: Time::from_nanos(word(128)),
        deadline: Time::from_nanos(word(136)),
        counters: [counters(0), counters(1)],
    };
    let place = u32::from_le_bytes([bytes[8], bytes[9], bytes[10], bytes[11]]);
    Ok(Some(Stored { place, record, parties }))
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
            parties: [Party { network: Key::of("default"), port: Key::of("web") }, Party::OUTSIDE],
        }
    }

    #[test]
    fn what_is_written_is_read() {
        let stored = stored();
        assert_eq!(decode(&encode(&stored, 1), 1), Ok(Some(stored)));
        assert_eq!(decode(&[0; SIZE], 1), Ok(None));
        assert_eq!(decode(&encode(&stored, 1), 2), Err(Unreadable::Torn), "it is another file's");
    }

    #[test]
    fn no_changed_bit_goes_unnoticed() {
        let bytes = encode(&stored(), 1);
        for bit in 0..8 * SIZE {
            let mut changed = bytes;
            changed[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(decode(&changed, 1), Err(Unreadable::Torn), "bit {bit}");
        }
    }

    #[test]
    fn half_a_record_is_torn() {
        let bytes = encode(&stored(), 1);
        for length in 1..SIZE {
            let mut half = [0; SIZE];
            half[..length].copy_from_slice(&bytes[..length]);
            if half != bytes {
                assert_eq!(decode(&half, 1), Err(Unreadable::Torn), "{length} bytes");
            }
        }
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
