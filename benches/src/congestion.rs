//! What TCP does about congestion in the worlds that are measured.

use std::fs;
use std::io::ErrorKind;

use tests::netns::Namespace;

/// What it does unless told otherwise: what Debian and most distributions build their kernels with. By the kernel's own default two
/// machines would measure two things: one built with BBR paces its senders by the round trip of an idle path.
pub const CONGESTION_CONTROL: &str = "cubic";

/// Names that any program may choose, and those that a namespace may have as its default: of the whole kernel
/// (`net/ipv4/tcp_cong.c`, `tcp_set_default_congestion_control`).
const ALLOWED: &str = "/proc/sys/net/ipv4/tcp_allowed_congestion_control";

/// Makes it the default of namespaces. Where the kernel allows it to none, it does for the moment.
///
/// # Panics
/// When the kernel does not know it, or does not let us.
#[track_caller]
pub fn set_congestion_control(name: &str, namespaces: &[&Namespace]) {
    let _allowed = Allowed::new(name);
    for ns in namespaces {
        ns.run(&["sysctl", "-qw", &format!("net.ipv4.tcp_congestion_control={name}")]).ok();
    }
}

/// While it lives namespaces may have one more.
struct Allowed {
    before: Option<String>,
}

impl Allowed {
    #[track_caller]
    fn new(name: &str) -> Self {
        let before = match fs::read_to_string(ALLOWED) {
            Ok(names) => names,
            // Only the kernel's first namespace has it.
            Err(e) if e.kind() == ErrorKind::NotFound => return Self { before: None },
            Err(e) => panic!("cannot read {ALLOWED}: {e}"),
        };
        if before.split_whitespace().any(|known| known == name) {
            return Self { before: None };
        }
        fs::write(ALLOWED, format!("{} {name}", before.trim())).unwrap_or_else(|e| {
            panic!("the kernel does not allow the congestion control {name} to namespaces: {e}")
        });
        Self { before: Some(before) }
    }
}

impl Drop for Allowed {
    fn drop(&mut self) {
        if let Some(before) = &self.before {
            let _ = fs::write(ALLOWED, before);
        }
    }
}
