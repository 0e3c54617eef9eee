//! A short `make soak`, with a fixed seed: each kind of fault at least once.

use tests::process::{ms, s};
use tests::site::heavy;
use tests::soak::{Options, logs, run};

#[test]
fn a_short_one_holds() {
    let _alone = heavy();
    let summary = run(&Options { seed: 5, length: s(20), pause: ms(50), logs: logs(5) });
    eprintln!("{summary}");
    assert!(summary.faults.len() >= 10, "{summary}");
    assert!(summary.frames > 1000 && summary.looks.0 > 50, "{summary}");
}
