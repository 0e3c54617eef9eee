//! A process that owns ports until it is killed: `guard-owner NAMESPACE lookup|sockets`. Says `owned` when it does.

use std::path::PathBuf;
use std::sync::Arc;
use std::thread;

use switch::daemon::portguard::Protocol::{Tcp, Udp};
use switch::daemon::portguard::{GuardLimits, Guards, Mechanism};
use switch::daemon::relay::{Relay, RelayLimits};
use switch::sys::netns::NetNs;
use tests::guarded::{own_all, target};
use tests::process::s;

fn main() {
    let mut arguments = std::env::args().skip(1);
    let host = PathBuf::from(arguments.next().expect("a namespace"));
    let host = NetNs::open(&host).expect("namespace");
    let mechanism = match arguments.next().as_deref() {
        Some("lookup") => Mechanism::Lookup,
        Some("sockets") => Mechanism::Sockets,
        other => panic!("no such mechanism: {other:?}"),
    };
    let limits = GuardLimits { mechanism: Some(mechanism), ..GuardLimits::default() };
    let (mut guards, sockets) = Guards::with_limits(&host, limits).expect("guards");
    let targets = Arc::new(|_, dialled, _| Some(target(dialled)));
    let _relay = Relay::start(sockets, targets, RelayLimits::default()).expect("relay");
    own_all(&mut guards, &[Tcp, Udp], &(5000..=5100));
    println!("owned");
    thread::sleep(s(60));
}
