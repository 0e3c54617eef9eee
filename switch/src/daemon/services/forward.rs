//! Questions for others: the host's resolvers, in order, by UDP, and by TCP where an answer was cut.
//!
//! Each question leaves from a socket of its own, so from a port that the kernel has chosen at random, with a random id; an answer
//! counts if it comes from the server that was asked (the socket is connected), with the id and the question (RFC 5452).

use std::cell::RefCell;
use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::{Duration, Instant};

use hickory_proto::op::{Edns, Message, MessageType, ResponseCode};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpStream, UdpSocket};
use tokio::time::timeout;

use super::cache::Cache;
use super::resolv::Followed;
use crate::names::respond::{OUR_PAYLOAD, reply};
use crate::names::stream::framed;
use crate::snapshot::PortId;

/// How long a server may take. Clients give up after five seconds (resolv.conf(5), `timeout`).
const PATIENCE: Duration = Duration::from_millis(1500);
/// How often each server is asked.
const ROUNDS: usize = 2;
/// How long all of them together may take.
const ALL: Duration = Duration::from_millis(4500);
/// Questions of one port that may be under way.
const PER_PORT: usize = 256;
/// Questions that may be under way.
const IN_ALL: usize = 1024;

/// Asks others.
#[derive(Debug)]
pub(super) struct Forwarder {
    resolvers: Followed,
    cache: RefCell<Cache>,
    /// Questions that are under way, by port.
    asking: RefCell<HashMap<PortId, usize>>,
}

/// A question that is under way.
#[derive(Debug)]
pub(super) struct Place(PortId);

/// What is said where nobody knows.
pub(super) fn fail(request: &Message) -> Message {
    reply(request, ResponseCode::ServFail)
}

impl Forwarder {
    pub(super) fn new(resolvers: Followed) -> Self {
        Self { resolvers, cache: RefCell::default(), asking: RefCell::default() }
    }

    /// A place for one more question of a port, if it may ask one; to be [left](Self::leave).
    pub(super) fn place(&self, port: PortId) -> Option<Place> {
        let mut asking = self.asking.borrow_mut();
        if asking.values().sum::<usize>() >= IN_ALL {
            return None;
        }
        let own = asking.entry(port).or_default();
        (*own < PER_PORT).then(|| {
            *own += 1;
            Place(port)
        })
    }

    /// A question is answered.
    pub(super) fn leave(&self, Place(port): Place) {
        let mut asking = self.asking.borrow_mut();
        if let Some(own) = asking.get_mut(&port) {
            *own -= 1;
            if *own == 0 {
                asking.remove(&port);
            }
        }
    }

    /// What is known from before.
    pub(super) fn cached(&self, request: &Message) -> Option<Message> {
        let known = self.cache.borrow().get(request, Instant::now())?;
        Some(for_request(request, known))
    }

    /// The answer of the first server that has one; a failure if none has.
    pub(super) async fn resolve(&self, request: &Message) -> Message {
        let servers = self.resolvers.servers();
        let asked = async {
            for server in servers.iter().cycle().take(servers.len() * ROUNDS) {
                let Ok(Ok(answer)) = timeout(PATIENCE, ask(*server, request)).await else { continue };
                let code = answer.metadata.response_code;
                // Another one may do better; that is what they are there for.
                if !matches!(code, ResponseCode::ServFail | ResponseCode::Refused | ResponseCode::NotImp) {
                    return Some(answer);
                }
            }
            None
        };
        let Ok(Some(answer)) = timeout(ALL, asked).await else { return fail(request) };
        self.cache.borrow_mut().put(request, &answer, Instant::now());
        for_request(request, answer)
    }
}

