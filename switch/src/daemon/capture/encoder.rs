//! From captured frames to pcapng or lines of text.

use std::borrow::Cow;
use std::time::Duration;

use ctl::api::CaptureFormat;
use nat::Time;
use pcap_file::DataLink;
use pcap_file::pcapng::PcapNgWriter;
use pcap_file::pcapng::blocks::enhanced_packet::{EnhancedPacketBlock, EnhancedPacketOption};
use pcap_file::pcapng::blocks::interface_description::{
    InterfaceDescriptionBlock, InterfaceDescriptionOption,
};
use pcap_file::pcapng::blocks::interface_statistics::{InterfaceStatisticsBlock, InterfaceStatisticsOption};

use super::SNAPLEN;
use crate::frame::finish_checksum;
use crate::observe::Point;
use crate::observe::capture::{Frames, Record, Way};
use crate::router::resolve::Ingress;
use crate::show::describe;
use crate::snapshot::Snapshot;
use crate::worker;

/// Turns captured frames into what a client reads.
pub(super) struct Encoder {
    format: CaptureFormat,
    writer: PcapNgWriter<Vec<u8>>,
    /// Where frames were seen: each has an interface in the file.
    points: Vec<Option<Ingress>>,
    /// Where the first interface is.
    first: Option<Ingress>,
    told: u64,
    left: Option<u64>,
}

impl std::fmt::Debug for Encoder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Encoder").field("format", &self.format).finish_non_exhaustive()
    }
}

impl Encoder {
    /// For at most `count` frames. None: the section header could not be written, which memory does not refuse.
    pub(super) fn new(format: CaptureFormat, point: Point, count: Option<u64>) -> Option<Self> {
        let mut writer = PcapNgWriter::new(Vec::new()).ok()?;
        if format == CaptureFormat::Text {
            writer.get_mut().clear();
        }
        let first = match point {
            Point::Port(port) => Some(Ingress::Port(port)),
            Point::Uplink(ifindex) => Some(Ingress::Uplink(ifindex)),
            Point::Network(_) | Point::Drops => None,
        };
        Some(Self { format, writer, points: Vec::new(), first, told: 0, left: count })
    }

    /// No more frames are wanted.
    pub(super) fn is_done(&self) -> bool {
        self.left == Some(0)
    }

    /// The frames in the order of their times, and what was lost among them, as bytes to send. `wall` is
    /// [`crate::worker::wall_offset`].
    pub(super) fn encode(
        &mut self,
        snapshot: &Snapshot,
        frames: &Frames,
        wall: Duration,
        counts: (u64, u64),
    ) -> Vec<u8> {
        if self.points.is_empty() && self.format == CaptureFormat::Pcapng {
            // A file without an interface is one that tools refuse.
            self.interface(snapshot, self.first);
        }
        let mut frames: Vec<_> = frames.iter().collect();
        frames.sort_by_key(|(record, _)| record.at);
        for (record, bytes) in frames {
            if self.is_done() {
                break;
            }
            let at = Duration::from_nanos(record.at.as_nanos()) + wall;
            match self.format {
                CaptureFormat::Pcapng => self.packet(snapshot, record, bytes, at),
                CaptureFormat::Text => self.line(snapshot, record, bytes, at),
            }
            self.left = self.left.map(|left| left - 1);
        }
        self.losses(counts, worker::now().since(Time::ZERO) + wall);
        std::mem::take(self.writer.get_mut())
    }

    fn packet(&mut self, snapshot: &Snapshot, record: &Record, bytes: &[u8], at: Duration) {
        let interface = self.interface(snapshot, record.point);
        let mut data = bytes.to_vec();
        if record.kept == record.len {
            finish_checksum(&mut data, record.offload);
        }
        // The two low bits of epb_flags: 1 is inbound, 2 is outbound, as the switch sees it.
        let options = match record.way {
            Way::In => vec![EnhancedPacketOption::Flags(1)],
            Way::Out => vec![EnhancedPacketOption::Flags(2)],
            Way::Dropped(reason) => {
                let comment = format!("{}: {}", reason.name(), reason.help());
                vec![EnhancedPacketOption::Comment(Cow::Owned(comment))]
            }
        };
        let original_len = u32::try_from(record.len).unwrap_or(u32::MAX);
        let block = EnhancedPacketBlock {
            interface_id: interface,
            timestamp: at,
            original_len,
            data: Cow::Owned(data),
            options,
        };
        // Writing to memory does not fail.
        let _ = self.writer.write_pcapng_block(block);
    }

