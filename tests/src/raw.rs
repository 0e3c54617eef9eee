//! Raw frames on an interface of a namespace, and the frames that tests send.
//!
//! The socket is `tools/raw.py`'s (Python's AF_PACKET): no code of swd's is in the way of what is measured.

use std::io::{BufRead, BufReader, Write};
use std::process::{Child, ChildStdin, Stdio};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use etherparse::PacketBuilder;

use crate::netns::Namespace;
use crate::process::{python, tool};

/// A frame that came in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Frame {
    /// Its length.
    pub length: usize,
    /// Its bytes: the first ones only, where the socket was opened so.
    pub bytes: Vec<u8>,
}

impl Frame {
    /// Does it contain these bytes?
    pub fn contains(&self, needle: &[u8]) -> bool {
        self.bytes.windows(needle.len()).any(|w| w == needle)
    }

    /// Its EtherType.
    pub fn ethertype(&self) -> u16 {
        u16::from_be_bytes([self.bytes[12], self.bytes[13]])
    }
}

#[derive(Debug, Default)]
struct Seen {
    frames: Vec<Frame>,
    flushed: usize,
    opened: bool,
    ended: bool,
}

/// A raw socket on an interface. It sees what comes in from the moment it is opened; not what goes out.
#[derive(Debug)]
pub struct Raw {
    child: Child,
    stdin: ChildStdin,
    seen: Arc<(Mutex<Seen>, Condvar)>,
}

impl Raw {
    /// Opens one.
    ///
    /// # Panics
    /// When that fails.
    #[track_caller]
    pub fn open(ns: &Namespace, ifname: &str) -> Self {
        Self::open_with(ns, ifname, &[])
    }

    /// Opens one that keeps only the first bytes of frames, and only of frames of `min` bytes and more.
    ///
    /// # Panics
    /// When that fails.
    #[track_caller]
    pub fn open_for_lengths(ns: &Namespace, ifname: &str, min: usize) -> Self {
        Self::open_with(ns, ifname, &["--head", "64", "--min", &min.to_string()])
    }

    #[track_caller]
    fn open_with(ns: &Namespace, ifname: &str, options: &[&str]) -> Self {
        let mut command = ns.command(&[python().to_str().expect("UTF-8")]);
        command.arg(tool("raw.py")).arg(ifname).args(options);
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("start raw.py");
        let stdin = child.stdin.take().expect("piped");
        let stdout = BufReader::new(child.stdout.take().expect("piped"));
        let seen = Arc::<(Mutex<Seen>, Condvar)>::default();
        let shared = Arc::clone(&seen);
        thread::spawn(move || {
            for line in stdout.lines() {
                let Ok(line) = line else { break };
                note(&shared, |seen| match line.split_once(' ') {
                    Some(("r", rest)) => {
                        let (length, hex) = rest.split_once(' ').expect("r LENGTH HEX");
                        let length = length.parse().expect("a length");
                        seen.frames.push(Frame { length, bytes: unhex(hex) });
                    }
                    None if line == "e" => seen.flushed += 1,
                    None if line == "open" => seen.opened = true,
                    _ => {}
                });
            }
            note(&shared, |seen| seen.ended = true);
        });
        let raw = Self { child, stdin, seen };
        let opened =
            raw.wait(Duration::from_secs(20), |seen| (seen.opened || seen.ended).then_some(seen.opened));
        assert_eq!(opened, Some(true), "raw.py does not open {ifname} in {}", ns.name());
        raw
    }

