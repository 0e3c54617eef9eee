//! The two files that people and accidents may have written.

use std::path::Path;

use ctl::config::{Config, ConfigError};
use switch::daemon::desired::Desired;
use switch::daemon::{plan, state};

/// A state file: what is accepted is written and read back as it was, and there is a way to it and from it.
///
/// # Panics
/// When something is wrong with swd.
pub fn state_file(data: &[u8]) {
    let Ok((serial, desired)) = state::parse(data) else { return };
    let written = state::to_bytes(serial, &desired).expect("what was read can be written");
    assert_eq!(state::parse(&written).expect("what was written can be read"), (serial, desired.clone()));
    let nothing = Desired::default();
    let up = plan::plan(&nothing, &desired);
    let down = plan::plan(&desired, &nothing);
    assert_eq!(up.len(), down.len(), "each thing that is made is removed");
    assert!(plan::plan(&desired, &desired).is_empty());
    // Edits of what was read.
    let mut edited = desired;
    let default = ctl::config::Network::default().spec(ctl::api::DEFAULT_NETWORK);
    let _ = edited.add_network("swd", &default, |_| false);
    for name in edited.networks.keys().cloned().collect::<Vec<_>>() {
        let _ = edited.clone().remove_network(&name);
    }
    for name in edited.ports.keys().cloned().collect::<Vec<_>>() {
        let _ = edited.add_static("02:00:00:00:00:01", &name);
        let _ = edited.remove_port(&name).or_else(|_| edited.detach(&name));
    }
    assert!(
        edited.statics.values().all(|s| edited.ports.contains_key(&s.port)),
        "a static entry without its port"
    );
}

/// A configuration: what is refused is refused in one line that names a place in the file.
///
/// # Panics
/// When something is wrong with swd.
pub fn config(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    match Config::parse(text, Path::new("swd.toml")) {
        Ok(config) => {
            for (name, network) in &config.network {
                let mut desired = Desired::default();
                desired.add_network("swd", &network.spec(name), |_| false).expect("what was checked");
            }
        }
        Err(e) => {
            let said = e.to_string();
            assert_eq!(said.lines().count(), 1, "{said:?}");
            if let ConfigError::Syntax { line, column, .. } = e {
                let lines: Vec<&str> = text.split('\n').collect();
                assert!((1..=lines.len()).contains(&line), "line {line} of {}: {said}", lines.len());
                assert!(
                    column >= 1 && column <= lines[line - 1].chars().count() + 1,
                    "column {column}: {said}"
                );
            }
        }
    }
}
