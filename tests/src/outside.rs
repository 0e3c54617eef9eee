//! The outside: a namespace at the far end of a cable of the host's, and a watch on all that the host sends there.
//!
//! The watch is tcpdump, from before the first packet until the handle is dropped. It keeps what may be wrong: inside
//! addresses, TCP resets, ICMP errors. Then each packet is [judged](judge), and a test that has passed until then fails:
//!
//! - for an inside address in any place: IP, ARP, neighbour discovery, the quote of an ICMP error;
//! - for a reset or an ICMP unreachable that the host's *stack* sent. It is told by its hop limit: the host's stack starts at
//!   [`STACK_HOPS`], swd itself at 64, and what a container sent has one hop less than that. What the stack has to refuse is
//!   announced with [`Outside::expect_refusals`].

use std::fs::{self, File};
use std::mem::ManuallyDrop;
use std::net::{IpAddr, UdpSocket};
use std::ops::Deref;
use std::path::PathBuf;
use std::sync::Mutex;
use std::thread;

use etherparse::{LaxNetSlice, LaxSlicedPacket, TransportSlice};
use ipnet::IpNet;
use nix::sys::signal::Signal;
use nix::sys::socket::{setsockopt, sockopt};
use pcap_file::pcap::PcapReader;
use tempfile::TempDir;

use crate::netns::{Namespace, unique_name, veth};
use crate::process::{Background, s, wait_until};

/// Addresses that tests give to what is inside, and to nothing outside.
pub const INSIDE: [&str; 4] = ["10.0.0.0/8", "172.18.0.0/15", "172.20.0.0/14", "fd00::/8"];
/// Hop limit of what the host's own stack sends, where it has an [`Outside`].
pub const STACK_HOPS: u8 = 77;
/// The UDP port of the marker that ends a capture.
const MARKER: u16 = 40_009;

/// What is wrong with a packet that the host has sent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Wrong {
    /// It shows an inside address, here.
    Inside(&'static str, IpAddr),
    /// The host's stack refuses this port.
    Refused(u16),
}

/// What is outside, without a watch: for tests in which the host's own stack says what the watch would take for a leak. The
/// host has 172.16.0.2/16 on `eth0` and a default route to 172.16.0.1, which is the outside.
#[track_caller]
pub fn unwatched(host: &Namespace) -> Namespace {
    let ns = Namespace::new();
    veth(("eth0", host), ("eth0", &ns));
    host.ip(&["addr", "add", "172.16.0.2/16", "dev", "eth0"]);
    ns.ip(&["addr", "add", "172.16.0.1/16", "dev", "eth0"]);
    host.ip(&["route", "add", "default", "via", "172.16.0.1"]);
    ns
}

/// A namespace that is outside, by a cable to the host.
#[derive(Debug)]
pub struct Outside {
    ns: Namespace,
    host: ManuallyDrop<Namespace>,
    ifname: String,
    dir: TempDir,
    watch: Option<Background>,
    expected: Mutex<Vec<u16>>,
}

impl Outside {
    /// The usual one: the host has 172.16.0.2/16 and 2001:db8::2/64 on `eth0` and default routes to 172.16.0.1 and
    /// 2001:db8::1, which are the outside.
    #[track_caller]
    pub fn new(host: &Namespace) -> Self {
        let new = Self::connect(
            host,
            "eth0",
            ["172.16.0.2/16", "2001:db8::2/64"],
            ["172.16.0.1/16", "2001:db8::1/64"],
        );
        host.ip(&["route", "add", "default", "via", "172.16.0.1"]);
        host.ip(&["-6", "route", "add", "default", "via", "2001:db8::1"]);
        new
    }

