//! Bridge: the last stage. Where the destination address lives, or everywhere.

use crate::frame::Frame;
use crate::limit;
use crate::mac::Mac;
use crate::stage::{Cx, Stage};
use crate::verdict::{DropReason, Verdict};

/// Forwards to the port of a known unicast address, floods the rest within the network.
#[derive(Clone, Copy, Debug, Default)]
pub struct Bridge;

impl Stage for Bridge {
    fn name(&self) -> &'static str {
        "bridge"
    }

    fn process(&mut self, frame: &mut Frame<'_>, cx: &mut Cx<'_>) -> Verdict {
        let dst = frame.dst();
        let known = if dst.is_multicast() { None } else { cx.fdb.lookup(cx.network.id, dst, cx.now) };
        match known {
            Some(port) if port == frame.port => Verdict::Drop(DropReason::SamePort),
            Some(port) => Verdict::Forward(port),
            None if is_storm(frame, cx) => Verdict::Drop(DropReason::Storm),
            // In an isolated network the only other station that may hear a container is the host.
            None if isolated(cx) => {
                cx.network.host_port.map_or(Verdict::Drop(DropReason::Isolated), Verdict::Forward)
            }
            None => Verdict::Flood,
        }
    }

    fn explain(&self, frame: &Frame<'_>, cx: &Cx<'_>) -> Option<String> {
        let dst = frame.dst();
        let isolates = if cx.network.isolate_ports { "; ports of this network are isolated" } else { "" };
        if dst.is_multicast() {
            let what = if dst == Mac::BROADCAST { "broadcast" } else { "multicast" };
            return Some(format!("{dst} is {what}: for every other port{isolates}"));
        }
        Some(match cx.fdb.lookup(cx.network.id, dst, cx.now).map(|port| cx.snapshot.port(port)) {
            Some(Some(port)) => format!("{dst} is known at port {}{isolates}", port.name),
            Some(None) => format!("{dst} is known at a port that is gone"),
            None => format!("{dst} is unknown: for every other port{isolates}"),
        })
    }
}

/// Whether nobody but the host may hear the port: the network isolates, no rule says otherwise, and it is not the host's. Where
/// there are rules, the engine asks them for each port that a frame is flooded to.
fn isolated(cx: &Cx<'_>) -> bool {
    let is_host = cx.network.host_port == Some(cx.port.id);
    cx.network.isolate_ports && !is_host && !cx.snapshot.policy.is_inside(cx.network.id)
}

/// Whether a frame for many is one too many.
fn is_storm(frame: &Frame<'_>, cx: &Cx<'_>) -> bool {
    let storm = cx.port.limits.as_ref().and_then(|limits| limits.storm.as_ref());
    storm.is_some_and(|storm| !storm.admits(limit::size(frame), cx.now))
}
