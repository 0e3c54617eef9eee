//! Requests to the API: what is read from their bodies, and what becomes of the desired state. What is done about it in the kernel
//! is not part of it.

use std::fmt::Display;

use ctl::api::{
    AttachSpec, CaptureSpec, ConnectionFilter, DEFAULT_NETWORK, FdbFlush, FdbSpec, HandoverSpec, Mirror,
    NetworkSpec, PortChange, PortSpec, PublishSpec, Rule, TraceSpec,
};
use jiff::Timestamp;
use serde::de::DeserializeOwned;
use switch::daemon::desired::{Desired, EditError};
use switch::daemon::{docker, plan, state};
use switch::sys::netns::NetNsId;

/// Most requests of an input.
const MOST: usize = 64;

/// Requests, a line each: a letter that says to what, and the body. What follows a `/` in place of a body is a name in the path.
///
/// Every request that is refused changes nothing and is refused in one line; what is accepted can be written down and read
/// back, and there is a way to it and back.
///
/// # Panics
/// When something is wrong with swd.
pub fn api(data: &[u8]) {
    let mut desired = Desired::default();
    let default = ctl::config::Network::default().spec(DEFAULT_NETWORK);
    desired.add_network("swd", &default, |_| false).expect("the shipped network");
    for line in data.split(|b| *b == b'\n').take(MOST) {
        let Some((what, body)) = line.split_first() else { continue };
        let before = desired.clone();
        match edit(&mut desired, *what, body) {
            Some(Err(said)) => {
                assert_eq!(said.lines().count(), 1, "{said:?}");
                assert_eq!(before, desired, "what was refused has changed something: {said}");
            }
            Some(Ok(())) if before != desired => check(&before, &desired),
            _ => {}
        }
    }
}

/// What a request is about; `None` where it changes nothing.
fn edit(desired: &mut Desired, what: u8, body: &[u8]) -> Option<Result<(), String>> {
    let now = Timestamp::UNIX_EPOCH;
    let name = || Some(std::str::from_utf8(body.strip_prefix(b"/")?).unwrap_or_default().to_owned());
    let done = match what {
        b'n' => match name() {
            Some(name) => line(desired.remove_network(&name)),
            None => read(body, |spec: NetworkSpec| desired.add_network("swd", &spec, |_| false)),
        },
        b'p' => match name() {
            Some(name) => line(desired.remove_port(&name)),
            None => read(body, |spec: PortSpec| desired.add_port(&spec, now)),
        },
        b'a' => match name() {
            Some(name) => line(desired.detach(&name)),
            None => read(body, |spec: AttachSpec| {
                let netns = (spec.netns.clone(), NetNsId { dev: 1, ino: 2 });
                desired.attach(&spec, netns, now, |_, _| false)
            }),
        },
        b'c' => read(body, |change: PortChange| {
            let port = desired.ports.keys().next().cloned().unwrap_or_default();
            desired.change_port(&port, &change)
        }),
        b'f' => read(body, |spec: FdbSpec| desired.add_static(&spec.mac, &spec.port)),
        b'r' => read(body, |rule: Rule| desired.add_rule(rule)),
        b'R' => read(body, |rule: Rule| desired.remove_rule(&rule)),
        b'm' => read(body, |mirror: Mirror| {
            let known = (desired.ports.contains_key(&mirror.from), desired.ports.contains_key(&mirror.to));
            desired.add_mirror(mirror, known)
        }),
        b'l' => read(body, |spec: PublishSpec| desired.check_publish(&spec, now)),
        b'd' => docker::network_asked_for(body)
            .and_then(|spec| line(desired.add_network("swd", &spec, |_| false))),
        // Read, and nothing else.
        b't' => read(body, |_: TraceSpec| Ok::<_, EditError>(())),
        b'w' => read(body, |_: CaptureSpec| Ok::<_, EditError>(())),
        b'F' => read(body, |_: ConnectionFilter| Ok::<_, EditError>(())),
        b'x' => read(body, |_: FdbFlush| Ok::<_, EditError>(())),
        b'h' => read(body, |_: HandoverSpec| Ok::<_, EditError>(())),
        _ => return None,
    };
    Some(done)
}

/// Reads a body as the API does.
fn read<T: DeserializeOwned, A, E: Display>(
    body: &[u8],
    work: impl FnOnce(T) -> Result<A, E>,
) -> Result<(), String> {
    // What serde says quotes the body; the API makes one line of it.
    let one_line = |e: serde_json::Error| e.to_string().lines().collect::<Vec<_>>().join("; ");
    let spec = serde_json::from_slice(body).map_err(one_line)?;
    line(work(spec))
}

fn line<A, E: Display>(done: Result<A, E>) -> Result<(), String> {
    done.map(drop).map_err(|e| e.to_string())
}

/// A new desired state can be kept, and reached, and left.
fn check(before: &Desired, after: &Desired) {
    let written = state::to_bytes(1, after).expect("what was accepted can be written");
    let (_, read) = state::parse(&written).expect("what was written can be read");
    assert_eq!(&read, after);
    let (there, back) = (plan::plan(before, after), plan::plan(after, before));
    assert_eq!(there.is_empty(), back.is_empty(), "a way there and none back");
    let nothing = Desired::default();
    assert_eq!(plan::plan(&nothing, after).len(), plan::plan(after, &nothing).len());
}
