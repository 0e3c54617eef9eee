//! Names under load, and by the resolvers of the C libraries.

use std::fs;
use std::net::UdpSocket;
use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::Instant;

use nix::sys::socket::{setsockopt, sockopt};
use tests::names::{answer, attach, query};
use tests::netns::Namespace;
use tests::process::{TIMEOUT, ms, run, s};
use tests::site::{GATEWAY, Site, heavy};

const PER_SECOND: usize = 10_000;
const SECONDS: usize = 3;
/// Questions that may be under way: a tenth of a second's. Who asks waits beyond that, where the machine does.
const UNDER_WAY: usize = PER_SECOND / 10;

fn socket(ns: &Namespace) -> UdpSocket {
    let socket = ns.udp("0.0.0.0:0");
    // Nothing is to be lost on the side that asks.
    setsockopt(&socket, sockopt::RcvBufForce, &(8 << 20)).expect("a long queue");
    socket.connect((GATEWAY, 53)).expect("connect");
    socket.set_read_timeout(Some(s(5))).expect("timeout");
    socket
}

#[test]
fn ten_thousand_questions_a_second_are_all_answered() {
    let _heavy = heavy();
    let site = Site::new();
    let web = attach(&site, "web", "172.18.0.10", &[]);
    let socket = socket(&web.ns);
    let answered = AtomicUsize::new(0);
    let all = PER_SECOND * SECONDS;
    thread::scope(|scope| {
        let receiver = scope.spawn(|| {
            let mut seen = vec![false; all];
            let mut buffer = [0; 512];
            while answered.load(Ordering::Relaxed) < all {
                let length = socket.recv(&mut buffer).unwrap_or_else(|e| {
                    panic!("{} of {all} questions were answered: {e}", answered.load(Ordering::Relaxed))
                });
                let (id, code, records) = answer(&buffer[..length]);
                assert!((code, records) == (0, 1) && !seen[usize::from(id)], "{id} {code} {records}");
                seen[usize::from(id)] = true;
                answered.fetch_add(1, Ordering::Relaxed);
            }
        });
        let start = Instant::now();
        let mut sent = 0;
        while sent < all && !receiver.is_finished() {
            let due = (start.elapsed().as_micros() as usize * PER_SECOND / 1_000_000).min(all);
            let room = answered.load(Ordering::Relaxed) + UNDER_WAY;
            while sent < due.min(room) {
                let id = u16::try_from(sent).expect("fewer than there are ids");
                socket.send(&query(id, "web", 1)).expect("send");
                sent += 1;
            }
            thread::sleep(ms(1));
        }
    });
    assert_eq!((answered.into_inner(), site.drops("service-busy")), (all, 0));
}

/// The first question after `attach` has the answer: nobody has to ask twice, or to wait.
#[test]
fn each_of_a_hundred_is_known_from_its_attach_on() {
    let _heavy = heavy();
    let site = Site::new();
    let web = attach(&site, "web", "172.18.0.10", &[]);
    let socket = socket(&web.ns);
    let ask = |id: u16, name: &str| {
        socket.send(&query(id, name, 1)).expect("send");
        let mut buffer = [0; 512];
        let length = socket.recv(&mut buffer).unwrap_or_else(|e| panic!("no answer about {name}: {e}"));
        assert_eq!(answer(&buffer[..length]), (id, 0, 1), "{name}");
        buffer[length - 4..length].to_vec()
    };
    let all: Vec<_> = (0..100_u8)
        .map(|n| {
            let name = format!("c{n}");
            let container = attach(&site, &name, &format!("172.18.1.{n}"), &[]);
            assert_eq!(ask(n.into(), &name), [172, 18, 1, n]);
            container
        })
        .collect();
    for n in 0..100_u8 {
        assert_eq!(ask(n.into(), &format!("c{n}.default")), [172, 18, 1, n]);
    }
    drop(all);
}

/// Prints the addresses of its arguments, one a line, by getaddrinfo(3).
const RESOLVE: &str = r#"
#include <arpa/inet.h>
#include <netdb.h>
#include <stdio.h>
int main(int n, char **names) {
    for (int i = 1; i < n; i++) {
        struct addrinfo hints = { .ai_socktype = SOCK_STREAM }, *found;
        int wrong = getaddrinfo(names[i], 0, &hints, &found);
        if (wrong) { printf("%s: %s\n", names[i], gai_strerror(wrong)); continue; }
        for (; found; found = found->ai_next) {
            char text[64] = "";
            getnameinfo(found->ai_addr, found->ai_addrlen, text, sizeof text, 0, 0, NI_NUMERICHOST);
            printf("%s\n", text);
        }
    }
}
"#;

fn compile(compiler: &str, dir: &Path) -> String {
    let (source, program) = (dir.join("resolve.c"), dir.join(compiler));
    fs::write(&source, RESOLVE).expect("write");
    run(Command::new(compiler).args(["-static", "-O1", "-w", "-o"]).arg(&program).arg(&source), TIMEOUT).ok();
    program.display().to_string()
}

/// Both libraries ask for A and AAAA at once: glibc by one socket and by UDP or TCP, musl by one; musl takes a name that is there,
/// without the type, for missing if it is told so.
#[test]
fn the_resolvers_of_the_c_libraries_find_names() {
    let site = Site::new();
    site.ctl(&["network", "add", "dual", "--subnet", "10.7.0.0/16", "--subnet", "fd00:7::/64"]);
    let both = attach(&site, "both", "10.7.0.10", &["--network", "dual", "--alias", "shop"]);
    let four = attach(&site, "four", "172.18.0.10", &["--alias", "shop"]);
    let dir = tempfile::tempdir().expect("a folder");
    let musl = compile("musl-gcc", dir.path());
    for (network, name, expected) in [("default", "four", 1), ("dual", "both", 2)] {
        let full = format!("{name}.{network}.swd.internal");
        let command = |words: &[&str]| {
            let job = [&["run", "--network", network, "--"], words].concat();
            site.ctl(&job)
        };
        for called in [name, "shop", &full] {
            let said = command(&[&musl, called]);
            assert_eq!(said.lines().count(), expected, "musl, {called}: {said}");
            let said = command(&["getent", "ahosts", called]);
            assert_eq!(said.matches("STREAM").count(), expected, "glibc, {called}: {said}");
            // By TCP, as the option has it.
            let said = command(&["env", "RES_OPTIONS=use-vc", "getent", "ahosts", called]);
            assert_eq!(said.matches("STREAM").count(), expected, "glibc by TCP, {called}: {said}");
        }
        let said = command(&[&musl, "nobody", "nobody.swd.internal"]);
        assert_eq!(said.matches("Name does not resolve").count(), 2, "{said}");
        let said = command(&["nslookup", &full]);
        assert_eq!(said.matches(&format!("Name:\t{full}")).count(), expected, "{said}");
    }
    drop((both, four));
}
