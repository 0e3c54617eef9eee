//! `swctl trace`.

use std::fmt::Write;
use std::fs::File;
use std::path::Path;

use anyhow::{Context, bail};
use ctl::{
    api::{LiveTraceSpec, LiveTraced, TraceSpec, Traced},
    client::{Client, ClientError},
};
use pcap_file::pcapng::Block;
use tokio::{
    signal::unix::{SignalKind, signal},
    task,
};

use crate::{
    cli,
    output::{self, Format},
    table::printable,
};

/// Frames that swd traces at once.
const MAX_FRAMES: usize = 1000;
/// The link type of Ethernet.
const ETHERNET: pcap_file::DataLink = pcap_file::DataLink::ETHERNET;

/// `swctl trace`.
pub(crate) async fn trace(client: &Client, format: Format, what: cli::Trace) -> anyhow::Result<()> {
    let cli::Trace { from, packet, pcap, live, count } = what;
    if let Some(filter) = live {
        let filter = (!filter.is_empty()).then_some(filter);
        return follow(client, format, &LiveTraceSpec { from, filter, count }).await;
    }
    let frames = match &pcap {
        Some(path) => recorded(path)?,
        None => Vec::new(),
    };
    let spec = TraceSpec { from, packet, frames };
    let traced = client.trace(&spec).await?;
    format.print(traced.as_slice(), |all| all.iter().map(describe).collect::<Vec<_>>().join("\n"))
}

/// `swctl trace --live`: until interrupted, until nobody reads, or until there are enough.
async fn follow(client: &Client, format: Format, spec: &LiveTraceSpec) -> anyhow::Result<()> {
    let mut interrupted = signal(SignalKind::interrupt()).context("cannot handle SIGINT")?;
    let mut terminated = signal(SignalKind::terminate()).context("cannot handle SIGTERM")?;
    let mut reader_gone = task::spawn_blocking(output::wait_for_reader_gone);
    let mut frames = client.live_trace(spec).await?;
    loop {
        let frame = tokio::select! {
            frame = frames.next() => match frame {
                // A daemon that was killed does not end the stream in due form.
                Err(ClientError::Closed { .. }) => None,
                frame => frame?,
            },
            _ = interrupted.recv() => None,
            _ = terminated.recv() => None,
            _ = &mut reader_gone => None,
        };
        let Some(frame) = frame else { return Ok(()) };
        output::print(match format {
            Format::Human => describe_live(&frame),
            Format::Json => serde_json::to_string(&frame).context("cannot write the trace as JSON")? + "\n",
        })?;
    }
}

fn describe_live(LiveTraced { time, missed, traced }: &LiveTraced) -> String {
    let missed = match missed {
        0 => String::new(),
        n => format!("{n} frames passed unexplained: more came than can be told\n"),
    };
    format!("{missed}{time:.6}  {}\n", describe(traced))
}

/// The frames of a file, in hexadecimal.
fn recorded(path: &Path) -> anyhow::Result<Vec<String>> {
    let name = path.display();
    let file = File::open(path).with_context(|| format!("cannot open {name}"))?;
    let unreadable = || format!("cannot read {name}: is it a pcap or pcapng file?");
    let mut frames = Vec::new();
    if is_pcapng(path).with_context(unreadable)? {
        let mut reader = pcap_file::pcapng::PcapNgReader::new(file).with_context(unreadable)?;
        while let Some(block) = reader.next_block() {
            match block.with_context(unreadable)?.into_owned() {
                Block::InterfaceDescription(i) if i.linktype != ETHERNET => {
                    bail!(
                        "{name} holds other frames than Ethernet's; record on a port or an Ethernet interface"
                    )
                }
                Block::EnhancedPacket(packet) => frames.push(hex(&packet.data)),
                Block::SimplePacket(packet) => frames.push(hex(&packet.data)),
                _ => {}
            }
        }
    } else {
        let mut reader = pcap_file::pcap::PcapReader::new(file).with_context(unreadable)?;
        if reader.header().datalink != ETHERNET {
            bail!("{name} holds other frames than Ethernet's; record on a port or an Ethernet interface");
        }
        while let Some(packet) = reader.next_packet() {
            frames.push(hex(&packet.with_context(unreadable)?.data));
        }
    }
    if frames.is_empty() {
        bail!("{name} holds no frames");
    }
    if frames.len() > MAX_FRAMES {
        bail!(
            "{name} holds {} frames, more than the {MAX_FRAMES} that are traced at once; pick some with 'tcpdump -r {name} -w FEWER'",
            frames.len()
        );
    }
    Ok(frames)
}