    /// One more: the host's end is `ifname`, with these addresses; the other end is `eth0`.
    ///
    /// # Panics
    /// When the watch does not begin.
    #[track_caller]
    pub fn connect(host: &Namespace, ifname: &str, host_has: [&str; 2], it_has: [&str; 2]) -> Self {
        let ns = Namespace::new();
        veth((ifname, host), ("eth0", &ns));
        let dir = TempDir::with_prefix("swd-outside-").expect("a temporary folder");
        let ipv6 = format!("net.ipv6.conf.{ifname}.hop_limit={STACK_HOPS}");
        let default = format!("net.ipv4.ip_default_ttl={STACK_HOPS}");
        // Each refusal is to be seen: without the last two, some seconds' worth of them are not sent.
        let settings = [&default, &ipv6, "net.ipv4.icmp_ratelimit=0", "net.ipv6.icmp.ratelimit=0"];
        host.run(&[&["sysctl", "-qw"], &settings[..]].concat()).ok();
        let watch = watch(&ns, &dir);
        for (ns, dev, addresses) in [(host, ifname, host_has), (&ns, "eth0", it_has)] {
            for address in addresses {
                let nodad = if address.contains(':') { &["nodad"][..] } else { &[] };
                ns.ip(&[&["addr", "add", address, "dev", dev], nodad].concat());
            }
        }
        let host = ManuallyDrop::new(Namespace::adopt(host.name()));
        let expected = Mutex::default();
        Self { ns, host, ifname: ifname.to_owned(), dir, watch: Some(watch), expected }
    }

    /// The host's stack is to refuse this port so many times: the port is not swd's. That many must be seen, too.
    ///
    /// # Panics
    /// When another thread has panicked here.
    pub fn expect_refusals(&self, port: u16, times: usize) {
        self.expected.lock().expect("no panic").extend(std::iter::repeat_n(port, times));
    }

    /// Ends the watch: what was wrong, of all packets from the host.
    #[track_caller]
    fn finish(&mut self) -> Vec<(Wrong, String)> {
        let Some(mut watch) = self.watch.take() else { return Vec::new() };
        let marker = format!("end of {}", unique_name());
        let file = self.dir.path().join("pcap");
        self.host.enter(|| {
            let socket = UdpSocket::bind("0.0.0.0:0").expect("a socket");
            setsockopt(&socket, sockopt::BindToDevice, &self.ifname.as_str().into()).expect("the cable");
            socket.set_broadcast(true).expect("broadcast");
            socket.send_to(marker.as_bytes(), ("255.255.255.255", MARKER)).expect("send the marker");
        });
        wait_until("the watch has come to the end", s(10), || {
            let seen = fs::read(&file).unwrap_or_default();
            seen.windows(marker.len()).any(|w| w == marker.as_bytes())
        });
        watch.signal(Signal::SIGTERM);
        watch.wait(s(5));
        let log = watch.log();
        assert!(log.contains("\n0 packets dropped by kernel"), "the watch has missed packets: {log}");
        let mut expected = self.expected.lock().expect("no panic");
        let inside = INSIDE.map(|net| net.parse().expect("a network"));
        let mut wrong = Vec::new();
        let mut reader = PcapReader::new(File::open(&file).expect("the capture")).expect("a capture");
        while let Some(packet) = reader.next_packet() {
            let frame = packet.expect("a packet").data;
            let Some(found) = judge(&frame, &inside) else { continue };
            if let Wrong::Refused(port) = found
                && let Some(at) = expected.iter().position(|p| *p == port)
            {
                expected.swap_remove(at);
                continue;
            }
            wrong.push((found, format!("{frame:02x?}")));
        }
        assert!(expected.is_empty(), "the host's stack did not refuse, as was expected: {expected:?}");
        wrong
    }

    fn keep(&self) -> Option<PathBuf> {
        let test = std::env::current_exe().ok()?;
        let folder = test.ancestors().nth(3)?.join("tmp");
        fs::create_dir_all(&folder).ok()?;
        let name = thread::current().name().unwrap_or("test").replace("::", "-");
        let path = folder.join(format!("{name}-{}.pcap", std::process::id()));
        fs::copy(self.dir.path().join("pcap"), &path).ok().map(|_| path)
    }
}

impl Deref for Outside {
    type Target = Namespace;

    fn deref(&self) -> &Namespace {
        &self.ns
    }
}

impl Drop for Outside {
    fn drop(&mut self) {
        if thread::panicking() {
            return;
        }
        let wrong = self.finish();
        if let Some((_, frame)) = wrong.first() {
            let kept = self.keep();
            let what: Vec<_> = wrong.iter().map(|(what, _)| what).collect();
            panic!("the host has sent outside what it must not: {what:?}; the first one: {frame}; {kept:?}");
        }
    }
}

