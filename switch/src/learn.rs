//! Learn: the stage that notes which port a source address lives behind.

use crate::dataplane::DataEvent;
use crate::fdb::{Kind, Learned};
use crate::frame::Frame;
use crate::stage::{Cx, Stage};
use crate::verdict::{DropReason, Verdict};

/// Notes the source address. Drops frames whose source is bound to another port, or moves as only a loop makes it move.
#[derive(Clone, Copy, Debug, Default)]
pub struct Learn;

impl Stage for Learn {
    fn name(&self) -> &'static str {
        "learn"
    }

    fn process(&mut self, frame: &mut Frame<'_>, cx: &mut Cx<'_>) -> Verdict {
        let mac = frame.src();
        match cx.fdb.learn(cx.network.id, mac, frame.port, cx.now) {
            Learned::Known => {}
            Learned::Moved { from } => (cx.tell)(DataEvent::MacMoved { mac, from, to: frame.port }),
            // Not learned: its answers are flooded, which is slow for that port and no loss.
            Learned::Full { tell } => {
                if tell {
                    (cx.tell)(DataEvent::FdbFull { port: frame.port });
                }
            }
            Learned::Damped { port, tell } => {
                if tell {
                    (cx.tell)(DataEvent::MacDamped { mac, port });
                }
                return Verdict::Drop(DropReason::MacDamped);
            }
            Learned::Bound => return Verdict::Drop(DropReason::StaticElsewhere),
        }
        Verdict::Next
    }

    fn explain(&self, frame: &Frame<'_>, cx: &Cx<'_>) -> Option<String> {
        let mac = frame.src();
        let Some(known) = cx.fdb.get(cx.network.id, mac, cx.now) else {
            return Some(format!("{mac} is new, and is learned at port {}", cx.port.name));
        };
        let at = cx.snapshot.port(known.port).map_or("a port that is gone", |port| &*port.name);
        Some(match (known.kind, known.port == cx.port.id) {
            (Kind::Dynamic, true) => {
                format!("{mac} is known at port {at}, last seen {} s ago", known.age.as_secs())
            }
            (Kind::Dynamic, false) => format!("{mac} is known at port {at}, and moves to {}", cx.port.name),
            (_, true) => format!("{mac} is bound to port {at}"),
            (_, false) => format!("{mac} is bound to port {at}, not to {}", cx.port.name),
        })
    }
}
