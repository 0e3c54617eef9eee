//! `swctl capture -w FILE` beside a test, and what is in the file then.

use std::path::Path;
use std::time::Duration;

use nix::sys::signal::Signal;
use pcap_file::pcapng::blocks::enhanced_packet::EnhancedPacketOption;
use pcap_file::pcapng::{Block, PcapNgReader};

use crate::process::{Background, s, wait_until};
use crate::site::Site;

/// A frame of a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Frame {
    /// When: since 1970.
    pub at: Duration,
    /// Into the switch.
    pub inbound: bool,
    /// From the destination address on.
    pub bytes: Vec<u8>,
}

impl Frame {
    /// The number that a datagram of IPv4 begins with, if it goes to this port.
    pub fn number(&self, port: u16) -> Option<u32> {
        let goes = self.bytes.get(12..14)? == [8, 0] && self.bytes.get(36..38)? == port.to_be_bytes();
        let number = self.bytes.get(42..)?.first_chunk()?;
        goes.then(|| u32::from_be_bytes(*number))
    }
}

/// Starts a capture into a file of the site; returns once it runs.
///
/// # Panics
/// When it does not.
#[track_caller]
pub fn start(site: &Site, words: &[&str], file: &str) -> Background {
    let path = site.file(file);
    let words = [&["capture"], words, &["-w", path.to_str().expect("UTF-8")]].concat();
    let running = Background::start(&mut site.swctl_command(&words), &site.file(&format!("{file}.log")));
    // The section header is there as soon as frames are seen.
    wait_until("the capture runs", s(5), || std::fs::metadata(&path).is_ok_and(|m| m.len() > 0));
    running
}

/// Ends a capture as a person would; tells what it said.
///
/// # Panics
/// When it does not end in due form.
#[track_caller]
pub fn interrupt(mut capture: Background) -> String {
    capture.signal(Signal::SIGINT);
    assert_eq!(capture.wait(s(20)), Some(0), "{}", capture.log());
    capture.log()
}

/// How many frames a capture says that it has, and that it has lost.
///
/// # Panics
/// When it says nothing.
#[track_caller]
pub fn counts(told: &str) -> (usize, usize) {
    let line = told.lines().find(|line| line.contains(" frames captured, "));
    let mut numbers = line.unwrap_or_else(|| panic!("no counts: {told}")).split(' ').flat_map(str::parse);
    numbers.next().zip(numbers.next()).unwrap_or_else(|| panic!("no two counts: {told}"))
}

/// What is in a file, in its order.
///
/// # Panics
/// When it is no pcapng.
#[track_caller]
pub fn frames(file: &Path) -> Vec<Frame> {
    let bytes = std::fs::read(file).expect("the file");
    let mut reader = PcapNgReader::new(&bytes[..]).expect("pcapng");
    let mut frames = Vec::new();
    while let Some(block) = reader.next_block() {
        if let Block::EnhancedPacket(packet) = block.expect("a block") {
            frames.push(Frame {
                at: packet.timestamp,
                inbound: packet.options.contains(&EnhancedPacketOption::Flags(1)),
                bytes: packet.data.into_owned(),
            });
        }
    }
    frames
}
