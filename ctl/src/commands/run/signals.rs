//! Signals on their way to the command.
//!
//! The terminal sends its signals (^C, ^\, hang-up) to each process of the foreground group, hence to swctl and to the
//! command: forwarding would deliver them twice. What another process sent with `kill` came to swctl alone, and is
//! forwarded. The kernel tells the two apart in `siginfo`. (A `kill` of the whole group reaches the command twice:
//! that looks the same as one of swctl.)
//!
//! One case is in between: when a terminal hangs up, the kernel tells the leader of its session only, and counts on it
//! to tell the others. swctl is that leader where it takes a shell's place (`ssh -t host swctl run …`).
//!
//! Signals that were ignored when swctl started (`nohup`, or `&` in a script) are left alone, so that the command
//! inherits that.

use std::{fs, io, process::Child, thread};

use nix::{
    sys::signal::{self, Signal as Number},
    unistd::{Pid, getpid, getsid},
};
use signal_hook::{
    consts::{SIGCHLD, SIGHUP, SIGINT, SIGQUIT, SIGTERM, SIGUSR1, SIGUSR2, SIGWINCH},
    iterator::{SignalsInfo, exfiltrator::WithOrigin},
    low_level::siginfo::{Cause, Origin},
};
use tokio::sync::mpsc;

/// Signals that end the command unless it handles them.
const DEADLY: [i32; 6] = [SIGHUP, SIGINT, SIGQUIT, SIGTERM, SIGUSR1, SIGUSR2];

/// A signal that came to swctl.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Signal {
    /// The command has ended or stopped.
    Child,
    /// For the command, which has not got it.
    Sent(i32),
    /// The command has got it too.
    SharedByTerminal(i32),
}

/// The signals that came and were not yet looked at.
#[derive(Debug)]
pub(super) struct Signals {
    inbox: mpsc::UnboundedReceiver<Signal>,
}

impl Signals {
    /// Catches signals from now on, those excepted that are ignored.
    pub(super) fn catch() -> io::Result<Self> {
        let ignored = ignored(&fs::read_to_string("/proc/self/status")?);
        let wanted =
            DEADLY.into_iter().chain([SIGWINCH]).filter(|&signal| ignored & (1 << (signal - 1)) == 0);
        let mut origins = SignalsInfo::<WithOrigin>::new(wanted.chain([SIGCHLD]))?;
        let leader = getsid(None).is_ok_and(|session| session == getpid());
        let (outbox, inbox) = mpsc::unbounded_channel();
        thread::Builder::new().name("signals".to_owned()).spawn(move || {
            for origin in origins.forever() {
                if outbox.send(classify(&origin, leader)).is_err() {
                    return;
                }
            }
        })?;
        Ok(Self { inbox })
    }

    /// Waits for the next signal.
    pub(super) async fn next(&mut self) -> Signal {
        match self.inbox.recv().await {
            Some(signal) => signal,
            // The thread sends for as long as there is a receiver.
            None => std::future::pending().await,
        }
    }

    /// Waits for a signal that would end swctl if it did not handle it.
    pub(super) async fn deadly(&mut self) -> i32 {
        loop {
            match self.next().await {
                Signal::Sent(signal) | Signal::SharedByTerminal(signal) if DEADLY.contains(&signal) => {
                    return signal;
                }
                _ => {}
            }
        }
    }
}

/// Sends a signal to the command, which must not have been reaped.
pub(super) fn send(child: &Child, signal: i32) {
    let (Ok(pid), Ok(signal)) = (i32::try_from(child.id()), Number::try_from(signal)) else { return };
    // Fails only when the command has taken another user's identity and swctl may not signal that one.
    let _ = signal::kill(Pid::from_raw(pid), signal);
}

fn classify(origin: &Origin, leader: bool) -> Signal {
    match (origin.signal, origin.cause) {
        (SIGCHLD, _) => Signal::Child,
        (SIGHUP, Cause::Kernel) if leader => Signal::Sent(SIGHUP),
        (signal, Cause::Kernel) => Signal::SharedByTerminal(signal),
        (signal, _) => Signal::Sent(signal),
    }
}

/// The set of ignored signals in the text of `/proc/<pid>/status`: bit n - 1 for signal n.
fn ignored(status: &str) -> u64 {
    status
        .lines()
        .find_map(|line| line.strip_prefix("SigIgn:"))
        .and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok())
        .unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ignored_signals_are_read() {
        let status = "Name:\tswctl\nSigBlk:\tffffffffffffffff\nSigIgn:\t0000000000001003\nSigCgt:\t0\n";
        assert_eq!(ignored(status), 1 << (13 - 1) | 1 << (SIGINT - 1) | 1 << (SIGHUP - 1));
        assert_eq!(ignored(""), 0);
        // Rust's runtime ignores SIGPIPE.
        assert_ne!(ignored(&fs::read_to_string("/proc/self/status").unwrap()) & (1 << (13 - 1)), 0);
    }

    #[tokio::test]
    async fn a_signal_from_a_process_is_for_the_command() {
        let mut signals = Signals::catch().unwrap();
        signal::kill(getpid(), Number::SIGWINCH).unwrap();
        // Other tests of this process may be sent signals, and may have children that end.
        while signals.next().await != Signal::Sent(SIGWINCH) {}
    }
}