    fn wait<T>(&self, timeout: Duration, mut found: impl FnMut(&mut Seen) -> Option<T>) -> Option<T> {
        let end = Instant::now() + timeout;
        let mut seen = lock(&self.seen.0);
        loop {
            if let Some(found) = found(&mut seen) {
                return Some(found);
            }
            let left = end.checked_duration_since(Instant::now())?;
            seen = self.seen.1.wait_timeout(seen, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    fn write(&mut self, line: &str) {
        self.stdin.write_all(line.as_bytes()).expect("raw.py runs");
    }

    /// Sends a frame.
    pub fn send(&mut self, frame: &[u8]) {
        let line = format!("s {}\n", hex(frame));
        self.write(&line);
    }

    /// Sends frames, and returns when the kernel has them.
    ///
    /// # Panics
    /// When that takes longer than a minute.
    #[track_caller]
    pub fn send_all<'a>(&mut self, frames: impl IntoIterator<Item = &'a [u8]>) {
        for frame in frames {
            self.send(frame);
        }
        self.flush();
    }

    /// Sends `count` frames like this one, each with a source MAC of its own: `02:seed:` and its number in 4 bytes.
    /// Returns when the kernel has them.
    ///
    /// # Panics
    /// When that takes longer than two minutes.
    #[track_caller]
    pub fn send_from_many(&mut self, count: u32, seed: u8, frame: &[u8]) {
        let line = format!("m {count} {seed} {}\n", hex(frame));
        self.write(&line);
        self.flush();
    }

    #[track_caller]
    fn flush(&mut self) {
        let before = lock(&self.seen.0).flushed;
        self.write("e\n");
        let done = self.wait(Duration::from_secs(120), |seen| (seen.flushed > before).then_some(()));
        assert!(done.is_some(), "raw.py did not send everything in 120 s");
    }

    /// Waits for a frame that `matches`; earlier ones count too.
    pub fn receive(&self, timeout: Duration, matches: impl Fn(&Frame) -> bool) -> Option<Frame> {
        self.wait(timeout, |seen| seen.frames.iter().find(|f| matches(f)).cloned())
    }

    /// A frame that `matches` must come within five seconds.
    ///
    /// # Panics
    /// When it does not.
    #[track_caller]
    pub fn expect(&self, what: &str, matches: impl Fn(&Frame) -> bool) -> Frame {
        self.receive(Duration::from_secs(5), matches).unwrap_or_else(|| {
            let seen = self.frames();
            panic!("did not come within 5 s: {what}; {} other frames came: {:?}", seen.len(), seen.last())
        })
    }

    /// All frames so far.
    pub fn frames(&self) -> Vec<Frame> {
        lock(&self.seen.0).frames.clone()
    }

    /// Forgets the frames so far.
    pub fn clear(&self) {
        lock(&self.seen.0).frames.clear();
    }
}

impl Drop for Raw {
    fn drop(&mut self) {
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

fn lock(seen: &Mutex<Seen>) -> MutexGuard<'_, Seen> {
    seen.lock().unwrap_or_else(PoisonError::into_inner)
}

fn note(shared: &(Mutex<Seen>, Condvar), change: impl FnOnce(&mut Seen)) {
    change(&mut lock(&shared.0));
    shared.1.notify_all();
}

fn hex(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    let digit = |n: u8| char::from(DIGITS[usize::from(n)]);
    bytes.iter().flat_map(|b| [digit(b >> 4), digit(b & 15)]).collect()
}

fn unhex(text: &str) -> Vec<u8> {
    let value = |d: u8| char::from(d).to_digit(16).and_then(|v| u8::try_from(v).ok()).expect("hex");
    text.as_bytes().chunks_exact(2).map(|pair| value(pair[0]) << 4 | value(pair[1])).collect()
}

/// The six bytes of a MAC address.
///
/// # Panics
/// When the text is none.
#[track_caller]
pub fn mac(text: &str) -> [u8; 6] {
    text.parse::<switch::mac::Mac>().expect("a MAC address").0
}

/// ff:ff:ff:ff:ff:ff.
pub const BROADCAST: [u8; 6] = [0xff; 6];

/// An Ethernet frame of any kind, at least 60 bytes long.
pub fn ethernet(destination: [u8; 6], source: [u8; 6], ethertype: u16, payload: &[u8]) -> Vec<u8> {
    let mut frame = [&destination[..], &source, &ethertype.to_be_bytes(), payload].concat();
    frame.resize(frame.len().max(60), 0);
    frame
}

/// A frame of the EtherType for experiments (IEEE 802 local 1), which no stack answers.
pub fn experiment(destination: [u8; 6], source: [u8; 6], payload: &[u8]) -> Vec<u8> {
    ethernet(destination, source, 0x88b5, payload)
}

/// A UDP datagram over IPv4 in a frame.
pub fn udp4(
    (destination_mac, source_mac): ([u8; 6], [u8; 6]),
    (source, source_port): ([u8; 4], u16),
    (destination, destination_port): ([u8; 4], u16),
    payload: &[u8],
) -> Vec<u8> {
    let packet = PacketBuilder::ethernet2(source_mac, destination_mac)
        .ipv4(source, destination, 64)
        .udp(source_port, destination_port);
    let mut frame = Vec::new();
    packet.write(&mut frame, payload).expect("a Vec takes everything");
    frame
}

/// A TCP SYN over IPv4 in a frame.
pub fn syn4(
    (destination_mac, source_mac): ([u8; 6], [u8; 6]),
    (source, source_port): ([u8; 4], u16),
    (destination, destination_port): ([u8; 4], u16),
) -> Vec<u8> {
    let packet = PacketBuilder::ethernet2(source_mac, destination_mac)
        .ipv4(source, destination, 64)
        .tcp(source_port, destination_port, 1000, 64_000)
        .syn();
    let mut frame = Vec::new();
    packet.write(&mut frame, &[]).expect("a Vec takes everything");
    frame
}

/// An ICMP echo request over IPv4 in a frame.
pub fn echo4(
    (destination_mac, source_mac): ([u8; 6], [u8; 6]),
    source: [u8; 4],
    destination: [u8; 4],
    payload: &[u8],
) -> Vec<u8> {
    let packet = PacketBuilder::ethernet2(source_mac, destination_mac)
        .ipv4(source, destination, 64)
        .icmpv4_echo_request(7, 1);
    let mut frame = Vec::new();
    packet.write(&mut frame, payload).expect("a Vec takes everything");
    frame
}

/// A UDP datagram over IPv6 in a frame.
pub fn udp6(
    (destination_mac, source_mac): ([u8; 6], [u8; 6]),
    (source, source_port): ([u8; 16], u16),
    (destination, destination_port): ([u8; 16], u16),
    payload: &[u8],
) -> Vec<u8> {
    let packet = PacketBuilder::ethernet2(source_mac, destination_mac)
        .ipv6(source, destination, 64)
        .udp(source_port, destination_port);
    let mut frame = Vec::new();
    packet.write(&mut frame, payload).expect("a Vec takes everything");
    frame
}

/// An ARP request: who has `target`?
pub fn arp_request(source_mac: [u8; 6], source: [u8; 4], target: [u8; 4]) -> Vec<u8> {
    let body = [
        &[0, 1, 8, 0, 6, 4, 0, 1][..], // Ethernet, IPv4, request
        &source_mac,
        &source,
        &[0; 6],
        &target,
    ]
    .concat();
    ethernet(BROADCAST, source_mac, 0x0806, &body)
}

/// Is this an ARP reply that says where `address` is?
pub fn is_arp_reply(frame: &Frame, address: [u8; 4]) -> bool {
    frame.bytes.len() >= 42
        && frame.ethertype() == 0x0806
        && frame.bytes[21] == 2
        && frame.bytes[28..32] == address
}

/// A neighbour solicitation: who has `target`?
pub fn neighbour_solicitation(source_mac: [u8; 6], source: [u8; 16], target: [u8; 16]) -> Vec<u8> {
    let mut group = [0; 16];
    group[..13].copy_from_slice(&[0xff, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0xff]);
    group[13..].copy_from_slice(&target[13..]);
    let destination_mac = [0x33, 0x33, 0xff, target[13], target[14], target[15]];
    // Type 135, code 0; target; option 1 (source link-layer address).
    let body = [&target[..], &[1, 1], &source_mac].concat();
    let packet = PacketBuilder::ethernet2(source_mac, destination_mac)
        .ipv6(source, group, 255)
        .icmpv6_raw(135, 0, [0; 4]);
    let mut frame = Vec::new();
    packet.write(&mut frame, &body).expect("a Vec takes everything");
    frame
}

/// Is this a neighbour advertisement of `address`?
pub fn is_neighbour_advertisement(frame: &Frame, address: [u8; 16]) -> bool {
    frame.bytes.len() >= 78
        && frame.ethertype() == 0x86dd
        && frame.bytes[20] == 58
        && frame.bytes[54] == 136
        && frame.bytes[62..78] == address
}
