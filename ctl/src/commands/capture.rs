//! `swctl capture`.

use std::fs::File;
use std::io::Write;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context;
use ctl::client::{Chunks, Client, ClientError};
use rustix::process::nice;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::{task, time};

use crate::{cli, output};

/// Wrong usage.
const USAGE: u8 = 2;
/// How long swd may be silent after it was told to end a capture.
const PATIENCE: Duration = Duration::from_secs(2);
/// Nicer by this is one who only watches, as the daemon's part is: a tenth of an ordinary share of the CPU.
const NICE: i32 = 10;

/// `swctl capture`: until interrupted, until nobody reads, or until there are enough.
pub(crate) async fn capture(client: &Client, what: &cli::Capture) -> anyhow::Result<ExitCode> {
    let spec = match what.spec() {
        Ok(spec) => spec,
        Err(wrong) => {
            eprintln!("error: {wrong}");
            return Ok(ExitCode::from(USAGE));
        }
    };
    // Where it is refused, frames are captured at the price of an ordinary program.
    let _ = nice(NICE);
    let mut signals = Signals::new()?;
    let file = match &what.write {
        Some(path) if path.as_os_str() != "-" => {
            Some(File::create(path).with_context(|| format!("cannot write {}", path.display()))?)
        }
        _ => None,
    };
    let mut chunks = client.capture(&spec).await?;
    let mut reader_gone = task::spawn_blocking(output::wait_for_reader_gone);
    let mut sink = Sink { file, counter: what.write.is_some().then(Counter::default) };
    let ended = loop {
        let bytes = tokio::select! {
            bytes = next(&mut chunks) => bytes?,
            () = signals.next() => break drain(client, &mut chunks, &mut sink, &mut signals).await,
            _ = &mut reader_gone, if sink.file.is_none() => None,
        };
        let Some(bytes) = bytes else { break Ok(()) };
        sink.take(bytes.as_ref())?;
    };
    if let Some(counter) = sink.counter {
        eprintln!("{} frames captured, {} lost", counter.frames, counter.lost);
    }
    ended.map(|()| ExitCode::SUCCESS)
}

/// The next piece; none at the end.
async fn next(chunks: &mut Chunks) -> Result<Option<impl AsRef<[u8]> + use<>>, ClientError> {
    match chunks.next().await {
        // A daemon that was killed does not end the stream in due form.
        Err(ClientError::Closed { .. }) => Ok(None),
        bytes => bytes,
    }
}

/// Has swd end the capture and takes the rest of it, so that nothing is missing that was captured before. Another signal ends that, too.
async fn drain(
    client: &Client,
    chunks: &mut Chunks,
    sink: &mut Sink,
    signals: &mut Signals,
) -> anyhow::Result<()> {
    let rest = async {
        let Some(id) = chunks.id() else { return Ok(()) };
        match client.clone().with_timeout(PATIENCE).end_capture(id).await {
            // It has ended by itself meanwhile, and its rest is there all the same.
            Err(e) if !e.is_not_found() => return Err(e.into()),
            _ => {}
        }
        loop {
            let piece = time::timeout(PATIENCE, next(chunks)).await;
            let piece =
                piece.context("swd was told to end the capture and says nothing: its rest is missing")??;
            let Some(bytes) = piece else { return Ok(()) };
            sink.take(bytes.as_ref())?;
        }
    };
    tokio::select! {
        result = rest => result,
        () = signals.next() => Ok(()),
    }
}

/// What ends a capture from outside.
struct Signals {
    interrupted: Signal,
    terminated: Signal,
}

impl Signals {
    fn new() -> anyhow::Result<Self> {
        Ok(Self {
            interrupted: signal(SignalKind::interrupt()).context("cannot handle SIGINT")?,
            terminated: signal(SignalKind::terminate()).context("cannot handle SIGTERM")?,
        })
    }

    async fn next(&mut self) {
        tokio::select! {
            _ = self.interrupted.recv() => {}
            _ = self.terminated.recv() => {}
        }
    }
}

/// Where captured frames go: to a file or to standard output, as pcapng counted.
struct Sink {
    file: Option<File>,
    counter: Option<Counter>,
}

impl Sink {
    fn take(&mut self, bytes: &[u8]) -> anyhow::Result<()> {
        if let Some(counter) = &mut self.counter {
            counter.see(bytes);
        }
        match &mut self.file {
            Some(file) => file.write_all(bytes).context("cannot write the capture"),
            None => output::print(bytes),
        }
    }
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
                timestamp: Duration::from_secs(1),
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
