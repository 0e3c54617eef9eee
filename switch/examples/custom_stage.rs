//! A whole switch with a stage of its own: it knocks out every frame of an EtherType that the site does not want.
//!
//! `cargo run --example custom_stage -- --name mine` takes the options of `swd`, because it is `swd` with one stage more.

use std::process::ExitCode;

use switch::frame::Frame;
use switch::stage::{Cx, Stage};
use switch::verdict::{DropReason, Verdict};

/// Novell IPX, of which nobody misses a frame.
const UNWANTED: u16 = 0x8137;

struct NoIpx;

impl Stage for NoIpx {
    fn name(&self) -> &'static str {
        "no-ipx"
    }

    fn process(&mut self, frame: &mut Frame<'_>, _: &mut Cx<'_>) -> Verdict {
        if frame.ethertype() == UNWANTED { Verdict::Drop(DropReason::Unwanted) } else { Verdict::Next }
    }
}

fn main() -> ExitCode {
    switch::daemon::main(Box::new(|| vec![Box::new(NoIpx)]))
}
