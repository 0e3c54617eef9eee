//! The filters of the uplinks' sockets.
//!
//! Each publish changes them, by the thousand if need be, and the kernel takes some milliseconds to verify one that also looks for
//! connections. So a new filter is in force at once in its classic form, by which the workers receive everything, and gets the rest
//! when there is a connection to carry, by a thread that nobody waits for, and is asked once a second at most.

use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use libc::sock_filter;
use nat::Time;

use super::attacher::Attacher;
use super::connections::Told;
use super::epoch::Epoch;
use super::shares::Shares;
use super::translate::{self, Tables};
use crate::sys::bpf::{Map, Program, ProgramKind};
use crate::sys::packet::PacketSocket;

/// Between two askings for a round of loading.
const PAUSE: Duration = Duration::from_secs(1);

/// The maps that the programs share.
#[derive(Debug)]
pub(super) struct Maps {
    pub(super) connections: Arc<Map>,
    pub(super) told: Arc<Told>,
    pub(super) handoff: Arc<Map>,
    pub(super) epoch: Arc<Epoch>,
    pub(super) shares: Arc<Shares>,
}

impl Maps {
    fn program(&self, filter: &[sock_filter]) -> Option<Program> {
        let words = self.epoch.words()?;
        let tables = Tables { connections: &self.connections, reports: self.told.map() };
        let program = translate::uplink_filter(filter, tables, &self.handoff, (words, self.shares.map()))?;
        let program = Program::load(ProgramKind::SocketFilter, "swd_uplink", &program);
        program.inspect_err(|e| tracing::error!("no fast path from the uplinks: {e}")).ok()
    }
}

#[derive(Debug, Default)]
struct State {
    sockets: Vec<(Weak<PacketSocket>, Arc<[sock_filter]>)>,
    /// All of them have what they need.
    ready: bool,
    asked: bool,
    asked_at: Option<Time>,
}

/// The sockets, with their filters.
#[derive(Debug)]
pub(super) struct Uplinks {
    maps: Maps,
    state: Mutex<State>,
}

impl Uplinks {
    pub(super) fn new(maps: Maps) -> Arc<Self> {
        Arc::new(Self { maps, state: Mutex::default() })
    }

    /// What is counted of each interface.
    pub(super) const fn shares(&self) -> &Arc<Shares> {
        &self.maps.shares
    }

    /// Lets a socket receive what a filter lets in.
    pub(super) fn set(&self, socket: &Arc<PacketSocket>, filter: &[sock_filter]) -> io::Result<()> {
        let mut state = self.state();
        state.ready = false;
        state.asked = false;
        socket.set_filter(filter)?;
        let this = Arc::downgrade(socket);
        state.sockets.retain(|(other, _)| other.strong_count() > 0 && !other.ptr_eq(&this));
        state.sockets.push((this, filter.into()));
        Ok(())
    }

    /// Whether what the kernel carries is not received any more. If not, it soon will be. Never waits.
    pub(super) fn are_ready(self: &Arc<Self>, thread: &Attacher, now: Time) -> bool {
        let Ok(mut state) = self.state.try_lock() else { return false };
        if !state.ready && !state.asked && state.asked_at.is_none_or(|at| now.since(at) >= PAUSE) {
            state.asked = true;
            state.asked_at = Some(now);
            let this = Arc::clone(self);
            thread.run(move || this.load());
        }
        state.ready
    }

    fn load(&self) {
        let mut state = self.state();
        let mut last: Option<(Arc<[sock_filter]>, Program)> = None;
        let mut all = true;
        for (socket, filter) in &state.sockets {
            let Some(socket) = socket.upgrade() else { continue };
            let same =
                |a: &sock_filter, b: &sock_filter| (a.code, a.jt, a.jf, a.k) == (b.code, b.jt, b.jf, b.k);
            let alike = |other: &[sock_filter]| {
                other.len() == filter.len() && other.iter().zip(filter.iter()).all(|(a, b)| same(a, b))
            };
            if last.as_ref().is_none_or(|(other, _)| !alike(other)) {
                last = self.maps.program(filter).map(|program| (Arc::clone(filter), program));
            }
            all &= last.as_ref().is_some_and(|(_, program)| socket.set_program(program).is_ok());
        }
        state.ready = all;
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
