//! `docs/nat.md` says which test shows which requirement: all of them exist.
#![allow(clippy::unwrap_used, reason = "these are tests, helpers included")]

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

/// The words in backquotes of a line.
fn quoted(line: &str) -> impl Iterator<Item = &str> {
    line.split('`').skip(1).step_by(2)
}

/// The source that holds the tests called `name`: `behaviour`, or `conntrack::tcp::tests`. Other words have none.
fn source(name: &str) -> Option<String> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let module = format!("src/{}", name.replace("::", "/"));
    let inline = module.trim_end_matches("/tests");
    [format!("tests/{name}.rs"), format!("{module}.rs"), format!("{inline}.rs")]
        .iter()
        .find_map(|path| fs::read_to_string(root.join(path)).ok())
}

#[test]
fn every_test_that_the_requirements_name_exists() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/nat.md");
    let text = fs::read_to_string(path).unwrap();
    let (_, requirements) = text.split_once("## Requirements").unwrap();
    let mut found = BTreeSet::new();
    for line in requirements.lines().filter(|line| line.starts_with('|')) {
        let mut tests = String::new();
        for word in quoted(line) {
            // Tests are named after their file. What is no lower-case name of several words is neither.
            if word.contains('_')
                && word.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_')
            {
                assert!(tests.contains(&format!("fn {word}(")), "no such test: {word}, in {line}");
                found.insert(word.to_owned());
            } else if word.chars().all(|c| c.is_ascii_lowercase() || c == ':') {
                tests.extend(source(word));
            }
        }
        let met = line.split('|').nth(2).unwrap().trim().starts_with("met");
        let reason = ["caller", "Nothing is logged", "There are none", "By construction", "above"];
        assert!(
            !met || quoted(line).next().is_some() || reason.iter().any(|r| line.contains(r)),
            "met, and no test named: {line}"
        );
    }
    assert!(found.len() > 40, "{} tests are named", found.len());
}