/// An answer to the same question, made one to this request: its id, its way to write the name, its EDNS.
fn for_request(request: &Message, mut answer: Message) -> Message {
    let ours = reply(request, answer.metadata.response_code);
    answer.metadata.id = ours.metadata.id;
    answer.metadata.recursion_desired = ours.metadata.recursion_desired;
    answer.metadata.recursion_available = true;
    answer.metadata.authoritative = false;
    answer.queries = ours.queries;
    answer.edns = ours.edns;
    if let (Some(edns), Some(asked)) = (&mut answer.edns, &request.edns) {
        edns.set_dnssec_ok(asked.flags().dnssec_ok);
    }
    answer
}

/// Asks one server.
async fn ask(server: SocketAddr, request: &Message) -> io::Result<Message> {
    let mut question = Message::query();
    question.metadata.recursion_desired = true;
    question.metadata.checking_disabled = request.metadata.checking_disabled;
    question.add_queries(request.queries.iter().cloned());
    let mut edns = Edns::new();
    edns.set_max_payload(OUR_PAYLOAD);
    edns.set_dnssec_ok(request.edns.as_ref().is_some_and(|edns| edns.flags().dnssec_ok));
    question.set_edns(edns);
    let bytes = question.to_vec().map_err(io::Error::other)?;

    let any: IpAddr = match server {
        SocketAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
        SocketAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
    };
    let socket = UdpSocket::bind(SocketAddr::new(any, 0)).await?;
    socket.connect(server).await?;
    socket.send(&bytes).await?;
    let mut buffer = vec![0; 4096];
    loop {
        let length = socket.recv(&mut buffer).await?;
        let Some(answer) = matching(&question, &buffer[..length]) else { continue };
        return if answer.metadata.truncation {
            ask_by_tcp(server, &question, &bytes).await
        } else {
            Ok(answer)
        };
    }
}

/// The same where an answer is too long for a datagram: RFC 7766.
async fn ask_by_tcp(server: SocketAddr, question: &Message, bytes: &[u8]) -> io::Result<Message> {
    let mut stream = TcpStream::connect(server).await?;
    let framed = framed(bytes).ok_or(io::ErrorKind::InvalidInput)?;
    stream.write_all(&framed).await?;
    let length = stream.read_u16().await?;
    let mut buffer = vec![0; length.into()];
    stream.read_exact(&mut buffer).await?;
    matching(question, &buffer).ok_or_else(|| io::Error::from(io::ErrorKind::InvalidData))
}

/// A message, if it answers the question.
fn matching(question: &Message, bytes: &[u8]) -> Option<Message> {
    let answer = Message::from_vec(bytes).ok()?;
    let ours = answer.metadata.message_type == MessageType::Response
        && answer.metadata.id == question.metadata.id
        && answer.queries == question.queries;
    ours.then_some(answer)
}

#[cfg(test)]
mod tests {
    use super::*;
    use hickory_proto::op::Query;
    use hickory_proto::rr::{Name, RecordType};

    #[test]
    fn an_answer_must_be_one_to_the_question() {
        let mut question = Message::query();
        question.add_query(Query::query(Name::from_ascii("Example.org.").unwrap(), RecordType::A));
        let answer = question.clone().into_response();
        let matches = |answer: &Message| matching(&question, &answer.to_vec().unwrap()).is_some();
        assert!(matches(&answer) && !matches(&question));
        let mut other = answer.clone();
        other.metadata.id = other.metadata.id.wrapping_add(1);
        assert!(!matches(&other));
        let mut other = answer;
        other.queries = vec![Query::query(Name::from_ascii("example.net.").unwrap(), RecordType::A)];
        assert!(!matches(&other));
    }

    #[test]
    fn a_port_may_ask_so_much_at_a_time() {
        let forwarder = Forwarder::new(Followed::new("/nonexistent".into()));
        let mut places: Vec<_> = (0..PER_PORT).map(|_| forwarder.place(PortId(1)).unwrap()).collect();
        assert!(forwarder.place(PortId(1)).is_none());
        assert!(forwarder.place(PortId(2)).is_some());
        forwarder.leave(places.pop().unwrap());
        assert!(forwarder.place(PortId(1)).is_some());
    }
}
