//! slirp4netns: a container's packets end in libslirp's own TCP.

use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use tests::process::{s, wait_until};

use super::docker_proxy::alive;
use super::{Rival, Running, version_of};
use crate::subjects::Road;
use crate::topology::{PUBLISHED, Topology};

/// The container's address behind slirp4netns.
const ADDRESS: &str = "10.0.2.100";

/// `slirp4netns` for the first container.
#[derive(Debug)]
pub(super) struct Slirp4netns;

impl Rival for Slirp4netns {
    fn name(&self) -> &'static str {
        "slirp4netns"
    }

    fn about(&self) -> &'static str {
        "slirp4netns, MTU 65520 as rootless Docker and Podman set it: one container's way out and in, by sockets of the \
         host; no switch"
    }

    fn needs(&self) -> &'static [(&'static str, &'static str)] {
        &[("slirp4netns", "slirp4netns")]
    }

    fn roads(&self) -> &'static [Road] {
        &[Road::Out, Road::Published, Road::Local]
    }

    fn version(&self) -> Result<String> {
        version_of("slirp4netns", "--version")
    }

    fn set_up(&self, topology: &Topology) -> Result<Box<dyn Running>> {
        let c1 = &topology.c1;
        c1.ip(&["link", "del", "eth0"]);
        let (socket, path) = (topology.file("slirp.sock"), c1.path());
        let words = [
            "slirp4netns",
            "--configure",
            "--mtu=65520",
            "--disable-host-loopback",
            "--api-socket",
            socket.to_str().context("a path in UTF-8")?,
            "--netns-type=path",
            path.to_str().context("a path in UTF-8")?,
            "tap0",
        ];
        let slirp = topology.host.start(&words, &topology.file("slirp.log"));
        wait_until("slirp4netns is ready", s(10), || {
            socket.exists() && c1.ip(&["-4", "route"]).contains("default")
        });
        for protocol in ["tcp", "udp"] {
            let request = serde_json::json!({"execute": "add_hostfwd", "arguments": {
                "proto": protocol, "host_addr": "0.0.0.0", "host_port": PUBLISHED,
                "guest_addr": ADDRESS, "guest_port": PUBLISHED,
            }});
            let mut stream = UnixStream::connect(&socket).context("slirp4netns' socket")?;
            stream.set_read_timeout(Some(Duration::from_secs(5))).context("SO_RCVTIMEO")?;
            stream.write_all(request.to_string().as_bytes()).context("ask slirp4netns")?;
            stream.shutdown(Shutdown::Write).context("ask slirp4netns")?;
            let mut answer = String::new();
            stream.read_to_string(&mut answer).context("slirp4netns' answer")?;
            ensure!(!answer.contains("error"), "slirp4netns does not publish: {answer}");
        }
        Ok(Box::new(vec![alive(slirp, "slirp4netns")?]))
    }
}
