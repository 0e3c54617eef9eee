//! `make soak`: see `tests::soak`. Exits 1 with the first thing that does not hold.

use std::panic::catch_unwind;
use std::process::ExitCode;
use std::time::{SystemTime, UNIX_EPOCH};

use tests::process::{ms, s};
use tests::soak::{Options, logs, run};

const USAGE: &str = "usage: soak [--minutes N] [--seed N] [--pause MILLISECONDS]";

fn main() -> ExitCode {
    let (mut minutes, mut seed, mut pause) = (10, None, 500);
    let mut words = std::env::args().skip(1);
    while let Some(word) = words.next() {
        let value = words.next().and_then(|v| v.parse::<u64>().ok());
        match (word.as_str(), value) {
            ("--minutes", Some(n)) => minutes = n,
            ("--seed", Some(n)) => seed = Some(n),
            ("--pause", Some(n)) => pause = n,
            _ => {
                eprintln!("{USAGE}");
                return ExitCode::from(2);
            }
        }
    }
    let clock = SystemTime::now().duration_since(UNIX_EPOCH).map_or(1, |t| t.as_secs());
    let seed = seed.unwrap_or(clock);
    println!("soak of {minutes} minutes with --seed {seed}");
    let options = Options { seed, length: s(60 * minutes), pause: ms(pause), logs: logs(seed) };
    match catch_unwind(|| run(&options)) {
        Ok(summary) => {
            println!("{summary}\nall held");
            ExitCode::SUCCESS
        }
        // The panic has said what.
        Err(_) => {
            println!("broken, see above; logs: {}; again: soak --seed {seed}", options.logs.display());
            ExitCode::FAILURE
        }
    }
}
