//! Standard output, and what a reader that went away means.

use std::{
    io::{self, Write},
    os::fd::AsFd,
};

use anyhow::Context;
use nix::{
    errno::Errno,
    poll::{PollFd, PollFlags, PollTimeout, poll},
};
use serde::Serialize;
use thiserror::Error;

/// How to print what swd answered.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Format {
    /// Tables and sentences.
    Human,
    /// JSON with the keys of the API.
    Json,
}

impl Format {
    /// Prints `value` as JSON, or else what `human` makes of it.
    pub(crate) fn print<T: Serialize + ?Sized>(
        self,
        value: &T,
        human: impl FnOnce(&T) -> String,
    ) -> anyhow::Result<()> {
        print(match self {
            Self::Human => human(value),
            Self::Json => {
                serde_json::to_string_pretty(value).context("cannot write the answer as JSON")? + "\n"
            }
        })
    }
}

/// Whoever read the output has enough of it (`swctl port ls | head -1`): the end, but not an error.
#[derive(Debug, Error)]
#[error("standard output is closed")]
pub(crate) struct ReaderGone;

/// Writes to standard output, at once.
pub(crate) fn print(text: impl AsRef<[u8]>) -> anyhow::Result<()> {
    let mut stdout = io::stdout().lock();
    match stdout.write_all(text.as_ref()).and_then(|()| stdout.flush()) {
        Ok(()) => Ok(()),
        Err(e) if e.kind() == io::ErrorKind::BrokenPipe => Err(ReaderGone.into()),
        Err(e) => Err(e).context("cannot write to standard output"),
    }
}

/// Waits until the reader of standard output is gone, which a stream that prints seldom would otherwise find out
/// long after. Blocks for good where standard output is no pipe.
pub(crate) fn wait_for_reader_gone() {
    let stdout = io::stdout();
    loop {
        // No events are asked for: only errors and hang-ups, which are always told, end the wait.
        let mut fds = [PollFd::new(stdout.as_fd(), PollFlags::empty())];
        match poll(&mut fds, PollTimeout::NONE) {
            Err(Errno::EINTR) => {}
            _ => return,
        }
    }
}
