//! What the machine tells: its processor time, the memory of processes, and what it is.

use std::collections::BTreeSet;
use std::fs;
use std::process::Command;
use std::time::Duration;

use ::tests::process::run;
use serde::Serialize;

/// Length of a clock tick in /proc/stat and /proc/PID/stat (`USER_HZ`) in seconds.
const TICK: f64 = 0.01;

/// Processor time used so far, in seconds.
#[derive(Clone, Copy, Debug, Default)]
pub struct Cpu {
    /// By everything, in all CPUs, interrupts included.
    pub system: f64,
    /// By the processes that were asked for.
    pub processes: f64,
    /// Taken away by the machine below this one.
    pub stolen: f64,
}

impl Cpu {
    /// Reads the counters.
    pub fn read(pids: &[u32]) -> Self {
        let stat = fs::read_to_string("/proc/stat").unwrap_or_default();
        let ticks: Vec<f64> = stat
            .lines()
            .next()
            .unwrap_or_default()
            .split_whitespace()
            .skip(1)
            .filter_map(|n| n.parse().ok())
            .collect();
        let at = |i: usize| ticks.get(i).copied().unwrap_or(0.0);
        // user, nice, system, irq, softirq: proc_stat(5).
        let busy = at(0) + at(1) + at(2) + at(5) + at(6);
        let processes: f64 = pids.iter().map(|pid| process_ticks(*pid)).sum();
        Self { system: busy * TICK, processes: processes * TICK, stolen: at(7) * TICK }
    }

    /// What was used since `earlier`.
    #[must_use]
    pub fn since(self, earlier: Self) -> Self {
        Self {
            system: self.system - earlier.system,
            processes: self.processes - earlier.processes,
            stolen: self.stolen - earlier.stolen,
        }
    }
}

/// The fields of /proc/PID/stat after the name, which may contain anything.
fn stat_fields(pid: u32) -> Vec<String> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit(')').next().unwrap_or_default().split_whitespace().map(str::to_owned).collect()
}

fn process_ticks(pid: u32) -> f64 {
    let fields = stat_fields(pid);
    // utime, stime, cutime, cstime: fields 14 to 17 of proc_pid_stat(5), of which the first two are cut off.
    fields.iter().skip(11).take(4).filter_map(|n| n.parse::<f64>().ok()).sum()
}

/// Memory that processes have in RAM, in bytes. What they share counts for each.
pub fn resident(pids: &[u32]) -> f64 {
    let of = |pid: &u32| {
        let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
        let line = status.lines().find_map(|l| l.strip_prefix("VmRSS:").map(str::to_owned));
        line.and_then(|l| l.trim().trim_end_matches("kB").trim().parse::<f64>().ok()).unwrap_or(0.0) * 1024.0
    };
    pids.iter().map(of).sum()
}

/// Processes and all that they started, as far as it still has them as parents.
pub fn families(pids: &[u32]) -> Vec<u32> {
    let all: Vec<(u32, u32)> = fs::read_dir("/proc")
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
        .filter_map(|pid| Some((pid, stat_fields(pid).get(1)?.parse().ok()?)))
        .collect();
    let mut family: BTreeSet<u32> = pids.iter().copied().collect();
    loop {
        let more: Vec<_> =
            all.iter().filter(|(pid, parent)| family.contains(parent) && !family.contains(pid)).collect();
        if more.is_empty() {
            return family.into_iter().collect();
        }
        family.extend(more.iter().map(|(pid, _)| pid));
    }
}

/// Threads of processes.
pub fn threads(pids: &[u32]) -> Vec<i32> {
    pids.iter()
        .flat_map(|pid| fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten())
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
        .collect()
}

/// TCP segments sent again so far, in the network namespace of this process.
pub fn retransmitted_segments() -> u64 {
    let snmp = fs::read_to_string("/proc/net/snmp").unwrap_or_default();
    let mut lines = snmp.lines().filter_map(|l| l.strip_prefix("Tcp: "));
    let (Some(names), Some(values)) = (lines.next(), lines.next()) else { return 0 };
    let value = names.split(' ').zip(values.split(' ')).find(|(name, _)| *name == "RetransSegs");
    value.and_then(|(_, value)| value.parse().ok()).unwrap_or(0)
}

/// The machine, for reports.
#[derive(Clone, Debug, Serialize)]
pub struct Machine {
    /// Processor.
    pub cpu: String,
    /// Processors that this process may use.
    pub cpus: usize,
    /// Memory in GiB.
    pub memory_gib: u64,
    /// Kernel release.
    pub kernel: String,
    /// Distribution.
    pub system: String,
    /// What TCP does about congestion, at every end alike.
    pub congestion_control: String,
    /// Today, UTC.
    pub date: String,
}

impl Machine {
    /// This one, whose measured namespaces have that congestion control.
    pub fn here(congestion_control: &str) -> Self {
        let read = |path: &str| fs::read_to_string(path).unwrap_or_default();
        let after = |text: &str, key: &str| {
            let line = text.lines().find_map(|l| l.strip_prefix(key).map(str::to_owned));
            line.unwrap_or_default().trim_matches([' ', '\t', ':', '"']).to_owned()
        };
        let memory = after(&read("/proc/meminfo"), "MemTotal");
        let kib: u64 = memory.split(' ').next().and_then(|n| n.parse().ok()).unwrap_or(0);
        Self {
            cpu: after(&read("/proc/cpuinfo"), "model name"),
            cpus: std::thread::available_parallelism().map_or(1, Into::into),
            memory_gib: kib.div_ceil(1 << 20),
            kernel: read("/proc/sys/kernel/osrelease").trim().to_owned(),
            system: after(&read("/etc/os-release"), "PRETTY_NAME="),
            congestion_control: congestion_control.to_owned(),
            date: first_line(Command::new("date").args(["-u", "+%Y-%m-%d"])),
        }
    }

    /// In a sentence.
    pub fn sentence(&self) -> String {
        let Self { cpu, cpus, memory_gib, kernel, system, congestion_control, date } = self;
        format!(
            "{date}: {cpus} CPUs ({cpu}), {memory_gib} GiB, Linux {kernel}, {system}, TCP {congestion_control}"
        )
    }
}

/// The first line that a program prints: its version, say.
pub fn first_line(command: &mut Command) -> String {
    let output = run(command, Duration::from_secs(10));
    let text = if output.stdout.trim().is_empty() { output.stderr } else { output.stdout };
    text.lines().next().unwrap_or_default().trim().to_owned()
}

/// Where a program is: on the path, or where system programs are.
pub fn find_program(name: &str) -> Option<std::path::PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let system = ["/usr/sbin", "/sbin"].map(std::path::PathBuf::from);
    std::env::split_paths(&path).chain(system).map(|dir| dir.join(name)).find(|p| p.is_file())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_has_time_memory_and_threads() {
        let me = std::process::id();
        assert!(resident(&[me]) > 100_000.0);
        assert!(!threads(&[me]).is_empty());
        assert!(families(&[me]).contains(&me));
        let before = Cpu::read(&[me]);
        assert!(before.system > 0.0 && before.system >= before.processes);
        assert!(Machine::here("cubic").cpus > 0);
    }
}
