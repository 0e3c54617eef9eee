//! The host's TCP connections: found and ended by `sock_diag` (sock_diag(7), linux/inet_diag.h).

use std::io;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::os::fd::{AsRawFd, OwnedFd};

use nix::sys::socket::{
    AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, recv, sendto, socket,
};

use crate::sys::netns::NetNs;

const SOCK_DIAG_BY_FAMILY: u16 = 20;
const SOCK_DESTROY: u16 = 21;
const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
const NLM_F_REQUEST: u16 = 0x1;
const NLM_F_ACK: u16 = 0x4;
const NLM_F_DUMP: u16 = 0x300;

/// Families and the protocol as messages have them: in a byte.
const INET: u8 = 2;
const INET6: u8 = 10;
const TCP: u8 = 6;

/// `struct nlmsghdr`.
const HEADER: usize = 16;
/// `struct inet_diag_sockid`, which is what requests and answers tell a socket by.
const ID: usize = 48;
/// A request, `struct inet_diag_req_v2` with its header.
const REQUEST: u32 = 16 + 8 + 48;
/// Where it is in an answer (`struct inet_diag_msg`) after the message's header: family, state, timer, retransmissions first.
const ANSWER_ID: usize = 4;
/// All states but those that no connection is in: `TCP_LISTEN`, `TCP_CLOSE`, `TCP_TIME_WAIT`.
const STATES: u32 = 0xfff & !(1 << 10) & !(1 << 7) & !(1 << 6);

/// A connection of the host's.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Connection {
    family: u8,
    id: [u8; ID],
}

impl Connection {
    /// What it is connected to.
    pub(super) fn peer(&self) -> SocketAddr {
        // sport, dport, src[16], dst[16], interface, cookie
        let port = u16::from_be_bytes([self.id[2], self.id[3]]);
        let mut octets = [0; 16];
        octets.copy_from_slice(&self.id[20..36]);
        let address = if self.family == INET {
            IpAddr::from([octets[0], octets[1], octets[2], octets[3]])
        } else {
            Ipv6Addr::from(octets).to_canonical()
        };
        SocketAddr::new(address, port)
    }

    /// The kernel's number of the socket.
    pub(super) fn cookie(&self) -> u64 {
        let word = |at: usize| {
            u64::from(u32::from_ne_bytes([self.id[at], self.id[at + 1], self.id[at + 2], self.id[at + 3]]))
        };
        word(40) | word(44) << 32
    }
}

/// A way to ask the kernel.
#[derive(Debug)]
pub(super) struct Sockets {
    socket: OwnedFd,
    /// Where answers are received: as long as the kernel sends them at a time.
    buffer: Vec<u8>,
}

impl Sockets {
    /// For the connections of a namespace.
    pub(super) fn of(host: &NetNs) -> io::Result<Self> {
        let _inside = host.enter()?;
        let protocol = SockProtocol::NetlinkSockDiag;
        let socket = socket(AddressFamily::Netlink, SockType::Raw, SockFlag::SOCK_CLOEXEC, protocol)?;
        Ok(Self { socket, buffer: vec![0; 64 << 10] })
    }

    /// All connections that `wanted` says yes to.
    pub(super) fn find(&mut self, wanted: impl Fn(&Connection) -> bool) -> io::Result<Vec<Connection>> {
        let mut found = Vec::new();
        for family in [INET, INET6] {
            self.ask(SOCK_DIAG_BY_FAMILY, NLM_F_DUMP, family, &[0; ID])?;
            self.hear(|kind, payload| {
                let (SOCK_DIAG_BY_FAMILY, Some([family, ..])) = (kind, payload.get(..ANSWER_ID)) else {
                    return;
                };
                let Some(id) = payload.get(ANSWER_ID..ANSWER_ID + ID).and_then(|id| id.try_into().ok())
                else {
                    return;
                };
                let connection = Connection { family: *family, id };
                if wanted(&connection) {
                    found.push(connection);
                }
            })?;
        }
        Ok(found)
    }

    /// Ends a connection: both ends are told by a reset.
    ///
    /// # Errors
    /// `ENOENT` when it has ended by itself; `EOPNOTSUPP` when the kernel is built without `INET_DIAG_DESTROY`.
    pub(super) fn end(&mut self, connection: &Connection) -> io::Result<()> {
        self.ask(SOCK_DESTROY, NLM_F_ACK, connection.family, &connection.id)?;
        self.hear(|_, _| {})
    }

    /// Sends `struct inet_diag_req_v2`.
    fn ask(&self, kind: u16, flags: u16, family: u8, id: &[u8; ID]) -> io::Result<()> {
        let mut message = Vec::with_capacity(REQUEST as usize);
        message.extend(REQUEST.to_ne_bytes());
        message.extend(kind.to_ne_bytes());
        message.extend((NLM_F_REQUEST | flags).to_ne_bytes());
        message.extend([0; 8]);
        message.extend([family, TCP, 0, 0]);
        message.extend(STATES.to_ne_bytes());
        message.extend(id);
        sendto(self.socket.as_raw_fd(), &message, &NetlinkAddr::new(0, 0), MsgFlags::empty())?;
        Ok(())
    }

    /// Receives until the answer is complete.
    fn hear(&mut self, mut each: impl FnMut(u16, &[u8])) -> io::Result<()> {
        loop {
            let received = recv(self.socket.as_raw_fd(), &mut self.buffer, MsgFlags::empty())?;
            let mut rest = &self.buffer[..received];
            while let Some((kind, payload, next)) = message(rest) {
                match kind {
                    NLMSG_DONE => return Ok(()),
                    NLMSG_ERROR => {
                        let code = payload.first_chunk().map_or(-libc::EIO, |c| i32::from_ne_bytes(*c));
                        return if code == 0 { Ok(()) } else { Err(io::Error::from_raw_os_error(-code)) };
                    }
                    _ => each(kind, payload),
                }
                rest = next;
            }
        }
    }
}

/// The first message of some: its kind, what it carries, and the rest.
fn message(bytes: &[u8]) -> Option<(u16, &[u8], &[u8])> {
    let length = u32::from_ne_bytes(*bytes.first_chunk()?) as usize;
    let kind = u16::from_ne_bytes([*bytes.get(4)?, *bytes.get(5)?]);
    let payload = bytes.get(HEADER..length)?;
    // Messages begin at multiples of 4.
    let next = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
    Some((kind, payload, next))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::{TcpListener, TcpStream};

    #[test]
    fn cut_messages_are_none() {
        assert_eq!(message(&[]), None);
        assert_eq!(message(&[8, 0, 0, 0, 3, 0]), None);
        let mut whole = 18_u32.to_ne_bytes().to_vec();
        whole.extend([3, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 7, 7, 0, 0]);
        assert_eq!(message(&whole), Some((3, &[7, 7][..], &[][..])));
        whole.truncate(17);
        assert_eq!(message(&whole), None);
    }

    #[test]
    fn a_connection_is_found() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let server = listener.local_addr().unwrap();
        let _client = TcpStream::connect(server).unwrap();
        let mut sockets = Sockets::of(&NetNs::current().unwrap()).unwrap();
        let found = sockets.find(|c| c.peer() == server).unwrap();
        assert_eq!(found.len(), 1);
        assert_ne!(found[0].cookie(), 0);
    }
}
