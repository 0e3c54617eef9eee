//! UDP datagrams, many in a call.

use std::io::{IoSlice, IoSliceMut};
use std::net::UdpSocket;
use std::os::fd::AsRawFd;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use nix::errno::Errno;
use nix::sys::socket::{
    ControlMessage, MsgFlags, MultiHeaders, SockaddrIn, recvmmsg, sendmmsg, setsockopt, sockopt,
};
use nix::sys::time::TimeVal;

use super::{SMALL, Send, Serve, ready, socket};
use crate::figures::Figures;

/// Datagrams in a call.
const BATCH: usize = 64;
/// How long a sender at a rate sleeps when it is ahead.
const NAP: Duration = Duration::from_micros(100);

fn set_timeout(socket: &UdpSocket, timeout: Duration) -> Result<()> {
    let timeout = TimeVal::new(0, timeout.as_micros().try_into().context("below a second")?);
    setsockopt(socket, sockopt::ReceiveTimeout, &timeout).context("SO_RCVTIMEO")
}

/// Counts datagrams: `rx_per_s` in the window, `received` in all.
pub(super) fn count(serve: Serve, warm_up: f64, seconds: f64) -> Result<Figures> {
    let end = serve.end();
    let socket = socket::udp(serve.port)?;
    set_timeout(&socket, Duration::from_millis(50))?;
    let mut headers: MultiHeaders<SockaddrIn> = MultiHeaders::preallocate(BATCH, None);
    let mut buffers = vec![[0; SMALL]; BATCH];
    ready();
    let (mut received, mut in_window) = (0, 0);
    let mut window: Option<(Instant, Instant)> = None;
    loop {
        let now = Instant::now();
        if now >= end || window.is_some_and(|(_, end)| now >= end) {
            break;
        }
        let mut parts: Vec<_> = buffers.iter_mut().map(|b| [IoSliceMut::new(b)]).collect();
        let got =
            recvmmsg(socket.as_raw_fd(), &mut headers, parts.iter_mut(), MsgFlags::MSG_WAITFORONE, None);
        let got = match got {
            Ok(messages) => messages.count() as u64,
            Err(Errno::EAGAIN | Errno::EINTR) => continue,
            Err(e) => return Err(e).context("recvmmsg"),
        };
        received += got;
        let (start, _) = *window.get_or_insert_with(|| {
            let start = Instant::now() + Duration::from_secs_f64(warm_up);
            (start, start + Duration::from_secs_f64(seconds))
        });
        if now >= start {
            in_window += got;
        }
    }
    let length =
        window.map_or(f64::NAN, |(start, end)| Instant::now().min(end).duration_since(start).as_secs_f64());
    Ok(Figures::from([("rx_per_s", in_window as f64 / length), ("received", received as f64)]))
}

/// Sends datagrams: `tx_per_s`.
pub(super) fn blast(send: Send, rate: Option<f64>, size: usize) -> Result<Figures> {
    let socket = socket::udp(0)?;
    socket.connect(send.to).with_context(|| format!("connect to {}", send.to))?;
    let mut headers: MultiHeaders<SockaddrIn> = MultiHeaders::preallocate(BATCH, None);
    let payload = vec![0x55; size];
    let part = [IoSlice::new(&payload)];
    let parts = vec![part; BATCH];
    let nowhere = [None; BATCH];
    let none: [ControlMessage<'_>; 0] = [];
    let start = Instant::now();
    let end = send.end();
    let mut sent = 0_u64;
    while Instant::now() < end {
        let due = rate.map_or(BATCH, |rate| {
            let due = start.elapsed().as_secs_f64() * rate - sent as f64;
            if due < 1.0 { 0 } else { whole(due).min(BATCH) }
        });
        if due == 0 {
            thread::sleep(NAP);
            continue;
        }
        match sendmmsg(
            socket.as_raw_fd(),
            &mut headers,
            &parts[..due],
            &nowhere[..due],
            none.as_slice(),
            MsgFlags::empty(),
        ) {
            Ok(messages) => sent += messages.count() as u64,
            // An answer by ICMP: the receiver has gone, which is its own matter.
            Err(Errno::ECONNREFUSED | Errno::ENOBUFS | Errno::EAGAIN | Errno::EINTR) => {}
            Err(e) => return Err(e).context("sendmmsg"),
        }
    }
    Ok(Figures::from([("tx_per_s", sent as f64 / start.elapsed().as_secs_f64())]))
}

/// The whole datagrams in a number that is not negative.
#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "checked: at least 1, and cut by `as`"
)]
fn whole(due: f64) -> usize {
    due as usize
}
