//! What `swctl top` shows: rates from two looks, and a history of them.

use std::collections::{BTreeMap, VecDeque};
use std::time::{Duration, Instant};

use ctl::api::{DropCount, Port, PortState, Status};

use crate::commands::limits;

/// Looks that are remembered: more than a wide terminal has columns.
const HISTORY: usize = 240;

/// By what ports are sorted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Sort {
    /// By name.
    Name,
    /// By bits per second, both ways.
    #[default]
    Rate,
    /// By frames per second, both ways.
    Frames,
    /// By drops per second, both ways.
    Drops,
    /// By connections.
    Connections,
}

impl Sort {
    /// Another one; in the end every one.
    pub(super) const fn next(self) -> Self {
        match self {
            Self::Name => Self::Rate,
            Self::Rate => Self::Frames,
            Self::Frames => Self::Drops,
            Self::Drops => Self::Connections,
            Self::Connections => Self::Name,
        }
    }
}

/// What swd answered at one moment.
#[derive(Clone, Debug)]
pub(super) struct Sample {
    pub(super) status: Status,
    pub(super) ports: Vec<Port>,
    pub(super) drops: Vec<DropCount>,
}

/// A port's numbers, per second.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Row {
    pub(super) name: String,
    pub(super) network: String,
    pub(super) up: bool,
    pub(super) rx_bits: u64,
    pub(super) tx_bits: u64,
    pub(super) rx_frames: u64,
    pub(super) tx_frames: u64,
    pub(super) drops: u64,
    pub(super) connections: u64,
    /// Rates that are not to be passed, in and out; empty without any.
    pub(super) limits: String,
    /// Bits of both ways at each look, the last one last.
    pub(super) history: VecDeque<u64>,
}

/// Frames per second by their end.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Ends {
    pub(super) received: u64,
    pub(super) forwarded: u64,
    pub(super) answered: u64,
    pub(super) dropped: u64,
}

/// All that is shown.
#[derive(Debug)]
pub(super) struct State {
    sort: Sort,
    reversed: bool,
    top: usize,
    last: Option<(Sample, Instant)>,
    rows: Vec<Row>,
    pub(super) ends: Ends,
    /// Frames received at each look, per second.
    pub(super) frames: VecDeque<u64>,
    /// Reasons with what they are now, per second, and in all: those that occurred, the busiest first.
    pub(super) drops: Vec<(String, u64, u64)>,
}

impl State {
    pub(super) fn new(sort: Sort) -> Self {
        Self {
            sort,
            reversed: false,
            top: 0,
            last: None,
            rows: Vec::new(),
            ends: Ends::default(),
            frames: VecDeque::new(),
            drops: Vec::new(),
        }
    }

