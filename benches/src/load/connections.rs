//! Connections in a row: connect, a byte, a byte back, close. The client closes first.

use std::collections::HashMap;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::os::fd::AsRawFd;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use nix::sys::epoll::{EpollEvent, EpollFlags};

use super::socket::{Poll, begin_connect, is_not_yet, listen, many_descriptors};
use super::{Send, Serve, percentiles, ready};
use crate::figures::Figures;

/// Answers each byte of each connection by a byte.
pub(super) fn accept(serve: Serve) -> Result<Figures> {
    many_descriptors()?;
    let end = serve.end();
    let listener = listen(serve.port)?;
    let mut poll = Poll::new()?;
    let listening = u64::MAX;
    poll.epoll.add(&listener, EpollEvent::new(EpollFlags::EPOLLIN, listening)).context("epoll_ctl")?;
    ready();
    let mut open: HashMap<u64, TcpStream> = HashMap::new();
    while let Some(events) = poll.wait(end)? {
        for event in events {
            if event == listening {
                while let Ok((stream, _)) = listener.accept() {
                    stream.set_nonblocking(true).context("a connection")?;
                    stream.set_nodelay(true).context("TCP_NODELAY")?;
                    let key = u64::from(stream.as_raw_fd().cast_unsigned());
                    poll.epoll
                        .add(&stream, EpollEvent::new(EpollFlags::EPOLLIN, key))
                        .context("epoll_ctl")?;
                    open.insert(key, stream);
                }
                continue;
            }
            let Some(stream) = open.get_mut(&event) else { continue };
            let mut byte = [0; 16];
            match stream.read(&mut byte) {
                Ok(count) if count > 0 => drop(stream.write(&byte[..1])),
                Err(e) if is_not_yet(&e) => {}
                // Its end, or an error: closing takes it out of the epoll set.
                _ => drop(open.remove(&event)),
            }
        }
    }
    Ok(Figures::default())
}

struct Attempt {
    stream: TcpStream,
    start: Instant,
    asked: bool,
}

/// Makes connections for some seconds, `parallel` at a time: `per_s`, times from connecting to the answer, `errors`.
pub(super) fn connect(send: Send, parallel: usize) -> Result<Figures> {
    many_descriptors()?;
    let mut poll = Poll::new()?;
    let mut open: HashMap<u64, Attempt> = HashMap::new();
    let mut times = Vec::with_capacity(1 << 20);
    let mut errors = 0_u64;
    let start = Instant::now();
    let end = send.end();
    let begin = |poll: &Poll, open: &mut HashMap<u64, Attempt>| -> std::io::Result<()> {
        let now = Instant::now();
        let stream = begin_connect(send.to)?;
        let key = u64::from(stream.as_raw_fd().cast_unsigned());
        poll.epoll.add(&stream, EpollEvent::new(EpollFlags::EPOLLOUT, key))?;
        open.insert(key, Attempt { stream, start: now, asked: false });
        Ok(())
    };
    while let Some(events) = poll.wait(end)? {
        while open.len() < parallel {
            if begin(&poll, &mut open).is_err() {
                errors += 1;
                // Out of ports, most likely: those of ended connections come back.
                thread::sleep(Duration::from_millis(1));
                break;
            }
        }
        for event in events {
            let Some(attempt) = open.get_mut(&event) else { continue };
            if !attempt.asked {
                let connected = attempt.stream.take_error().ok().flatten().is_none();
                if connected && attempt.stream.write(b"x").is_ok() {
                    attempt.asked = true;
                    let mut event = EpollEvent::new(EpollFlags::EPOLLIN, event);
                    poll.epoll.modify(&attempt.stream, &mut event).context("epoll_ctl")?;
                    continue;
                }
                errors += 1;
            } else {
                match attempt.stream.read(&mut [0; 16]) {
                    Ok(1) => {
                        times.push(u32::try_from(attempt.start.elapsed().as_nanos()).unwrap_or(u32::MAX));
                    }
                    Err(e) if is_not_yet(&e) => continue,
                    _ => errors += 1,
                }
            }
            open.remove(&event);
            if begin(&poll, &mut open).is_err() {
                errors += 1;
            }
        }
    }
    ensure!(!times.is_empty(), "no connection was answered ({errors} errors)");
    let seconds = start.elapsed().as_secs_f64();
    let done = times.len() as f64;
    let mut figures = percentiles(times);
    figures.set("per_s", done / seconds);
    figures.set("done", done);
    figures.set("errors", errors as f64);
    Ok(figures)
}
