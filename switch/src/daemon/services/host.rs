//! Names for the host itself, where the configuration asks for it: by UDP and TCP, at one address of the host's.
//!
//! It answers for the names of all networks and refuses everything else, so whoever asks it must know what to ask it for:
//! systemd-resolved by `Domains=~swd.internal`, dnsmasq by `server=/swd.internal/…`. Nothing it is asked leaves the machine.

use std::io;
use std::net::{self, SocketAddr};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::sync::Semaphore;
use tokio::task::spawn_local;
use tokio::time::{sleep, timeout};

use super::dns::Dns;
use super::tcp::IDLE;
use crate::names::respond;
use crate::names::stream::{Questions, framed};

/// Connections at a time. More wait to be accepted.
const CONNECTIONS: usize = 64;
/// The longest datagram that is read whole.
const DATAGRAM: usize = 4096;
/// Bytes of a datagram's payload that every way takes: RFC 9715 section 3.
const MOST: usize = 1400;

/// Both sockets, of one address.
#[derive(Debug)]
pub(in super::super) struct Sockets {
    udp: net::UdpSocket,
    tcp: net::TcpListener,
}

impl Sockets {
    /// Takes the address.
    ///
    /// # Errors
    /// When it is not the host's, or somebody has it.
    pub(in super::super) fn bind(address: SocketAddr) -> io::Result<Self> {
        let (udp, tcp) = (net::UdpSocket::bind(address)?, net::TcpListener::bind(address)?);
        udp.set_nonblocking(true)?;
        tcp.set_nonblocking(true)?;
        Ok(Self { udp, tcp })
    }

    /// Serves them from now on.
    ///
    /// # Errors
    /// When the runtime does not take them.
    pub(super) fn serve(self, dns: &Rc<Dns>) -> io::Result<()> {
        spawn_local(datagrams(UdpSocket::from_std(self.udp)?, Rc::clone(dns)));
        spawn_local(connections(TcpListener::from_std(self.tcp)?, Rc::clone(dns)));
        Ok(())
    }
}

async fn datagrams(socket: UdpSocket, dns: Rc<Dns>) {
    let mut buffer = vec![0; DATAGRAM];
    loop {
        let (length, from) = match socket.recv_from(&mut buffer).await {
            Ok(come) => come,
            Err(e) => {
                tracing::warn!("cannot receive the host's questions for names: {e}");
                sleep(Duration::from_secs(1)).await;
                continue;
            }
        };
        let question = &buffer[..length];
        let Some(message) = dns.ask_for_host(question) else { continue };
        if let Some(bytes) = respond::emit(&message, respond::limit(question).min(MOST)) {
            // One that cannot be sent is lost as any datagram may be; the asker asks again.
            let _ = socket.send_to(&bytes, from).await;
        }
    }
}

async fn connections(listener: TcpListener, dns: Rc<Dns>) {
    let places = Arc::new(Semaphore::new(CONNECTIONS));
    while let Ok(place) = Arc::clone(&places).acquire_owned().await {
        match listener.accept().await {
            Ok((stream, _)) => {
                let dns = Rc::clone(&dns);
                spawn_local(async move {
                    // How it ends, the client sees.
                    let _ = converse(stream, &dns).await;
                    drop(place);
                });
            }
            Err(e) => {
                tracing::warn!("cannot accept a connection for the host's names: {e}");
                sleep(Duration::from_secs(1)).await;
            }
        }
    }
}

/// Answers in order: nobody has to be waited for.
async fn converse(mut stream: TcpStream, dns: &Dns) -> io::Result<()> {
    let mut questions = Questions::default();
    let mut buffer = vec![0; DATAGRAM];
    loop {
        let room = questions.room().min(DATAGRAM);
        let length = timeout(IDLE, stream.read(&mut buffer[..room])).await??;
        if length == 0 {
            return Ok(());
        }
        questions.push(&buffer[..length]);
        while let Some(question) = questions.take().map_err(io::Error::other)? {
            let said = dns.ask_for_host(&question).and_then(|m| respond::emit(&m, u16::MAX.into()));
            if let Some(bytes) = said.and_then(|bytes| framed(&bytes)) {
                timeout(IDLE, stream.write_all(&bytes)).await??;
            }
        }
    }
}
