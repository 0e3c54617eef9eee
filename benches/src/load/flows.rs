//! Many UDP flows, a datagram each way: what fills a translator's table.

use std::net::{SocketAddrV4, UdpSocket};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use nix::sys::epoll::{EpollEvent, EpollFlags};

use super::socket::{Poll, many_descriptors, udp};
use super::{Send, Serve, ready};
use crate::figures::Figures;

/// Destination ports unless told otherwise.
pub(super) const PORTS: u16 = 64;
/// Unanswered flows at a time: fewer than any queue on the way holds.
const WINDOW: usize = 256;
/// Without any answer for this long, those that wait count as lost.
const PATIENCE: Duration = Duration::from_millis(250);

/// Answers every datagram by itself, on several ports in a row.
pub(super) fn echo(serve: Serve, ports: u16) -> Result<Figures> {
    let end = serve.end();
    let mut poll = Poll::new()?;
    let mut sockets = Vec::new();
    for n in 0..ports {
        let socket = udp(serve.port + n)?;
        socket.set_nonblocking(true).context("a socket")?;
        poll.epoll.add(&socket, EpollEvent::new(EpollFlags::EPOLLIN, u64::from(n))).context("epoll_ctl")?;
        sockets.push(socket);
    }
    ready();
    let mut buffer = [0; 64];
    while let Some(events) = poll.wait(end)? {
        for event in events {
            let Some(socket) = usize::try_from(event).ok().and_then(|i| sockets.get(i)) else { continue };
            while let Ok((length, from)) = socket.recv_from(&mut buffer) {
                // What is lost counts as lost at the other end.
                drop(socket.send_to(&buffer[..length], from));
            }
        }
    }
    Ok(Figures::default())
}

/// Opens `sockets` × `ports` flows: `flows`, `answered`, `per_s`. An answer must carry its flow's number.
pub(super) fn open(send: Send, ports: u16, count: usize) -> Result<Figures> {
    many_descriptors()?;
    let mut poll = Poll::new()?;
    let mut sockets = Vec::with_capacity(count);
    for n in 0..count {
        let socket = UdpSocket::bind("0.0.0.0:0").context("a socket for each source port")?;
        socket.set_nonblocking(true).context("a socket")?;
        poll.epoll.add(&socket, EpollEvent::new(EpollFlags::EPOLLIN, n as u64)).context("epoll_ctl")?;
        sockets.push(socket);
    }
    let per_socket = usize::from(ports);
    let total = count * per_socket;
    let mut seen = vec![false; total];
    let (mut sent, mut answered, mut lost) = (0, 0, 0);
    let start = Instant::now();
    let end = send.end();
    let mut last = start;
    while answered + lost < total {
        while sent < total && sent - answered - lost < WINDOW {
            let number = u32::try_from(sent).context("too many flows")?;
            let port = send.to.port() + u16::try_from(sent % per_socket).context("too many ports")?;
            let to = SocketAddrV4::new(*send.to.ip(), port);
            if sockets[sent / per_socket].send_to(&number.to_be_bytes(), to).is_err() {
                break;
            }
            sent += 1;
        }
        let Some(events) = poll.wait(end)? else { break };
        for event in events {
            let Some(index) = usize::try_from(event).ok().filter(|i| *i < count) else { continue };
            let mut number = [0; 4];
            while let Ok(4) = sockets[index].recv(&mut number) {
                let number = u32::from_be_bytes(number) as usize;
                if number < total
                    && number / per_socket == index
                    && !std::mem::replace(&mut seen[number], true)
                {
                    answered += 1;
                    last = Instant::now();
                }
            }
        }
        if last.elapsed() > PATIENCE {
            lost = sent - answered;
            last = Instant::now();
        }
    }
    let seconds = start.elapsed().as_secs_f64();
    Ok(Figures::from([
        ("flows", total as f64),
        ("answered", answered as f64),
        ("per_s", answered as f64 / seconds),
    ]))
}
