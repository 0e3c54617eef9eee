//! What the engine offers to the fast path: see [`crate::fastpath`].

use super::Engine;
use crate::batch::Batch;
use crate::fastpath::awaited::Question;
use crate::fastpath::carry::Carry;
use crate::fastpath::offer::Flow;
use crate::frame::Frame;
use crate::router::resolve::Ingress;
use crate::router::{Lock, inside};
use crate::snapshot::{Port, PortId, Snapshot};
use crate::verdict::Verdict;

impl Engine {
    /// Counts a frame that the bridge forwards, if its flow may take the fast path.
    pub(super) fn offer(&mut self, snapshot: &Snapshot, from: &Port, verdict: Verdict, frame: &Frame<'_>) {
        let (Some(offers), Verdict::Forward(to), true) =
            (&mut self.offers, verdict, self.pipeline.ended_at_bridge())
        else {
            return;
        };
        // Who watches wants to see every frame. What the kernel had ended with the snapshot that began it.
        if is_watched(snapshot, Ingress::Port(from.id), Ingress::Port(to)) {
            return;
        }
        let Some((network, to)) = snapshot.network(from.network).zip(snapshot.port(to)) else { return };
        if let Some(flow) = Flow::of(frame, network, from, to)
            && inside::is_free(snapshot, network, from, to)
        {
            offers.saw(flow, frame.len());
        }
    }

    /// Offers the connection of a frame that the router has translated.
    pub(super) fn offer_routed(
        &mut self,
        snapshot: &Snapshot,
        from: Ingress,
        verdict: Verdict,
        batch: &mut Batch,
        frame: usize,
        lock: &mut Lock<'_>,
    ) {
        let routed = self.pipeline.router.take_routed();
        let (Some(offers), Some(routed), Some(state)) = (&mut self.offers, routed, lock.taken()) else {
            return;
        };
        let to = match verdict {
            Verdict::Forward(port) => Ingress::Port(port),
            Verdict::Uplink(ifindex) => Ingress::Uplink(ifindex),
            _ => return,
        };
        let Some(connection) = state.nat.connection(routed.connection) else { return };
        if let Ingress::Uplink(uplink) = to
            && let Some(question) = Question::of(connection, routed.direction, uplink)
        {
            offers.asked(question);
        }
        // Who watches wants to see every frame, and so has a limit of rates.
        let limited = |end| match end {
            Ingress::Port(port) => snapshot.port(port).is_none_or(Port::sees_all),
            Ingress::Uplink(_) => false,
        };
        if is_watched(snapshot, from, to) || limited(from) || limited(to) {
            return;
        }
        let frame = batch.frame(frame, PortId(u32::MAX));
        let leaves = [frame.dst(), frame.src()];
        if let Some(carry) = Carry::of(&state.nat, connection, routed, (from, to), leaves) {
            offers.carried(carry);
        }
    }
}

/// Whether somebody wants to see every frame that goes this way.
fn is_watched(snapshot: &Snapshot, from: Ingress, to: Ingress) -> bool {
    snapshot.observers.as_ref().is_some_and(|observers| observers.want_flow(snapshot, from, to))
}
