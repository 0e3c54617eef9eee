//! `swd`: the switch without stages of anybody's own. A `main` that passes some makes a daemon with them.

use std::process::ExitCode;

fn main() -> ExitCode {
    switch::daemon::main(Box::new(Vec::new))
}