    /// The number of the interface for a point; its description is written when it is first needed.
    fn interface(&mut self, snapshot: &Snapshot, point: Option<Ingress>) -> u32 {
        let known = self.points.iter().position(|p| *p == point);
        let index = known.unwrap_or_else(|| {
            let mut interface = InterfaceDescriptionBlock::new(DataLink::ETHERNET, SNAPLEN);
            let name = Cow::Owned(point_name(snapshot, point));
            interface.options.push(InterfaceDescriptionOption::IfName(name));
            interface.options.push(InterfaceDescriptionOption::IfTsResol(9)); // times are in 10^-9 s
            let _ = self.writer.write_pcapng_block(interface);
            self.points.push(point);
            self.points.len() - 1
        });
        u32::try_from(index).unwrap_or_default()
    }

    fn line(&mut self, snapshot: &Snapshot, record: &Record, bytes: &[u8], at: Duration) {
        let time = jiff::Timestamp::from_duration(at.try_into().unwrap_or_default()).unwrap_or_default();
        let (way, reason) = match record.way {
            Way::In => ("in", String::new()),
            Way::Out => ("out", String::new()),
            Way::Dropped(reason) => ("dropped", format!("  [{}]", reason.name())),
        };
        let name = point_name(snapshot, record.point);
        let line = format!("{time:.6}  {name} {way}  {}{reason}\n", describe(bytes));
        self.writer.get_mut().extend_from_slice(line.as_bytes());
    }

    /// Tells how many were lost, whenever that has changed.
    fn losses(&mut self, (matched, lost): (u64, u64), at: Duration) {
        if lost == self.told {
            return;
        }
        let more = lost - self.told;
        self.told = lost;
        if self.format == CaptureFormat::Text {
            let line = format!("{more} frames were lost: they were not read as fast as they came\n");
            self.writer.get_mut().extend_from_slice(line.as_bytes());
        } else {
            // The upper half comes first, whatever the order of bytes; the writer knows of no halves.
            let block = InterfaceStatisticsBlock {
                interface_id: 0,
                timestamp: u64::try_from(at.as_nanos()).unwrap_or(u64::MAX).rotate_left(32),
                options: vec![
                    InterfaceStatisticsOption::IsbIfRecv(matched),
                    InterfaceStatisticsOption::IsbIfDrop(lost),
                ],
            };
            let _ = self.writer.write_pcapng_block(block);
        }
    }
}

/// The name of a port or uplink.
fn point_name(snapshot: &Snapshot, point: Option<Ingress>) -> String {
    match point {
        Some(Ingress::Port(port)) => snapshot.port(port).map(|p| p.name.to_string()),
        Some(Ingress::Uplink(ifindex)) => snapshot.uplink(ifindex).map(|u| u.name.to_string()),
        None => Some("switch".to_owned()),
    }
    .unwrap_or_else(|| "gone".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::frame::Offload;
    use crate::mac::Mac;

    #[test]
    fn a_partial_checksum_is_finished() {
        let packet = "udp 10.0.0.1:5 > 10.0.0.2:53 len 9".parse().unwrap();
        let whole = crate::trace::build::frame(&packet, Mac([2; 6]), Mac([4; 6])).unwrap();
        let offload = Offload { flags: 1, csum_start: 34, csum_offset: 6, ..Offload::default() };
        let mut partial = whole.clone();
        // The pseudo-header's sum: addresses, protocol, length.
        let mut pseudo = [0; 12];
        pseudo[..8].copy_from_slice(&whole[26..34]);
        pseudo[9] = 17;
        pseudo[11] = 17;
        partial[40..42].copy_from_slice(&nat::checksum::sum(&pseudo).to_be_bytes());
        assert_ne!(partial, whole);
        finish_checksum(&mut partial, offload);
        assert_eq!(partial, whole);
    }
}
