//! The thread of a capture: takes what workers and kernel have for it, and makes of it what its client reads.
//!
//! Frames come in two ways: from the workers, by the capture's buffer, and, of a port whose flows the kernel forwards by itself, from
//! its [`Sniffer`]. Both know when a frame was received, and what is taken at once is put in that order.
//!
//! Looking must not hold up what is looked at, so the thread has a small share of the CPU. When it does not keep up, the buffers are
//! full, and what finds no room there is lost and counted. It waits for its client: between them is room for [`AHEAD`] pieces, of one
//! buffer's frames at most.

use std::io;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::time::Duration;

use nat::Time;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use tokio::sync::mpsc;

use super::encoder::Encoder;
use crate::engine;
use crate::observe::capture::{Capture, Frames, Record, Way};
use crate::port::sniffer::Sniffer;
use crate::router::resolve::Ingress;
use crate::snapshot::Snapshot;
use crate::sys::sched::set_nice;
use crate::worker;

/// How long captured frames gather before they are sent.
const GATHER: Duration = Duration::from_millis(20);
/// How long they gather in the sniffer's ring once there is one: short enough that it does not run full, long enough that who shares
/// a CPU with the thread is not held up often.
const PAUSE: Duration = Duration::from_millis(8);
/// Pieces that wait for the client.
const AHEAD: usize = 1;
/// The thread's nice value: a tenth of an ordinary program's share. With nice 19 three quarters of a flood were lost on busy CPUs.
const NICE: i32 = 10;

/// What the thread has.
#[derive(Debug)]
pub(super) struct Reader {
    capture: Arc<Capture>,
    sniffer: Option<Sniffer>,
    encoder: Encoder,
    world: Arc<engine::Shared>,
    pieces: mpsc::Sender<Vec<u8>>,
    spare: Frames,
}

impl Reader {
    /// Starts the thread. It ends when the capture was closed and all of it is told, when there are enough frames, or when nobody
    /// takes them any more; so do the pieces.
    ///
    /// # Errors
    /// As clone(2).
    pub(super) fn start(
        capture: Arc<Capture>,
        sniffer: Option<Sniffer>,
        encoder: Encoder,
        world: Arc<engine::Shared>,
    ) -> io::Result<mpsc::Receiver<Vec<u8>>> {
        let (pieces, taken) = mpsc::channel(AHEAD);
        let reader = Self { capture, sniffer, encoder, world, pieces, spare: Frames::default() };
        std::thread::Builder::new().name("capture".into()).spawn(move || {
            if let Err(e) = set_nice(NICE) {
                tracing::warn!("a capture has the share of the CPU that an ordinary program has: {e}");
            }
            reader.run();
        })?;
        Ok(taken)
    }

    fn run(mut self) {
        while !self.encoder.is_done() {
            let closed = self.capture.is_closed();
            if let Some(sniffer) = self.sniffer.as_ref().filter(|_| closed)
                && let Err(e) = sniffer.deafen()
            {
                tracing::error!("a capture that was ended goes on: {e}");
            }
            let bytes = self.read();
            let nothing = bytes.is_empty();
            if nothing && closed || !nothing && self.pieces.blocking_send(bytes).is_err() {
                return;
            }
            if self.pieces.is_closed() {
                return;
            }
            if !closed {
                self.wait();
            }
        }
    }

    /// What was captured since the last call; nothing if nothing was, and nothing lost.
    fn read(&mut self) -> Vec<u8> {
        let wall = worker::wall_offset();
        let snapshot = self.world.snapshot.load_full();
        self.capture.awake();
        // First what the workers have: all that the kernel received before that is in its ring by then.
        let mut frames = self.capture.take(std::mem::take(&mut self.spare));
        self.sniff(&snapshot, wall, &mut frames);
        let bytes = self.encoder.encode(&snapshot, &frames, wall, self.capture.counts());
        frames.clear();
        self.spare = frames;
        bytes
    }

    /// Adds what the kernel forwards by itself.
    fn sniff(&mut self, snapshot: &Snapshot, wall: Duration, frames: &mut Frames) {
        let Some(sniffer) = &mut self.sniffer else { return };
        let port = snapshot.port_by_ifindex(sniffer.ifindex()).map(|port| Ingress::Port(port.id));
        while !frames.is_full() {
            match sniffer.receive() {
                Ok(Some((at, wire))) => {
                    let at = at.saturating_sub(wall).as_nanos();
                    let at = Time::from_nanos(u64::try_from(at).unwrap_or(u64::MAX));
                    self.capture.add(frames, Record::new(at, Way::In, port), wire);
                }
                Ok(None) => break,
                Err(e) => {
                    tracing::error!("a capture does not get what the kernel forwards: {e}");
                    break;
                }
            }
        }
        self.capture.lose(sniffer.take_losses());
    }

    /// Returns when there is something to read, or after a while.
    fn wait(&self) {
        let mut fds: Vec<_> = [Some(self.capture.as_fd()), self.sniffer.as_ref().map(AsFd::as_fd)]
            .into_iter()
            .flatten()
            .map(|fd| PollFd::new(fd, PollFlags::POLLIN))
            .collect();
        // An error (a signal) means to look earlier than necessary.
        let _ = poll(&mut fds, PollTimeout::try_from(GATHER).unwrap_or(PollTimeout::ZERO));
        let Some((sniffer, events)) = self.sniffer.as_ref().zip(fds.get(1).and_then(PollFd::revents)) else {
            return;
        };
        if events.contains(PollFlags::POLLERR) {
            sniffer.clear_error();
        }
        if !events.is_empty() {
            std::thread::sleep(PAUSE);
        }
    }
}
