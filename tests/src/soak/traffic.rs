//! What goes on all along: bulk, ssh sessions and HTTP connections, masqueraded and published.

use std::time::Duration;

use crate::http::{self, Http};
use crate::process::{Background, s, wait_until};
use crate::ssh::{Session, Sshd};
use crate::world::World;

/// HTTP connections each way.
const HTTP: usize = 8;
/// ssh sessions each way.
const SSH: usize = 2;

/// All of it.
#[derive(Debug)]
pub(super) struct Traffic {
    http: Vec<Http>,
    ssh: Vec<Session>,
    bulk: Vec<Background>,
    _servers: (Vec<Background>, Vec<Sshd>),
    round: u64,
    answered: u64,
}

impl Traffic {
    /// Opens every connection.
    #[track_caller]
    pub(super) fn start(world: &World) -> Self {
        let World { far, web, job, site, .. } = world;
        site.ctl(&["publish", "2000-2999/tcp", "172.18.0.10:2000"]);
        site.ctl(&["publish", "5201/tcp", "172.18.0.10:5201"]);
        let mut servers = Vec::new();
        for (name, ns) in [("far", far), ("web", &web.ns)] {
            http::serve(ns.tcp_listen("0.0.0.0:2080"));
            servers.push(ns.start(&["iperf3", "-s"], &site.file(&format!("iperf3-server-{name}.log"))));
            wait_until("iperf3 listens", s(10), || {
                ns.run(&["ss", "-Hltn", "sport = :5201"]).stdout.contains("5201")
            });
        }
        let folder = site.file("");
        let sshd = [Sshd::start(far, &folder, "far"), Sshd::start(&web.ns, &folder, "web")];
        let (mut http, mut ssh) = (Vec::new(), Vec::new());
        for n in 0..HTTP {
            let inside = [&web.ns, &job.ns][n % 2];
            http.push(Http::open(inside, "203.0.113.7:2080"));
            http.push(Http::open(far, "172.16.0.2:2080"));
        }
        for n in 0..SSH {
            ssh.push(sshd[0].session([&web.ns, &job.ns][n % 2], "203.0.113.7"));
            ssh.push(sshd[1].session(far, "172.16.0.2"));
        }
        let bulk = [("out", &job.ns, "203.0.113.7"), ("in", far, "172.16.0.2")].map(|(name, from, to)| {
            let words = ["iperf3", "-c", to, "-t", "86400", "-b", "50M", "-i", "10"];
            from.start(&words, &site.file(&format!("iperf3-{name}.log")))
        });
        let mut new =
            Self { http, ssh, bulk: bulk.into(), _servers: (servers, sshd.into()), round: 0, answered: 0 };
        new.goes_on();
        new
    }

    /// Every connection is still there, and answers.
    #[track_caller]
    pub(super) fn goes_on(&mut self) {
        self.round += 1;
        let words = |n: usize| format!("round-{}-{n}", self.round);
        for (n, http) in self.http.iter_mut().enumerate() {
            http.ask(&words(n));
        }
        for (n, ssh) in self.ssh.iter_mut().enumerate() {
            ssh.say(&words(n));
        }
        for (n, http) in self.http.iter_mut().enumerate() {
            http.answered(&words(n));
        }
        for (n, ssh) in self.ssh.iter_mut().enumerate() {
            assert_eq!(ssh.hear(), words(n), "ssh session {n} has ended");
        }
        self.answered += (self.http.len() + self.ssh.len()) as u64;
        for bulk in &mut self.bulk {
            assert_eq!(bulk.wait(Duration::ZERO), None, "iperf3 has ended:\n{}", bulk.log());
        }
    }

    /// How many connections there are, and how many questions were answered on them.
    pub(super) fn finish(self) -> (usize, u64) {
        // iperf3 has a connection for its bytes and one for what it has to say.
        (self.http.len() + self.ssh.len() + 2 * self.bulk.len(), self.answered)
    }
}
