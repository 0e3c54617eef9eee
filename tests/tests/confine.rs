//! What swd may do once it runs.

use std::fs;

use tests::site::{Site, Way};

/// By their numbers (linux/capability.h): chown, dac_override, dac_read_search, fowner, net_bind_service, net_admin, net_raw,
/// sys_chroot, sys_ptrace, sys_admin, sys_nice, sys_resource, perfmon, bpf.
const KEPT: [u8; 14] = [0, 1, 2, 3, 10, 12, 13, 18, 19, 21, 23, 24, 38, 39];

fn fields(status: &str, name: &str) -> String {
    let line = status.lines().find_map(|l| l.strip_prefix(name)?.strip_prefix(':'));
    line.unwrap_or_else(|| panic!("no {name} in {status}")).trim().to_owned()
}

#[test]
fn swd_and_its_keeper_have_what_they_need_and_no_more() {
    let site = Site::new();
    let c1 = site.container("c1", Way::Tap, "172.18.0.10");
    let c2 = site.container("c2", Way::Attach, "172.18.0.20");
    c1.ping(&c2);
    let keeper = fs::read_dir("/proc").expect("/proc").flatten().find_map(|entry| {
        let command = fs::read(entry.path().join("cmdline")).ok()?;
        let command = String::from_utf8_lossy(&command).replace('\0', " ");
        (command.contains(" keeper ") && command.contains(site.name())).then(|| entry.path())
    });
    let mut threads = 0;
    let swd = format!("/proc/{}", site.pid());
    for process in [swd.into(), keeper.expect("a keeper")] {
        for thread in fs::read_dir(process.join("task")).expect("threads").flatten() {
            let status = fs::read_to_string(thread.path().join("status")).expect("status");
            for set in ["CapEff", "CapPrm", "CapBnd"] {
                let bits = u64::from_str_radix(&fields(&status, set), 16).expect("hexadecimal");
                let more = bits & !KEPT.iter().fold(0, |all, bit| all | 1_u64 << bit);
                assert_eq!(more, 0, "{set} {bits:x}");
                assert_ne!(bits, 0, "{set}");
            }
            assert_eq!(fields(&status, "CapAmb"), "0000000000000000");
            assert_eq!(fields(&status, "NoNewPrivs"), "1");
            assert_eq!(fields(&status, "Seccomp"), "2", "a filter");
            threads += 1;
        }
    }
    assert!(threads >= 4, "{threads}");
}
