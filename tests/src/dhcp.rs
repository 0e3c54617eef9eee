//! DHCP clients in earnest: busybox' udhcpc, ISC's dhclient, dhcpcd. Each in a mount namespace of its own, so that neither the
//! machine's resolv.conf nor its leases are touched, and with a script that sets the address and notes what happened.

use std::fs;
use std::path::PathBuf;
use std::process::Command;
use std::thread;
use std::time::Instant;

use nix::sys::signal::Signal;

use crate::netns::Namespace;
use crate::process::{Background, TIMEOUT, ms, run, s, wait_for};
use crate::site::Site;

/// What all of them run when something happens: the reason and the address are in the environment, under two sets of names.
const SCRIPT: &str = r#"#!/bin/sh
reason=${reason:-$1}
ip=${new_ip_address:-$ip}
case $reason in
PREINIT) ip link set dev "$interface" up ;;
BOUND | RENEW | REBIND | REBOOT | bound | renew)
  ip addr replace "$ip/${new_subnet_mask:-$subnet}" dev "$interface"
  ip route replace default via "${new_routers:-$router}" ;;
EXPIRE | RELEASE | STOP | deconfig) ip -4 addr flush dev "$interface" ;;
esac
echo "$reason $ip router=${new_routers:-$router} dns=${new_domain_name_servers:-$dns} domain=${new_domain_name:-$domain} mtu=${new_interface_mtu:-$mtu} lease=${new_dhcp_lease_time:-$lease}${new_dhcp6_name_servers:+ dns6=$new_dhcp6_name_servers search=$new_dhcp6_domain_search}" >>LOG
exit 0
"#;

/// A client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Program {
    /// busybox.
    Udhcpc,
    /// isc-dhcp-client.
    Dhclient,
    /// The same, for what there is to know besides addresses, over IPv6.
    Dhclient6,
    /// dhcpcd.
    Dhcpcd,
}

/// A running client on `eth0`.
#[derive(Debug)]
pub struct Client {
    program: Program,
    process: Background,
    log: PathBuf,
    pid_file: PathBuf,
    leases: PathBuf,
    script: PathBuf,
    ns: String,
}

impl Client {
    /// Starts one in `ns`; it goes on until it is dropped. `more` are arguments of its own.
    ///
    /// # Panics
    /// When it does not start.
    #[track_caller]
    pub fn start(site: &Site, ns: &Namespace, program: Program, more: &[&str]) -> Self {
        let file = |end: &str| site.file(&format!("{}.{end}", ns.name()));
        let (log, script, pid_file, leases) = (file("events"), file("script"), file("pid"), file("leases"));
        fs::write(&script, SCRIPT.replace("LOG", log.to_str().expect("UTF-8"))).expect("write");
        run(Command::new("chmod").arg("755").arg(&script), TIMEOUT).ok();
        let text = |path: &PathBuf| path.to_str().expect("UTF-8").to_owned();
        let (script_, pid_, leases_) = (text(&script), text(&pid_file), text(&leases));
        let isc = |family: &[&'static str]| {
            let files = ["-sf", &script_, "-pf", &pid_, "-lf", &leases_, "-cf", "/dev/null", "eth0"];
            [&["dhclient", "-d"], family, &files].concat()
        };
        let words: Vec<&str> = match program {
            Program::Udhcpc => {
                vec![
                    "/bin/busybox",
                    "udhcpc",
                    "-f",
                    "-i",
                    "eth0",
                    "-s",
                    &script_,
                    "-t",
                    "10",
                    "-T",
                    "1",
                    "-A",
                    "1",
                ]
            }
            Program::Dhclient => isc(&["-4"]),
            Program::Dhclient6 => isc(&["-6", "-S"]),
            Program::Dhcpcd => vec!["dhcpcd", "-B", "-4", "-c", &script_, "-f", "/dev/null", "eth0"],
        };
        let mut all = private();
        all.extend(words);
        all.extend(more);
        let process = Background::start(&mut ns.command(&all), &file("log"));
        Self { program, process, log, pid_file, leases, script, ns: ns.name().to_owned() }
    }

    /// What its script noted, a line for each time.
    pub fn events(&self) -> Vec<String> {
        fs::read_to_string(&self.log).unwrap_or_default().lines().map(str::to_owned).collect()
    }

    /// What it said by itself.
    pub fn said(&self) -> String {
        self.process.log()
    }

    /// Events of these kinds, in any case of letters.
    fn of(&self, kinds: &[&str]) -> Vec<String> {
        let is = |line: &String| {
            let reason = line.split(' ').next().unwrap_or_default();
            kinds.iter().any(|kind| reason.eq_ignore_ascii_case(kind))
        };
        self.events().into_iter().filter(is).collect()
    }

    /// The last event of these kinds, once there are `count` of them.
    ///
    /// # Panics
    /// When there are not in time.
    #[track_caller]
    fn wait(&self, kinds: &[&str], count: usize) -> String {
        let end = Instant::now() + s(30);
        loop {
            let all = self.of(kinds);
            match all.last() {
                Some(last) if all.len() >= count => return last.clone(),
                _ => assert!(Instant::now() < end, "no {kinds:?}: {:?}\n{}", self.events(), self.said()),
            }
            thread::sleep(ms(20));
        }
    }

    /// The address that it got.
    ///
    /// # Panics
    /// When it gets none.
    #[track_caller]
    pub fn bound(&self) -> String {
        let event = self.wait(&["BOUND", "REBOOT"], 1);
        event.split(' ').nth(1).expect("an address").to_owned()
    }

    /// Waits until it has asked for its address again, and has it: udhcpc at once, the others after half of their lease.
    ///
    /// # Panics
    /// When it is not renewed.
    #[track_caller]
    pub fn renew(&self) -> String {
        const KINDS: [&str; 2] = ["RENEW", "REBIND"];
        let before = self.of(&KINDS).len();
        if self.program == Program::Udhcpc {
            self.process.signal(Signal::SIGUSR1);
        }
        self.wait(&KINDS, before + 1)
    }

    /// Has it give its address back, and end.
    ///
    /// # Panics
    /// When it does not.
    #[track_caller]
    pub fn release(mut self) {
        match self.program {
            Program::Udhcpc => {
                self.process.signal(Signal::SIGUSR2);
                self.wait(&["deconfig"], 2);
            }
            Program::Dhclient | Program::Dhclient6 => {
                let text = |path: &PathBuf| path.to_str().expect("UTF-8").to_owned();
                let (script, pid, leases) = (text(&self.script), text(&self.pid_file), text(&self.leases));
                let words = [
                    "dhclient",
                    "-r",
                    "-sf",
                    &script,
                    "-pf",
                    &pid,
                    "-lf",
                    &leases,
                    "-cf",
                    "/dev/null",
                    "eth0",
                ];
                let ns = Namespace::adopt(&self.ns);
                let out = ns.run(&[&private()[..], &words].concat());
                std::mem::forget(ns);
                out.ok();
            }
            Program::Dhcpcd => {
                self.process.signal(Signal::SIGALRM);
                wait_for("dhcpcd has ended", s(10), || self.process.wait(ms(0)));
            }
        }
    }
}

/// Words that run a program with nothing of the machine's to write to.
fn private() -> Vec<&'static str> {
    let mounts = "for d in /run /var/lib/dhcp /var/lib/dhcpcd; do [ -d $d ] && mount -t tmpfs tmpfs $d; done; exec \"$@\"";
    vec!["unshare", "--mount", "sh", "-c", mounts, "sh"]
}
