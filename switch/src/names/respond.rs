//! What a gateway says to a question: a message in, a message or the way to others out.

use std::net::IpAddr;

use hickory_proto::op::{Edns, Message, MessageType, OpCode, Query, ResponseCode};
use hickory_proto::rr::rdata::{A, AAAA, PTR, SOA};
use hickory_proto::rr::{DNSClass, Name, RData, Record, RecordType};

use super::made::Made;
use super::{DOMAIN, Known, Owner, View};

/// Seconds that an answer may be kept: a container's address changes with the container.
const TTL: u32 = 5;
/// The longest answer to a client that does not say what it takes (RFC 1035 section 4.2.1).
pub const PLAIN: u16 = 512;
/// What we take ourselves (RFC 6891; DNS flag day 2020).
pub const OUR_PAYLOAD: u16 = 1232;

/// What to do about a message.
#[derive(Debug)]
pub enum Outcome {
    /// Nothing: it is no question.
    Ignore,
    /// Send this back.
    Answer(Message),
    /// Others know.
    Forward(Message),
}

/// Decides about a message from whoever has this view of the names of a snapshot. `turn` is which of several addresses comes first.
pub fn respond(known: Made<'_>, view: View, bytes: &[u8], turn: usize) -> Outcome {
    let Ok(request) = Message::from_vec(bytes) else {
        // Enough of it to tell whom: RFC 1035 section 4.1.1.
        let Some(&[a, b, flags, _]) = bytes.first_chunk() else { return Outcome::Ignore };
        if bytes.len() < 12 || flags & 0x80 != 0 {
            return Outcome::Ignore;
        }
        let id = u16::from_be_bytes([a, b]);
        return Outcome::Answer(Message::error_msg(id, OpCode::Query, ResponseCode::FormErr));
    };
    if request.metadata.message_type != MessageType::Query {
        return Outcome::Ignore;
    }
    let [question] = request.queries.as_slice() else {
        return Outcome::Answer(reply(&request, ResponseCode::FormErr));
    };
    if request.metadata.op_code != OpCode::Query {
        return Outcome::Answer(reply(&request, ResponseCode::NotImp));
    }
    if request.edns.as_ref().is_some_and(|edns| edns.version() != 0) {
        return Outcome::Answer(reply(&request, ResponseCode::BADVERS));
    }
    match question.query_type() {
        // A transfer of what others have is none of a container's business.
        RecordType::AXFR | RecordType::IXFR => {
            return Outcome::Answer(reply(&request, ResponseCode::Refused));
        }
        _ if question.query_class() != DNSClass::IN => return Outcome::Forward(request),
        _ => {}
    }
    match records(known, view, question, turn) {
        None => Outcome::Forward(request),
        Some((code, answers)) => {
            let mut message = reply(&request, code);
            message.metadata.authoritative = true;
            if answers.is_empty() {
                message.add_authorities(authority());
            }
            message.add_answers(answers);
            Outcome::Answer(message)
        }
    }
}

/// What is known of a question; none if it is for others.
fn records(
    known: Made<'_>,
    view: View,
    question: &Query,
    turn: usize,
) -> Option<(ResponseCode, Vec<Record>)> {
    let names = &known.snapshot.names;
    let (name, wanted) = (question.name(), question.query_type());
    let record = |data| Record::from_rdata(name.clone(), TTL, data);
    if let Ok(net) = name.parse_arpa_name()
        && net.prefix_len() == net.max_prefix_len()
    {
        let mut owner = names.owner(view, net.addr());
        if let (Owner::Nobody, IpAddr::V6(made)) = (&owner, net.addr())
            && let Some(given) = known.given(made)
        {
            owner = names.owner(view, given);
        }
        let owner = match owner {
            Owner::Port(name) => name,
            Owner::Nobody => return Some((ResponseCode::NXDomain, Vec::new())),
            Owner::Elsewhere => return None,
        };
        let owner = Name::from_ascii(owner + ".").ok()?;
        let asked = matches!(wanted, RecordType::PTR | RecordType::ANY);
        let found = asked.then(|| record(RData::PTR(PTR(owner))));
        return Some((ResponseCode::NoError, found.into_iter().collect()));
    }
    let text = name.to_ascii().to_ascii_lowercase();
    let text = text.strip_suffix('.').unwrap_or(&text);
    if text.is_empty() {
        return None;
    }
    match names.find(view, text) {
        Known::Elsewhere => None,
        Known::Missing => Some((ResponseCode::NXDomain, Vec::new())),
        Known::Addresses(addresses) => {
            let at = turn.checked_rem(addresses.len()).unwrap_or_default();
            let in_turn = addresses[at..].iter().chain(&addresses[..at]);
            let wants = |kind| wanted == kind || wanted == RecordType::ANY;
            let mut found = Vec::new();
            for address in in_turn {
                match *address {
                    IpAddr::V4(v4) => {
                        found.extend(wants(RecordType::A).then(|| record(RData::A(A(v4)))));
                        let made = wants(RecordType::AAAA).then(|| known.beside(*address)).flatten();
                        found.extend(made.map(|v6| record(RData::AAAA(AAAA(v6)))));
                    }
                    IpAddr::V6(v6) => {
                        found.extend(wants(RecordType::AAAA).then(|| record(RData::AAAA(AAAA(v6)))));
                    }
                }
            }
            Some((ResponseCode::NoError, found))
        }
    }
}

