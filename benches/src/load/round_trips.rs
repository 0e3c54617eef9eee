//! Round trips: a request of 64 bytes, an answer of 64 bytes, one at a time.

use std::io::{Read, Write};
use std::net::{TcpStream, UdpSocket};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};

use super::socket::{is_not_yet, listen, udp};
use super::{Protocol, SMALL, Send, Serve, percentiles, ready};
use crate::figures::Figures;

/// How long an answer may take before the request counts as lost.
const PATIENCE: Duration = Duration::from_secs(1);
/// How often a server looks whether its time is over.
const TICK: Duration = Duration::from_millis(200);
/// Answers that are not counted: caches, neighbor tables and the CPU's clock settle.
const WARM_UP: usize = 50;

/// Answers whoever comes first.
pub(super) fn echo(serve: Serve, protocol: Protocol) -> Result<Figures> {
    let end = serve.end();
    let mut buffer = [0; SMALL];
    match protocol {
        Protocol::Tcp => {
            let listener = listen(serve.port)?;
            ready();
            let mut stream = loop {
                match listener.accept() {
                    Ok((stream, _)) => break stream,
                    Err(e) if is_not_yet(&e) && Instant::now() < end => {
                        thread::sleep(Duration::from_millis(1));
                    }
                    Err(e) => return Err(e).context("nobody connected"),
                }
            };
            stream.set_nonblocking(false).context("a stream")?;
            stream.set_nodelay(true).context("TCP_NODELAY")?;
            stream.set_read_timeout(Some(TICK)).context("SO_RCVTIMEO")?;
            while Instant::now() < end {
                match stream.read_exact(&mut buffer) {
                    Ok(()) => stream.write_all(&buffer).context("answer")?,
                    Err(e) if is_not_yet(&e) => {}
                    Err(_) => break,
                }
            }
        }
        Protocol::Udp => {
            let socket = udp(serve.port)?;
            socket.set_read_timeout(Some(TICK)).context("SO_RCVTIMEO")?;
            ready();
            while Instant::now() < end {
                if let Ok((length, from)) = socket.recv_from(&mut buffer) {
                    socket.send_to(&buffer[..length], from).context("answer")?;
                }
            }
        }
    }
    Ok(Figures::default())
}

enum Line {
    Stream(TcpStream),
    Datagrams(UdpSocket),
}

impl Line {
    fn open(send: Send, protocol: Protocol) -> Result<Self> {
        match protocol {
            Protocol::Tcp => {
                let stream = TcpStream::connect_timeout(&send.to.into(), Duration::from_secs(2))
                    .with_context(|| format!("connect to {}", send.to))?;
                stream.set_nodelay(true).context("TCP_NODELAY")?;
                stream.set_read_timeout(Some(PATIENCE)).context("SO_RCVTIMEO")?;
                Ok(Self::Stream(stream))
            }
            Protocol::Udp => {
                let socket = udp(0)?;
                socket.connect(send.to).with_context(|| format!("connect to {}", send.to))?;
                socket.set_read_timeout(Some(PATIENCE)).context("SO_RCVTIMEO")?;
                Ok(Self::Datagrams(socket))
            }
        }
    }

    /// A request and its answer; false when none came in time.
    fn ask(&mut self, number: u64) -> Result<bool> {
        let mut request = [0; SMALL];
        request[..8].copy_from_slice(&number.to_be_bytes());
        let mut answer = [0; SMALL];
        let done = match self {
            Self::Stream(stream) => {
                stream.write_all(&request).context("ask")?;
                stream.read_exact(&mut answer)
            }
            Self::Datagrams(socket) => {
                // Refused: the server is not there yet, or not there any more. The answer's wait tells.
                drop(socket.send(&request));
                loop {
                    match socket.recv(&mut answer) {
                        // The answer to a request that was given up.
                        Ok(_) if answer != request => {}
                        Ok(_) => break Ok(()),
                        Err(e) => break Err(e),
                    }
                }
            }
        };
        match done {
            Ok(()) => Ok(true),
            Err(e) if matches!(self, Self::Datagrams(_)) || is_not_yet(&e) => Ok(false),
            Err(e) => Err(e).context("the answer"),
        }
    }
}

/// Asks for some seconds: `p50_us`, `p99_us`, `p999_us`, `lost`.
pub(super) fn ask(send: Send, protocol: Protocol) -> Result<Figures> {
    let mut line = Line::open(send, protocol)?;
    let end = send.end();
    let mut times = Vec::with_capacity(1 << 20);
    let (mut number, mut lost) = (0, 0);
    while Instant::now() < end {
        let start = Instant::now();
        number += 1;
        if line.ask(number)? {
            times.push(u32::try_from(start.elapsed().as_nanos()).unwrap_or(u32::MAX));
        } else {
            lost += 1;
            // On a stream, an answer that comes later would be taken for that of the next request.
            ensure!(protocol == Protocol::Udp, "no answer within {PATIENCE:?}");
        }
    }
    ensure!(!times.is_empty(), "no answers at all");
    let measured = if times.len() > 2 * WARM_UP { times.split_off(WARM_UP) } else { times };
    let mut figures = percentiles(measured);
    figures.set("lost", lost as f64);
    Ok(figures)
}
