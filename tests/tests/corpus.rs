//! What the fuzzer has found worth keeping (`tests/fuzz/corpus`, a folder for each target), and once made something
//! panic, goes through the same functions in every test run. `make fuzz` looks for more.

use std::fs;
use std::path::Path;

use tests::fuzz::TARGETS;

#[test]
fn what_was_kept_is_still_handled() {
    let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus");
    for (name, target) in TARGETS {
        let folder = corpus.join(name);
        let files = fs::read_dir(&folder).unwrap_or_else(|e| panic!("{}: {e}", folder.display()));
        let mut fed = 0;
        for file in files {
            let path = file.expect("a file").path();
            eprintln!("{}", path.display()); // the last one is the culprit
            target(&fs::read(&path).expect("read"));
            fed += 1;
        }
        assert!(fed >= 5, "{} has {fed} inputs only", folder.display());
    }
}

/// Bytes that mean nothing, and too few of them.
#[test]
fn every_target_takes_anything() {
    for (name, target) in TARGETS {
        eprintln!("{name}");
        target(&[]);
        for byte in [0, 1, 0x3f, 0x80, 0xff] {
            for length in [1, 2, 60, 3000] {
                target(&vec![byte; length]);
            }
        }
        let mixed: Vec<u8> =
            (0..20_000_u32).map(|n| n.wrapping_mul(2_654_435_761).to_be_bytes()[0]).collect();
        for chunk in mixed.chunks(97) {
            target(chunk);
        }
        target(&mixed);
    }
}
