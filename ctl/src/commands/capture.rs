//! `swctl capture`.

use std::fs::File;
use std::io::Write;
use std::process::ExitCode;

use anyhow::Context;
use ctl::client::{Client, ClientError};
use tokio::{
    signal::unix::{SignalKind, signal},
    task,
};

use crate::{cli, output};

/// Wrong usage.
const USAGE: u8 = 2;

/// `swctl capture`: until interrupted, until nobody reads, or until there are enough.
pub(crate) async fn capture(client: &Client, what: &cli::Capture) -> anyhow::Result<ExitCode> {
    let spec = match what.spec() {
        Ok(spec) => spec,
        Err(wrong) => {
            eprintln!("error: {wrong}");
            return Ok(ExitCode::from(USAGE));
        }
    };
    let mut interrupted = signal(SignalKind::interrupt()).context("cannot handle SIGINT")?;
    let mut terminated = signal(SignalKind::terminate()).context("cannot handle SIGTERM")?;
    let mut file = match &what.write {
        Some(path) if path.as_os_str() != "-" => {
            Some(File::create(path).with_context(|| format!("cannot write {}", path.display()))?)
        }
        _ => None,
    };
    let mut chunks = client.capture(&spec).await?;
    let mut reader_gone = task::spawn_blocking(output::wait_for_reader_gone);
    let mut counter = Counter::default();
    loop {
        let bytes = tokio::select! {
            bytes = chunks.next() => match bytes {
                // A daemon that was killed does not end the stream in due form.
                Err(ClientError::Closed { .. }) => None,
                bytes => bytes?,
            },
            _ = interrupted.recv() => None,
            _ = terminated.recv() => None,
            _ = &mut reader_gone, if file.is_none() => None,
        };
        let Some(bytes) = bytes else { break };
        if what.write.is_some() {
            counter.see(&bytes);
        }
        match &mut file {
            Some(file) => file.write_all(&bytes).context("cannot write the capture")?,
            None => output::print(&bytes)?,
        }
    }
    if what.write.is_some() {
        eprintln!("{} frames captured, {} lost", counter.frames, counter.lost);
    }
    Ok(ExitCode::SUCCESS)
}

/// Counts the frames of a pcapng stream as it passes, and reads what it says was lost.
#[derive(Debug, Default)]
struct Counter {
    frames: u64,
    lost: u64,
    /// Of a block that is not there whole.
    rest: Vec<u8>,
}

impl Counter {
    const INTERFACE_STATISTICS: u32 = 5;
    const ENHANCED_PACKET: u32 = 6;
    const IF_DROP: u16 = 5;

    fn see(&mut self, bytes: &[u8]) {
        self.rest.extend_from_slice(bytes);
        let mut at = 0;
        while let Some(head) = self.rest[at..].first_chunk::<8>() {
            let number = |i: usize| u32::from_ne_bytes([head[i], head[i + 1], head[i + 2], head[i + 3]]);
            let (kind, len) = (number(0), number(4) as usize);
            let Some(block) = self.rest[at..].get(..len.max(12)) else { break };
            match kind {
                Self::ENHANCED_PACKET => self.frames += 1,
                Self::INTERFACE_STATISTICS => self.lost = Self::lost(block).unwrap_or(self.lost),
                _ => {}
            }
            at += block.len();
        }
        self.rest.drain(..at);
    }

    /// isb_ifdrop among the options behind type, length, interface and time.
    fn lost(block: &[u8]) -> Option<u64> {
        let mut options = block.get(20..)?;
        loop {
            let (head, rest) = options.split_first_chunk::<4>()?;
            let code = u16::from_ne_bytes([head[0], head[1]]);
            let len = usize::from(u16::from_ne_bytes([head[2], head[3]]));
            if code == Self::IF_DROP {
                return rest.first_chunk().map(|bytes| u64::from_ne_bytes(*bytes));
            }
            options = rest.get(len.next_multiple_of(4)..)?;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use pcap_file::pcapng::PcapNgWriter;
    use pcap_file::pcapng::blocks::enhanced_packet::EnhancedPacketBlock;
    use pcap_file::pcapng::blocks::interface_description::InterfaceDescriptionBlock;
    use pcap_file::pcapng::blocks::interface_statistics::{
        InterfaceStatisticsBlock, InterfaceStatisticsOption,
    };

    #[test]
    fn frames_and_losses_are_counted_however_they_are_cut() {
        let mut writer = PcapNgWriter::new(Vec::new()).unwrap();
        writer.write_pcapng_block(InterfaceDescriptionBlock::new(pcap_file::DataLink::ETHERNET, 0)).unwrap();
        for len in [60, 61, 1500] {
            let packet = EnhancedPacketBlock {
                interface_id: 0,
                timestamp: std::time::Duration::from_secs(1),
                original_len: len,
                data: vec![7; len as usize].into(),
                options: Vec::new(),
            };
            writer.write_pcapng_block(packet).unwrap();
        }
        let options =
            vec![InterfaceStatisticsOption::IsbIfRecv(50), InterfaceStatisticsOption::IsbIfDrop(47)];
        let block = InterfaceStatisticsBlock { interface_id: 0, timestamp: 0, options };
        writer.write_pcapng_block(block).unwrap();
        let bytes = writer.into_inner();
        for size in [1, 7, 100, bytes.len()] {
            let mut counter = Counter::default();
            bytes.chunks(size).for_each(|chunk| counter.see(chunk));
            assert_eq!((counter.frames, counter.lost, counter.rest.len()), (3, 47, 0));
        }
    }
}
