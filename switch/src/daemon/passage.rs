//! What passes from one daemon to the next besides connections: what guards ports, and what the relay carries. It lies with
//! the keeper meanwhile.
//!
//! A start takes these up late: the guards when their ports are claimed, the relay when all that is published is known. What
//! was left and is not wanted by then is let go of.

use std::path::PathBuf;
use std::sync::Arc;

use super::control::Daemon;
use super::keeper::{Keeper, NOT_A_PORT, Safe};
use super::outside::Outside;
use super::portguard::{Guards, Kept, RelaySockets};
use super::relay::Carried;

/// Begins the names of what the relay carries.
const RELAYED: &str = "relay:";

/// What an earlier daemon left, and what is left for a later one.
#[derive(Debug)]
pub(super) struct Passage {
    safe: Arc<Safe>,
    /// What nobody has asked for yet; none any more once everybody had the chance to.
    kept: Option<Kept>,
    /// Takes the place of that.
    nothing: Kept,
    /// The process that hands over to this one, if it runs still.
    pub(super) predecessor: Option<u32>,
    /// What the relay is to serve, as soon as it is started.
    pub(super) sockets: Option<RelaySockets>,
}

impl Passage {
    /// What the keeper has.
    pub(super) fn new(socket: PathBuf, keeper: &Keeper, predecessor: Option<u32>) -> Self {
        let kept = keeper.kept().unwrap_or_else(|e| {
            tracing::warn!("the keeper does not tell what the daemon before this one left: {e}");
            Kept::new()
        });
        let safe = Arc::new(Safe::new(socket));
        Self { safe, kept: Some(kept), nothing: Kept::new(), predecessor, sockets: None }
    }

    /// Where guards leave what outlives the daemon, and what was left there.
    pub(super) fn for_guards(&mut self) -> (Arc<Safe>, &mut Kept) {
        (Arc::clone(&self.safe), self.kept.as_mut().unwrap_or(&mut self.nothing))
    }

    /// Nothing more is taken from what was left.
    pub(super) const fn is_settled(&self) -> bool {
        self.kept.is_none()
    }
}

impl Outside {
    /// What is wanted is set up: the relay begins, and what an earlier daemon left in vain is let go of.
    pub(super) fn settle(&mut self) {
        self.start_relay();
        if let Some(guards) = &self.guards {
            guards.settle();
        }
        for name in self.passage.kept.take().unwrap_or_default().into_keys() {
            // Those that are wanted have been claimed, but the program, whose place was taken, and what the relay carries.
            if self.guards.is_none() {
                self.passage.safe.delete(&name);
            }
        }
    }
}

impl Daemon {
    /// Takes up what the relay of the daemon before this one carried.
    pub(super) fn adopt_relayed(&self) {
        let kept = self.keeper.kept().unwrap_or_default();
        let prefix = format!("{NOT_A_PORT}{RELAYED}");
        let mut carried = Vec::new();
        for (name, fds) in kept {
            // After the prefix a number and a colon.
            let Some((_, text)) = name.strip_prefix(&prefix).and_then(|rest| rest.split_once(':')) else {
                continue;
            };
            carried.extend(Carried::from_parts(text, fds));
            self.outside.passage.safe.delete(&name);
        }
        if let Some(relay) = self.outside.relay.as_ref().filter(|_| !carried.is_empty()) {
            tracing::info!("{} connections of clients on the host go on", carried.len());
            relay.adopt(carried);
        }
    }

    /// Leaves all that another daemon goes on with: nothing is forwarded from here on, and nothing must be changed.
    pub(super) fn leave(&mut self) {
        self.dataplane.halt();
        // What the kernel carried by itself belongs to the connections.
        self.dataplane.collect();
        self.write_connections_down();
        let carried = self.outside.relay.as_ref().map(|relay| relay.retire()).unwrap_or_default();
        for (number, carried) in carried.iter().enumerate() {
            let (text, fds) = carried.to_parts();
            self.outside.passage.safe.put(&format!("{NOT_A_PORT}{RELAYED}{number}:{text}"), fds);
        }
    }

    /// Leaves what guards ports with a keeper that was started just now.
    pub(super) fn leave_guards_again(&self) {
        if let Some(guards) = &self.outside.guards {
            Guards::put_again(guards);
        }
    }
}
