//! `GET /v1/trace/live`: real frames, and what the stages decide about them.

use std::sync::Arc;
use std::time::Duration;

use ctl::api::{LiveTraceSpec, LiveTraced};
use ctl::filter::{Filter, FilterError};

use super::control::Daemon;
use super::trace::{self, TraceError};
use crate::batch::Source;
use crate::observe::live::{LiveTrace, Walk};
use crate::router::resolve::Ingress;
use crate::snapshot::Snapshot;
use crate::worker;

/// Live traces at once: each costs the workers a look at every frame.
const MAX_TRACES: usize = 4;

/// Why there is no live trace.
#[derive(Debug, thiserror::Error)]
pub(super) enum LiveTraceError {
    /// No such port.
    #[error(transparent)]
    From(#[from] TraceError),
    /// The filter.
    #[error("filter: {0}")]
    Filter(#[from] FilterError),
    /// Too many.
    #[error("{MAX_TRACES} live traces run already; end one of them first")]
    TooMany,
}

impl Daemon {
    /// Begins a live trace: give it back with [`Daemon::end_live_trace`].
    ///
    /// # Errors
    /// When there is nobody whose frames could be traced, or too much is traced already.
    pub(super) fn begin_live_trace(
        &mut self,
        spec: &LiveTraceSpec,
    ) -> Result<Arc<LiveTrace>, LiveTraceError> {
        let from = match self.trace_source(&self.dataplane.snapshot(), &spec.from)? {
            Source::Port(port) => Ingress::Port(port),
            Source::Uplink(ifindex) => Ingress::Uplink(ifindex),
            Source::Ifindex(_) => return Err(TraceError::NoPort(spec.from.clone()).into()),
        };
        let filter: Option<Filter> = spec.filter.as_deref().map(str::parse).transpose()?;
        if self.live_traces.len() >= MAX_TRACES {
            return Err(LiveTraceError::TooMany);
        }
        let trace = Arc::new(LiveTrace::new(from, filter));
        self.live_traces.push(Arc::clone(&trace));
        self.publish();
        Ok(trace)
    }

    /// Ends a live trace.
    pub(super) fn end_live_trace(&mut self, trace: &Arc<LiveTrace>) {
        self.live_traces.retain(|t| !Arc::ptr_eq(t, trace));
        self.publish();
    }

    /// The live traces whose port or uplink is there. The others are closed.
    pub(super) fn live_traces(&mut self, snapshot: &Snapshot) -> Vec<Arc<LiveTrace>> {
        self.live_traces.retain(|trace| {
            let there = match trace.from {
                Ingress::Port(port) => self.live.port_name(port).is_some(),
                Ingress::Uplink(ifindex) => snapshot.uplink(ifindex).is_some(),
            };
            if !there {
                trace.close();
            }
            there
        });
        self.live_traces.clone()
    }
}

/// What passed, for the API. `missed` frames passed unexplained before the first of them.
pub(super) fn view(snapshot: &Snapshot, walks: &[Walk], missed: u64) -> Vec<LiveTraced> {
    let wall = worker::wall_offset();
    let time = |walk: &Walk| {
        let at = Duration::from_nanos(walk.at.as_nanos()) + wall;
        jiff::Timestamp::from_duration(at.try_into().unwrap_or_default()).unwrap_or_default()
    };
    let missed = std::iter::once(missed).chain(std::iter::repeat(0));
    let one = |(walk, missed): (&Walk, u64)| LiveTraced {
        time: time(walk),
        missed,
        traced: trace::view(snapshot, &walk.bytes, &walk.traced),
    };
    walks.iter().zip(missed).map(one).collect()
}