/// Starts to watch what comes in.
#[track_caller]
fn watch(ns: &Namespace, dir: &TempDir) -> Background {
    let inside: Vec<_> = INSIDE.iter().map(|net| format!("net {net}")).collect();
    let filter = format!(
        "{} or (icmp6 and ip6[40] >= 135 and ip6[40] <= 136 and ip6[48] == 0xfd) \
         or (icmp and icmp[0] != 0 and icmp[0] != 8) or (icmp6 and ip6[40] < 128) \
         or (ip and tcp[13] & 4 != 0) or (ip6 and ip6[6] == 6 and ip6[53] & 4 != 0) or udp dst port {MARKER}",
        inside.join(" or "),
    );
    let (file, log) = (dir.path().join("pcap"), dir.path().join("log"));
    let file = file.to_str().expect("UTF-8");
    let words = ["tcpdump", "-npU", "-i", "eth0", "-Q", "in", "--immediate-mode", "-B", "8192", "-s", "400"];
    let watch = ns.start(&[&words[..], &["-w", file, &filter]].concat(), &log);
    wait_until("tcpdump listens", s(10), || watch.log().contains("listening on"));
    watch
}

/// What is wrong with a frame from the host, `nets` being inside.
pub fn judge(frame: &[u8], nets: &[IpNet]) -> Option<Wrong> {
    let inside = |place, addresses: &[IpAddr]| {
        let found = addresses.iter().find(|a| nets.iter().any(|n| n.contains(*a)))?;
        Some(Wrong::Inside(place, *found))
    };
    let packet = LaxSlicedPacket::from_ethernet(frame).ok()?;
    if let Some(LaxNetSlice::Arp(arp)) = &packet.net {
        let addresses = [arp.sender_protocol_addr(), arp.target_protocol_addr()];
        let addresses = addresses.iter().filter_map(|a| Some(IpAddr::from(*a.first_chunk::<4>()?)));
        return inside("ARP", &addresses.collect::<Vec<_>>());
    }
    let (source, destination, hops) = ends(&packet)?;
    if let Some(wrong) = inside("the packet's header", &[source, destination]) {
        return Some(wrong);
    }
    let own = hops == STACK_HOPS;
    let (quote, unreachable) = match packet.transport.as_ref()? {
        TransportSlice::Tcp(tcp) => {
            return (tcp.rst() && own).then(|| Wrong::Refused(tcp.source_port()));
        }
        TransportSlice::Icmpv4(icmp) if ![0, 8].contains(&icmp.type_u8()) => {
            (icmp.payload(), icmp.type_u8() == 3)
        }
        TransportSlice::Icmpv6(icmp) if icmp.type_u8() < 128 => (icmp.payload(), icmp.type_u8() == 1),
        TransportSlice::Icmpv6(icmp) if [135, 136].contains(&icmp.type_u8()) => {
            return inside("neighbour discovery", &[IpAddr::from(*icmp.payload().first_chunk::<16>()?)]);
        }
        _ => return None,
    };
    let quoted = LaxSlicedPacket::from_ip(quote).ok()?;
    let (source, destination, _) = ends(&quoted)?;
    if let Some(wrong) = inside("the quote of an ICMP error", &[source, destination]) {
        return Some(wrong);
    }
    let port = match &quoted.transport {
        Some(TransportSlice::Tcp(tcp)) => tcp.destination_port(),
        Some(TransportSlice::Udp(udp)) => udp.destination_port(),
        _ => 0,
    };
    (unreachable && own).then_some(Wrong::Refused(port))
}

/// Source, destination and hop limit.
fn ends(packet: &LaxSlicedPacket<'_>) -> Option<(IpAddr, IpAddr, u8)> {
    match packet.net.as_ref()? {
        LaxNetSlice::Ipv4(ip) => {
            let header = ip.header();
            Some((header.source_addr().into(), header.destination_addr().into(), header.ttl()))
        }
        LaxNetSlice::Ipv6(ip) => {
            let header = ip.header();
            Some((header.source_addr().into(), header.destination_addr().into(), header.hop_limit()))
        }
        LaxNetSlice::Arp(_) => None,
    }
}
