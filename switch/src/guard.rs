//! Guard: the first stage. What must not enter a switch at all ends here.

use crate::frame::{ETHERNET_HEADER, Frame};
use crate::mac::Mac;
use crate::stage::{Cx, Stage};
use crate::verdict::{DropReason, Verdict};

/// Drops frames that no station may send: too short, offload headers that do not fit, multicast or zero sources, frames
/// that end at the first bridge (IEEE 802.1D 7.12.6), the gateway's own address from elsewhere, and what a guarded port may not
/// claim to be ([`crate::sources`]).
#[derive(Clone, Copy, Debug, Default)]
pub struct Guard;

impl Stage for Guard {
    fn name(&self) -> &'static str {
        "guard"
    }

    fn process(&mut self, frame: &mut Frame<'_>, cx: &mut Cx<'_>) -> Verdict {
        if frame.len() < ETHERNET_HEADER {
            return Verdict::Drop(DropReason::Malformed);
        }
        if !frame.offload().fits(frame.len()) {
            return Verdict::Drop(DropReason::BadOffload);
        }
        let src = frame.src();
        if src.is_multicast() || src == Mac::ZERO {
            return Verdict::Drop(DropReason::BadSource);
        }
        if frame.dst().is_link_local() {
            return Verdict::Drop(DropReason::LinkLocal);
        }
        if src == cx.network.gateway_mac && cx.network.host_port != Some(frame.port) {
            return Verdict::Drop(DropReason::GatewaySpoofed);
        }
        match cx.port.sources.as_ref().map(|sources| sources.check(frame)) {
            Some(Err(reason)) => Verdict::Drop(reason),
            None | Some(Ok(())) => Verdict::Next,
        }
    }

    fn explain(&self, frame: &Frame<'_>, cx: &Cx<'_>) -> Option<String> {
        let guarded = if cx.port.sources.is_some() { "; its sources are guarded" } else { "" };
        Some(format!(
            "{} bytes from {} on port {} of network {}, whose gateway is {}{guarded}",
            frame.len(),
            frame.src(),
            cx.port.name,
            cx.network.name,
            cx.network.gateway_mac
        ))
    }
}