    /// Takes a new look.
    pub(super) fn take(&mut self, new: Sample, at: Instant) {
        let old = self.last.take();
        // After a restart of swd counters begin anew: nothing can be said of what was in between.
        let old = old.filter(|(old, then)| old.status.started == new.status.started && at > *then);
        let per_second = |now: u64, before: u64, since: Duration| {
            let rate = now.saturating_sub(before) as f64 / since.as_secs_f64();
            // Saturates, and is not negative.
            #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "see above")]
            let rate = rate.round() as u64;
            rate
        };
        let since = old.as_ref().map_or(Duration::ZERO, |(_, then)| at - *then);
        let before: BTreeMap<&str, &Port> = match &old {
            Some((old, _)) => old.ports.iter().map(|p| (p.name.as_str(), p)).collect(),
            None => BTreeMap::new(),
        };
        let mut histories: BTreeMap<String, VecDeque<u64>> =
            self.rows.drain(..).map(|row| (row.name, row.history)).collect();
        self.rows = new
            .ports
            .iter()
            .map(|p| {
                let mut row = Row {
                    name: p.name.clone(),
                    network: p.network.clone(),
                    up: p.state == PortState::Up,
                    connections: p.connections,
                    limits: limits::short(&p.limits),
                    history: histories.remove(&p.name).unwrap_or_default(),
                    ..Row::default()
                };
                // A port that was made anew under its name has counters anew.
                if let Some(b) = before.get(p.name.as_str()).filter(|b| b.since == p.since) {
                    row.rx_bits = per_second(p.rx_bytes, b.rx_bytes, since).saturating_mul(8);
                    row.tx_bits = per_second(p.tx_bytes, b.tx_bytes, since).saturating_mul(8);
                    row.rx_frames = per_second(p.rx_packets, b.rx_packets, since);
                    row.tx_frames = per_second(p.tx_packets, b.tx_packets, since);
                    row.drops = per_second(p.rx_dropped + p.tx_dropped, b.rx_dropped + b.tx_dropped, since);
                    remember(&mut row.history, row.rx_bits + row.tx_bits);
                }
                row
            })
            .collect();
        self.drops = new
            .drops
            .iter()
            .filter(|d| d.count > 0)
            .map(|d| {
                let before =
                    old.as_ref().and_then(|(old, _)| old.drops.iter().find(|o| o.reason == d.reason));
                let rate = before.map_or(0, |b| per_second(d.count, b.count, since));
                (d.reason.clone(), rate, d.count)
            })
            .collect();
        self.drops.sort_by(|a, b| (b.1, b.2, &a.0).cmp(&(a.1, a.2, &b.0)));
        if let Some((old, _)) = &old {
            let (now, before) = (&new.status, &old.status);
            self.ends = Ends {
                received: per_second(now.received, before.received, since),
                forwarded: per_second(now.forwarded, before.forwarded, since),
                answered: per_second(now.answered, before.answered, since),
                dropped: per_second(now.drops, before.drops, since),
            };
            remember(&mut self.frames, self.ends.received);
        } else {
            self.ends = Ends::default();
        }
        self.last = Some((new, at));
        self.sort_by(self.sort);
    }

    /// What swd said of itself last.
    pub(super) fn status(&self) -> Option<&Status> {
        self.last.as_ref().map(|(sample, _)| &sample.status)
    }

    pub(super) const fn sort(&self) -> Sort {
        self.sort
    }

    pub(super) const fn is_reversed(&self) -> bool {
        self.reversed
    }

    pub(super) fn sort_by(&mut self, sort: Sort) {
        self.sort = sort;
        self.rows.sort_by(|a, b| {
            let key = |row: &Row| match sort {
                Sort::Name => 0,
                Sort::Rate => row.rx_bits + row.tx_bits,
                Sort::Frames => row.rx_frames + row.tx_frames,
                Sort::Drops => row.drops,
                Sort::Connections => row.connections,
            };
            // The most first; of equals by name.
            key(b).cmp(&key(a)).then_with(|| a.name.cmp(&b.name))
        });
        if self.reversed {
            self.rows.reverse();
        }
    }

    pub(super) fn reverse(&mut self) {
        self.reversed = !self.reversed;
        self.sort_by(self.sort);
    }

    /// Moves the window on the ports.
    pub(super) fn scroll(&mut self, by: i64) {
        let last = self.rows.len().saturating_sub(1);
        let top = i64::try_from(self.top).unwrap_or(i64::MAX).saturating_add(by).max(0);
        self.top = usize::try_from(top).unwrap_or(last).min(last);
    }

    /// The ports that `height` lines show, and how many there are.
    pub(super) fn window(&self, height: usize) -> (&[Row], usize) {
        let top = self.top.min(self.rows.len().saturating_sub(height));
        let end = (top + height).min(self.rows.len());
        (&self.rows[top..end], self.rows.len())
    }
}

fn remember(history: &mut VecDeque<u64>, value: u64) {
    if history.len() == HISTORY {
        history.pop_front();
    }
    history.push_back(value);
}
