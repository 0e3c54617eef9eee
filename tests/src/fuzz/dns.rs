//! Questions for names: as a message, and as a stream of them.

use std::net::IpAddr;
use std::sync::Arc;

use switch::names::made::Made;
use switch::names::respond::{self, Outcome};
use switch::names::stream::{LONGEST_QUESTION, Questions, TooLong};
use switch::names::{Names, View};
use switch::router::neighbor::Neighbors;
use switch::snapshot::{NetworkId, Snapshot};

/// The bytes are a question, and they are what comes by a connection.
///
/// # Panics
/// When something is wrong with swd.
pub fn dns(data: &[u8]) {
    message(data);
    // However a stream is cut, the same comes out of it.
    let whole = questions(data, data.len().max(1));
    assert_eq!(whole, questions(data, 7));
    whole.0.iter().for_each(|question| message(question));
}

fn message(question: &[u8]) {
    let mut names = Names::default();
    let network = NetworkId(0);
    names.add_network(network, "default", ["10.0.0.0/24".parse().expect("a subnet")]);
    for n in 2..=60 {
        names.add_port(network, &format!("c{n}"), ["all"].into_iter(), &[IpAddr::from([10, 0, 0, n])]);
    }
    let mut snapshot = Snapshot::default();
    snapshot.names = Arc::new(names);
    let known = Made { snapshot: &snapshot, neighbors: &Neighbors::default() };
    for view in [View::Network(network), View::Network(NetworkId(1)), View::Host] {
        match respond::respond(known, view, question, 3) {
            Outcome::Ignore => {}
            Outcome::Forward(request) => assert_eq!(request.queries.len(), 1, "{request:?}"),
            Outcome::Answer(answer) => {
                let most = respond::limit(question);
                assert!(most >= respond::PLAIN.into());
                for most in [most, usize::from(u16::MAX)] {
                    let bytes = respond::emit(&answer, most).expect("what is said can be written");
                    assert!(bytes.len() <= most, "{} bytes where {most} are taken", bytes.len());
                    assert_eq!((&bytes[..2], bytes[2] & 0x80), (&question[..2], 0x80), "not an answer to it");
                    assert!(
                        matches!(respond::respond(known, view, &bytes, 0), Outcome::Ignore),
                        "an answer is answered"
                    );
                }
            }
        }
    }
}

/// What comes out of a stream that comes in pieces, and how it ends.
fn questions(stream: &[u8], piece: usize) -> (Vec<Vec<u8>>, Option<TooLong>) {
    let (mut questions, mut out, mut left) = (Questions::default(), Vec::new(), stream);
    loop {
        match questions.take() {
            Ok(Some(question)) => {
                assert!(question.len() <= LONGEST_QUESTION);
                out.push(question);
            }
            Ok(None) if left.is_empty() => return (out, None),
            Ok(None) => {
                let taken = questions.push(&left[..piece.min(left.len())]);
                assert!(taken > 0, "neither a question nor room for one");
                left = &left[taken..];
            }
            Err(wrong) => return (out, Some(wrong)),
        }
    }
}