/// Who answers for our domain, and how long that something is missing may be kept (RFC 2308).
fn authority() -> Option<Record> {
    let zone = Name::from_ascii(format!("{DOMAIN}.")).ok()?;
    let mailbox = zone.prepend_label("hostmaster").ok()?;
    let soa = SOA::new(zone.clone(), mailbox, 1, 3600, 600, 86_400, TTL);
    Some(Record::from_rdata(zone, TTL, RData::SOA(soa)))
}

/// An answer without records.
pub fn reply(request: &Message, code: ResponseCode) -> Message {
    let mut message = Message::error_msg(request.metadata.id, request.metadata.op_code, code);
    message.metadata.recursion_desired = request.metadata.recursion_desired;
    message.metadata.recursion_available = true;
    message.add_queries(request.queries.iter().cloned());
    if request.edns.is_some() {
        let mut edns = Edns::new();
        edns.set_max_payload(OUR_PAYLOAD);
        message.set_edns(edns);
    }
    message
}

/// How long an answer to a request may be that came by UDP.
pub fn limit(request: &[u8]) -> usize {
    let said = Message::from_vec(request).ok().and_then(|m| m.edns).map_or(PLAIN, |edns| edns.max_payload());
    said.max(PLAIN).into()
}

/// The answer's bytes: cut, and marked so, if it is longer than `limit`. None if it cannot be written.
pub fn emit(answer: &Message, limit: usize) -> Option<Vec<u8>> {
    let bytes = answer.to_vec().ok()?;
    if bytes.len() <= limit {
        return Some(bytes);
    }
    let mut cut = answer.clone();
    cut.answers.clear();
    cut.authorities.clear();
    cut.additionals.clear();
    cut.metadata.truncation = true;
    cut.to_vec().ok()
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::names::Names;
    use crate::router::neighbor::Neighbors;
    use crate::snapshot::{NetworkId, Snapshot};

    const HERE: NetworkId = NetworkId(3);
    const VIEW: View = View::Network(HERE);

    fn names() -> Names {
        let mut names = Names::default();
        names.add_network(HERE, "default", ["10.0.0.0/24".parse().unwrap()]);
        for n in 2..=60 {
            let addresses = [IpAddr::from([10, 0, 0, n])];
            names.add_port(HERE, &format!("c{n}"), ["all"].into_iter(), &addresses);
        }
        names
    }

    fn said(bytes: &[u8], turn: usize) -> Outcome {
        let mut snapshot = Snapshot::default();
        snapshot.names = Arc::new(names());
        respond(Made { snapshot: &snapshot, neighbors: &Neighbors::default() }, VIEW, bytes, turn)
    }

    fn question(name: &str, kind: RecordType) -> Message {
        let mut message = Message::query();
        message.add_query(Query::query(Name::from_ascii(name).unwrap(), kind));
        message
    }

    fn ask(name: &str, kind: RecordType, turn: usize) -> Message {
        match said(&question(name, kind).to_vec().unwrap(), turn) {
            Outcome::Answer(answer) => answer,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_name_without_the_type_is_not_a_missing_name() {
        let found = ask("C2.", RecordType::A, 0);
        assert_eq!(found.answers[0].data, RData::A(A([10, 0, 0, 2].into())));
        let none = ask("c2.", RecordType::AAAA, 0);
        assert_eq!((none.metadata.response_code, none.answers.len()), (ResponseCode::NoError, 0));
        assert_eq!(none.authorities.len(), 1, "RFC 2308 wants an SOA");
        let missing = ask("nobody.", RecordType::A, 0);
        assert_eq!(missing.metadata.response_code, ResponseCode::NXDomain);
    }

    #[test]
    fn addresses_come_in_turn() {
        let first = |turn| ask("all.", RecordType::A, turn).answers[0].data.clone();
        assert_eq!(first(0), RData::A(A([10, 0, 0, 2].into())));
        assert_eq!(first(1), RData::A(A([10, 0, 0, 3].into())));
        assert_eq!(first(59), first(0));
    }

    #[test]
    fn reverse_names() {
        let found = ask("2.0.0.10.in-addr.arpa.", RecordType::PTR, 0);
        let name = Name::from_ascii("c2.default.swd.internal.").unwrap();
        assert_eq!(found.answers[0].data, RData::PTR(PTR(name)));
        let nobody = ask("200.0.0.10.in-addr.arpa.", RecordType::PTR, 0);
        assert_eq!(
            nobody.metadata.response_code,
            ResponseCode::NXDomain,
            "the outside is not asked about it"
        );
    }

    #[test]
    fn long_answers_are_cut_and_say_so() {
        let answer = ask("all.", RecordType::A, 0);
        let cut = Message::from_vec(&emit(&answer, 512).unwrap()).unwrap();
        assert!(cut.metadata.truncation && cut.answers.is_empty() && cut.queries.len() == 1);
        let whole = Message::from_vec(&emit(&answer, 4096).unwrap()).unwrap();
        assert!(!whole.metadata.truncation && whole.answers.len() == 59);
    }

    #[test]
    fn what_is_no_question_gets_no_answer() {
        let mut answer = question("c2.", RecordType::A);
        answer.metadata.message_type = MessageType::Response;
        let outcome = said(&answer.to_vec().unwrap(), 0);
        assert!(matches!(outcome, Outcome::Ignore), "two gateways would talk for ever");
        assert!(matches!(said(&[0; 11], 0), Outcome::Ignore));
    }
}
