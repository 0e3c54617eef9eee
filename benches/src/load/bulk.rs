//! TCP in bulk: one thread for all streams at either end.

use std::io::{self, Write};
use std::net::{Shutdown, TcpStream};
use std::os::fd::AsRawFd;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use nix::sys::epoll::{EpollEvent, EpollFlags};
use nix::sys::socket::{MsgFlags, recv};

use super::socket::{Poll, is_not_yet, listen};
use super::{Send, Serve, ready};
use crate::figures::Figures;
use crate::machine;

/// Bytes for one call.
const CHUNK: usize = 128 << 10;
/// How long the receiver waits for a whole chunk. It takes whole ones, as iperf3 does: who takes what there is each time is woken for
/// every few segments, and that is what is measured then (13 Gbit/s through a bare veth pair, where this gives 33).
const PATIENCE: Duration = Duration::from_millis(20);
/// Event of the listening socket; streams have their index.
const LISTENER: u64 = u64::MAX;

/// Counts what arrives from the first byte to the end of the last stream.
pub(super) fn sink(serve: Serve, streams: usize) -> Result<Figures> {
    let end = serve.end();
    let listener = listen(serve.port)?;
    let mut poll = Poll::new()?;
    poll.epoll.add(&listener, EpollEvent::new(EpollFlags::EPOLLIN, LISTENER)).context("epoll_ctl")?;
    ready();
    let mut buffer = vec![0; CHUNK];
    let mut open: Vec<TcpStream> = Vec::new();
    let (mut bytes, mut ended) = (0, 0);
    let mut first = None;
    let mut last = Instant::now();
    while ended < streams {
        let Some(events) = poll.wait(end)? else { break };
        for event in events {
            if event == LISTENER {
                while let Ok((stream, _)) = listener.accept() {
                    stream.set_nonblocking(false).context("a stream")?;
                    stream.set_read_timeout(Some(PATIENCE)).context("a stream")?;
                    let event = EpollEvent::new(EpollFlags::EPOLLIN, open.len() as u64);
                    poll.epoll.add(&stream, event).context("epoll_ctl")?;
                    open.push(stream);
                }
                continue;
            }
            let Some(stream) = usize::try_from(event).ok().and_then(|i| open.get_mut(i)) else { continue };
            match recv(stream.as_raw_fd(), &mut buffer, MsgFlags::MSG_WAITALL).map_err(io::Error::from) {
                Ok(0) => {
                    ended += 1;
                    poll.epoll.delete(&*stream).context("epoll_ctl")?;
                }
                Ok(count) => {
                    first.get_or_insert_with(Instant::now);
                    last = Instant::now();
                    bytes += count as u64;
                }
                Err(e) if is_not_yet(&e) => {}
                Err(_) => {
                    ended += 1;
                    poll.epoll.delete(&*stream).context("epoll_ctl")?;
                }
            }
        }
    }
    // A stream that stands still until the limit counts with all its time.
    let until = if ended < streams { Instant::now() } else { last };
    let seconds = first.map_or(f64::NAN, |first| (until - first).as_secs_f64());
    let bytes = bytes as f64;
    Ok(Figures::from([
        ("gbit_s", bytes * 8.0 / 1e9 / seconds),
        ("gigabytes", bytes / 1e9),
        ("unfinished_streams", (streams - ended) as f64),
    ]))
}

/// Sends for some seconds, then ends all streams.
pub(super) fn source(send: Send, streams: usize) -> Result<Figures> {
    let before = machine::retransmitted_segments();
    let mut poll = Poll::new()?;
    let mut open = Vec::new();
    for index in 0..streams {
        let stream = TcpStream::connect_timeout(&send.to.into(), Duration::from_secs(2))
            .with_context(|| format!("connect to {}", send.to))?;
        stream.set_nonblocking(true).context("a stream")?;
        poll.epoll.add(&stream, EpollEvent::new(EpollFlags::EPOLLOUT, index as u64)).context("epoll_ctl")?;
        open.push(stream);
    }
    let end = send.end();
    let chunk = vec![0x55; CHUNK];
    while let Some(events) = poll.wait(end)? {
        for event in events {
            let Some(stream) = usize::try_from(event).ok().and_then(|i| open.get_mut(i)) else { continue };
            match stream.write(&chunk) {
                Ok(_) => {}
                Err(e) if is_not_yet(&e) => {}
                Err(e) => return Err(e).context("send"),
            }
        }
    }
    for stream in open {
        // What is still in the socket is sent; the receiver's clock runs until it has all.
        stream.shutdown(Shutdown::Write).context("shutdown")?;
    }
    let again = machine::retransmitted_segments().saturating_sub(before);
    Ok(Figures::from([("retransmits", again as f64)]))
}