/// A pcapng file begins with its section header's type, which is a palindrome.
fn is_pcapng(path: &Path) -> std::io::Result<bool> {
    let mut magic = [0; 4];
    std::io::Read::read_exact(&mut File::open(path)?, &mut magic)?;
    Ok(magic == [0x0a, 0x0d, 0x0d, 0x0a])
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::with_capacity(2 * bytes.len()), |mut text, byte| {
        // Writing to a string does not fail.
        let _ = write!(text, "{byte:02x}");
        text
    })
}

/// The packet, a line for each stage with its reasons below, and what becomes of it.
fn describe(traced: &Traced) -> String {
    let mut text = format!("{}\n", printable(&traced.packet));
    let mut line = |indent: usize, line: &str| text += &format!("{:indent$}{}\n", "", printable(line));
    for step in &traced.steps {
        line(2, &format!("{:<8}{}", step.stage, step.verdict));
        for why in &step.why {
            line(10, why);
        }
        if let Some(after) = &step.after {
            line(10, &format!("now {after}"));
        }
    }
    line(
        0,
        &match &traced.reason {
            Some(reason) => format!("= {}: {reason}", traced.outcome),
            None => format!("= {}", traced.outcome),
        },
    );
    for (what, list) in [("to", &traced.sent), ("besides, to", &traced.besides)] {
        for sent in list {
            let lost = sent.lost.as_ref().map(|why| format!(" (lost: {why})")).unwrap_or_default();
            line(2, &format!("{what} {}: {}{lost}", sent.to, sent.packet));
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use ctl::api::{TraceSent, TraceStep};

    #[test]
    fn a_trace_for_people() {
        let step = |stage: &str, verdict: &str, why: &str, after: Option<&str>| TraceStep {
            stage: stage.into(),
            verdict: verdict.into(),
            why: vec![why.into()],
            after: after.map(str::to_owned),
        };
        let traced = Traced {
            packet: "a > b tcp".into(),
            steps: vec![
                step("guard", "next", "60 bytes", None),
                step("router", "uplink", "out by eth0", Some("c > d tcp")),
            ],
            outcome: "dropped".into(),
            reason: Some("port-down".into()),
            help: None,
            sent: vec![TraceSent {
                to: "eth0".into(),
                packet: "c > d tcp".into(),
                lost: Some("port-down".into()),
            }],
            besides: Vec::new(),
        };
        let expected = "a > b tcp\n  guard   next\n          60 bytes\n  router  uplink\n          out by eth0\n          \
                        now c > d tcp\n= dropped: port-down\n  to eth0: c > d tcp (lost: port-down)\n";
        assert_eq!(describe(&traced), expected);
    }

    #[test]
    fn files_that_hold_no_frames_are_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("x.pcap");
        std::fs::write(&path, "not a capture at all, whatever its name says").unwrap();
        assert!(recorded(&path).unwrap_err().to_string().contains("is it a pcap or pcapng file?"));
        let mut writer = pcap_file::pcap::PcapWriter::new(File::create(&path).unwrap()).unwrap();
        assert!(recorded(&path).unwrap_err().to_string().contains("holds no frames"));
        let packet = pcap_file::pcap::PcapPacket::new(std::time::Duration::ZERO, 3, &[1, 0xab, 255]);
        writer.write_packet(&packet).unwrap();
        assert_eq!(recorded(&path).unwrap(), ["01abff"]);
    }
}
