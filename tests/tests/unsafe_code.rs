//! `docs/unsafe.md` is true: each file with unsafe code is in its table with as many places as it has, and the tests exist.

use std::collections::BTreeMap;
use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use switch::sys::bpf::{Map, MapKind};

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

/// All Rust sources below a folder.
fn sources(folder: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder).unwrap_or_else(|e| panic!("{}: {e}", folder.display()));
    let paths = entries.map(|e| e.expect("an entry").path());
    paths
        .filter(|path| !path.ends_with("target") && !path.ends_with("corpus"))
        .flat_map(|path| if path.is_dir() { sources(&path) } else { vec![path] })
        .filter(|path| path.extension().is_some_and(|e| e == "rs"))
        .collect()
}

/// Blocks, functions and implementations.
fn places(source: &str) -> usize {
    let word = concat!("un", "safe ");
    let code = source.lines().filter(|line| !line.trim_start().starts_with("//"));
    let of_line = |line: &str| {
        line.match_indices(word)
            .filter(|(at, _)| {
                ["{", "impl", "fn", "extern"].iter().any(|w| line[at + word.len()..].starts_with(w))
            })
            .count()
    };
    code.map(of_line).sum()
}

#[test]
fn the_audit_lists_every_place() {
    let mut found = BTreeMap::new();
    for folder in ["nat", "switch", "ctl", "tests", "benches"] {
        for path in sources(&root().join(folder)) {
            let n = places(&fs::read_to_string(&path).expect("UTF-8"));
            if n > 0 {
                let in_sys = path.parent().is_some_and(|p| p.ends_with("switch/src/sys"));
                assert!(in_sys, "unsafe code outside of switch/src/sys: {}", path.display());
                found.insert(path.file_name().expect("a name").to_string_lossy().into_owned(), n);
            }
        }
    }
    let text = fs::read_to_string(root().join("docs/unsafe.md")).expect("the audit");
    let rows = text.lines().filter_map(|line| {
        let cells: Vec<&str> = line.strip_prefix("| `")?.split('|').map(str::trim).collect();
        Some((cells[0].trim_end_matches('`').to_owned(), cells[1].parse::<usize>().ok()?))
    });
    assert_eq!(rows.collect::<BTreeMap<_, _>>(), found, "the table of docs/unsafe.md, and the code");
}

#[test]
fn the_tests_that_the_audit_names_exist() {
    let text = fs::read_to_string(root().join("docs/unsafe.md")).expect("the audit");
    let mut named = 0;
    for line in text.lines().filter(|line| line.starts_with("| `")) {
        for test in line.rsplit('|').nth(1).expect("a column of tests").split(';') {
            let words: Vec<&str> = test.split('`').collect();
            let [_, file, _, name, _] = words[..] else { panic!("'file': 'test' is wanted: {test}") };
            let places = [format!("tests/tests/{file}.rs"), format!("switch/src/sys/{file}.rs")];
            let texts: String =
                places.iter().filter_map(|p| fs::read_to_string(root().join(p)).ok()).collect();
            assert!(texts.contains(&format!("fn {name}(")), "no such test: {file}, {name}");
            named += 1;
        }
    }
    assert!(named >= 12, "{named} tests are named");
}

#[test]
fn a_map_takes_nothing_of_another_length() {
    tests::process::require();
    let refused =
        |done: std::io::Result<Vec<u8>>| done.map_err(|e| e.kind()).err() == Some(ErrorKind::InvalidInput);
    let map = Map::create(MapKind::Hash, "test", 4, 8, 1).expect("a map");
    map.update(&[1; 4], &[2; 8]).expect("what fits");
    assert_eq!(map.lookup(&[1; 4]).expect("it is there"), [2; 8]);
    assert!(refused(map.lookup(&[1; 3])) && refused(map.take(&[1; 5])));
    assert_eq!(map.update(&[1; 4], &[2; 7]).map_err(|e| e.kind()), Err(ErrorKind::InvalidInput));
    // The kernel would write the values of all CPUs to the room for one.
    let map = Map::create(MapKind::PerCpuArray, "test", 4, 8, 1).expect("a map");
    assert!(refused(map.lookup(&[0; 4])));
    assert_eq!(map.update(&[0; 4], &[2; 8]).map_err(|e| e.kind()), Err(ErrorKind::InvalidInput));
}
