//! Learn: the stage that notes which port a source address lives behind.

use crate::dataplane::DataEvent;
use crate::fdb::Learned;
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
}
