//! The classic BPF program of an uplink's socket: what of the host's traffic is handed to swd at all. Pure.
//!
//! Let in are ARP replies and neighbor advertisements, and packets to one of the host's addresses that may be ours by
//! their port or query identifier, ICMP errors, and what has its port somewhere else: later fragments, extension headers.
//! Everything else the kernel drops for this socket, before a copy is made. The host's own stack is not touched.

use std::net::IpAddr;
use std::ops::RangeInclusive;

use ipnet::IpNet;
use libc::sock_filter;
use nat::Protocol;

use crate::router::owned::OwnedPorts;

/// More ranges than this cost more than they save: those that are nearest to each other are taken together, with what is
/// between them.
const MAX_RANGES: usize = 64;
/// More addresses than this are not looked at singly.
const MAX_ADDRESSES: usize = 64;
/// All of a frame.
const TAKE: u32 = u32::MAX;

const SKF_AD_OFF: u32 = 0xffff_f000;
const SKF_AD_PKTTYPE: u32 = 4;
const SKF_AD_VLAN_TAG_PRESENT: u32 = 48;
const PACKET_HOST: u32 = 0;

#[derive(Default)]
struct Program(Vec<sock_filter>);

#[expect(clippy::cast_possible_truncation, reason = "opcodes are below 2^16")]
impl Program {
    fn op(&mut self, code: u32, jt: u8, jf: u8, k: u32) {
        self.0.push(sock_filter { code: code as u16, jt, jf, k });
    }

    fn load(&mut self, size: u32, at: u32) {
        self.op(libc::BPF_LD | size | libc::BPF_ABS, 0, 0, at);
    }

    fn take(&mut self) {
        self.op(libc::BPF_RET | libc::BPF_K, 0, 0, TAKE);
    }

    fn drop(&mut self) {
        self.op(libc::BPF_RET | libc::BPF_K, 0, 0, 0);
    }

    /// Runs `body` if the accumulator is `k`, and goes on behind it if not.
    fn when(&mut self, k: u32, body: impl FnOnce(&mut Self)) {
        self.guarded(libc::BPF_JEQ, k, body);
    }

    fn guarded(&mut self, jump: u32, k: u32, body: impl FnOnce(&mut Self)) {
        // Conditional jumps reach 255 instructions only.
        self.op(libc::BPF_JMP | jump | libc::BPF_K, 1, 0, k);
        let at = self.0.len();
        self.op(libc::BPF_JMP | libc::BPF_JA, 0, 0, 0);
        body(self);
        let skip = u32::try_from(self.0.len() - at - 1).unwrap_or(u32::MAX);
        if let Some(over) = self.0.get_mut(at) {
            over.k = skip;
        }
    }

    /// Lets in if the accumulator is in one of the ranges; else drops.
    fn ranges(&mut self, ranges: &[RangeInclusive<u16>]) {
        for range in ranges {
            self.op(libc::BPF_JMP | libc::BPF_JGE | libc::BPF_K, 0, 2, u32::from(*range.start()));
            self.op(libc::BPF_JMP | libc::BPF_JGT | libc::BPF_K, 1, 0, u32::from(*range.end()));
            self.take();
        }
        self.drop();
    }

    /// Goes on if the packet's destination (at `at`) is one of these; else drops.
    fn destination(&mut self, at: u32, wanted: &[IpNet]) {
        if wanted.len() > MAX_ADDRESSES {
            return;
        }
        // Each test jumps to the end on success; the jumps are set once the end is known.
        let mut hits = Vec::new();
        for net in wanted {
            let (words, masks): (Vec<u32>, Vec<u32>) = match (net.network(), net.netmask()) {
                (IpAddr::V4(a), IpAddr::V4(m)) => (vec![a.to_bits()], vec![m.to_bits()]),
                (IpAddr::V6(a), IpAddr::V6(m)) => {
                    let split =
                        |x: u128| (0..4).map(|i| ((x >> (96 - 32 * i)) & 0xffff_ffff) as u32).collect();
                    (split(a.to_bits()), split(m.to_bits()))
                }
                _ => continue,
            };
            // Each word: load, mask, compare; the last compare that holds falls onto the jump.
            let count = words.len();
            for (i, (word, mask)) in words.iter().zip(&masks).enumerate() {
                let left = u8::try_from((count - 1 - i) * 3 + 1).unwrap_or(u8::MAX);
                self.load(libc::BPF_W, at + 4 * u32::try_from(i).unwrap_or(0));
                self.op(libc::BPF_ALU | libc::BPF_AND | libc::BPF_K, 0, 0, *mask);
                self.op(libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K, 0, left, *word);
            }
            hits.push(self.0.len());
            self.op(libc::BPF_JMP | libc::BPF_JA, 0, 0, 0);
        }
        self.drop();
        let end = self.0.len();
        for at in hits {
            if let Some(jump) = self.0.get_mut(at) {
                jump.k = u32::try_from(end - at - 1).unwrap_or(u32::MAX);
            }
        }
    }
}

/// What an uplink's filter lets in. Equal values make equal programs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Wanted {
    /// Addresses of the host, and subnets that are routed without masquerade.
    destinations: Vec<IpNet>,
    tcp: Vec<RangeInclusive<u16>>,
    udp: Vec<RangeInclusive<u16>>,
    query: Vec<RangeInclusive<u16>>,
}

impl Wanted {
    /// Packets to these destinations, with ports that are `owned` where a destination is an address.
    pub(super) fn new(destinations: Vec<IpNet>, owned: &OwnedPorts) -> Self {
        // Subnets that are routed as they are have no ports of ours: everything to them may be.
        let routed = destinations.iter().any(|net| net.prefix_len() != net.max_prefix_len());
        let of = |protocol| if routed { vec![0..=u16::MAX] } else { coarse(owned.ranges(protocol)) };
        let (tcp, udp, query) = (of(Protocol::Tcp), of(Protocol::Udp), of(Protocol::Icmp));
        Self { destinations, tcp, udp, query }
    }
}

/// At most [`MAX_RANGES`] ranges that have all ports of these, which are in order: the widest gaps stay.
fn coarse(ranges: Vec<RangeInclusive<u16>>) -> Vec<RangeInclusive<u16>> {
    if ranges.len() <= MAX_RANGES {
        return ranges;
    }
    let width = |at: usize| ranges[at].start() - ranges[at - 1].end();
    let mut gaps: Vec<usize> = (1..ranges.len()).collect();
    gaps.select_nth_unstable_by_key(MAX_RANGES - 2, |at| std::cmp::Reverse((width(*at), *at)));
    gaps.truncate(MAX_RANGES - 1);
    gaps.sort_unstable();
    let firsts = std::iter::once(0).chain(gaps.iter().copied());
    let nexts = gaps.iter().copied().chain(std::iter::once(ranges.len()));
    firsts.zip(nexts).map(|(first, next)| *ranges[first].start()..=*ranges[next - 1].end()).collect()
}

/// The program that lets in what is wanted.
pub(super) fn program(wanted: &Wanted) -> Vec<sock_filter> {
    let Wanted { destinations, tcp, udp, query } = wanted;
    let routed = destinations.iter().any(|net| net.prefix_len() != net.max_prefix_len());
    let (v4, v6): (Vec<IpNet>, Vec<IpNet>) =
        destinations.iter().copied().partition(|net| net.addr().is_ipv4());
    let mut p = Program::default();
    p.load(libc::BPF_B, SKF_AD_OFF.wrapping_add(SKF_AD_PKTTYPE));
    p.op(libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K, 1, 0, PACKET_HOST);
    p.drop();
    p.load(libc::BPF_B, SKF_AD_OFF.wrapping_add(SKF_AD_VLAN_TAG_PRESENT));
    p.op(libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K, 1, 0, 0);
    p.drop();
    p.load(libc::BPF_H, 12);
    p.when(0x0806, |p| {
        p.load(libc::BPF_H, 20);
        p.ranges(&[2..=2]);
    });
    p.when(0x0800, |p| {
        p.destination(30, &v4);
        p.load(libc::BPF_H, 20);
        // A later fragment has no port.
        p.op(libc::BPF_JMP | libc::BPF_JSET | libc::BPF_K, 0, 1, 0x1fff);
        p.take();
        p.op(libc::BPF_LDX | libc::BPF_B | libc::BPF_MSH, 0, 0, 14);
        p.load(libc::BPF_B, 23);
        let indexed =
            |p: &mut Program, size: u32, at: u32| p.op(libc::BPF_LD | size | libc::BPF_IND, 0, 0, at);
        p.when(6, |p| {
            indexed(p, libc::BPF_H, 16);
            p.ranges(tcp);
        });
        p.when(17, |p| {
            indexed(p, libc::BPF_H, 16);
            p.ranges(udp);
        });
        p.when(1, |p| {
            indexed(p, libc::BPF_B, 14);
            for error in [3, 11, 12] {
                p.when(error, Program::take);
            }
            for answer in [0, 14] {
                p.when(answer, |p| {
                    indexed(p, libc::BPF_H, 18);
                    p.ranges(query);
                });
            }
            if routed { p.take() } else { p.drop() }
        });
        // Protocols that are known by addresses alone.
        p.take();
    });
    p.when(0x86dd, |p| {
        p.load(libc::BPF_B, 20);
        // Neighbor advertisements come to any of the link's addresses.
        p.when(58, |p| {
            p.load(libc::BPF_B, 54);
            p.when(136, Program::take);
        });
        p.destination(38, &v6);
        p.load(libc::BPF_B, 20);
        p.when(6, |p| {
            p.load(libc::BPF_H, 56);
            p.ranges(tcp);
        });
        p.when(17, |p| {
            p.load(libc::BPF_H, 56);
            p.ranges(udp);
        });
        p.when(58, |p| {
            p.load(libc::BPF_B, 54);
            p.op(libc::BPF_JMP | libc::BPF_JGT | libc::BPF_K, 1, 0, 4);
            p.take();
            p.when(129, |p| {
                p.load(libc::BPF_H, 58);
                p.ranges(query);
            });
            if routed { p.take() } else { p.drop() }
        });
        p.take();
    });
    p.drop();
    p.0
}

#[cfg(test)]
mod tests {
    use super::*;
    use etherparse::PacketBuilder;

    /// Runs a program over a frame, as the kernel does; metadata reads as zero: for this host, without a tag.
    fn run(program: &[sock_filter], frame: &[u8]) -> bool {
        let (mut a, mut x, mut pc) = (0u32, 0u32, 0usize);
        let load = |size: u32, at: u32| -> Option<u32> {
            if at >= SKF_AD_OFF {
                return Some(0);
            }
            let n = match size {
                libc::BPF_B => 1,
                libc::BPF_H => 2,
                _ => 4,
            };
            Some(frame.get(at as usize..at as usize + n)?.iter().fold(0, |v, b| v << 8 | u32::from(*b)))
        };
        loop {
            let op = program[pc];
            let (code, k) = (u32::from(op.code), op.k);
            pc += 1;
            match code & 7 {
                libc::BPF_LD => {
                    let at = if code & 0xe0 == libc::BPF_IND { x + k } else { k };
                    let Some(value) = load(code & 0x18, at) else { return false };
                    a = value;
                }
                libc::BPF_LDX => x = (load(libc::BPF_B, k).unwrap() & 15) * 4,
                libc::BPF_ALU => a &= k,
                libc::BPF_RET => return k != 0,
                _ => {
                    let hit = match code & 0xf0 {
                        libc::BPF_JA => {
                            pc += k as usize;
                            continue;
                        }
                        libc::BPF_JEQ => a == k,
                        libc::BPF_JGT => a > k,
                        libc::BPF_JGE => a >= k,
                        _ => a & k != 0,
                    };
                    pc += usize::from(if hit { op.jt } else { op.jf });
                }
            }
        }
    }

    fn frame(v4: bool, to: &str, port: u16, tcp: bool) -> Vec<u8> {
        let mut bytes = Vec::new();
        let b = PacketBuilder::ethernet2([1; 6], [2; 6]);
        let b = match to.parse::<IpAddr>().unwrap() {
            IpAddr::V4(to) if v4 => b.ipv4([9; 4], to.octets(), 9),
            IpAddr::V6(to) => b.ipv6([9; 16], to.octets(), 9),
            IpAddr::V4(_) => panic!(),
        };
        if tcp {
            b.tcp(1, port, 3, 4).write(&mut bytes, &[]).unwrap();
        } else {
            b.udp(1, port).write(&mut bytes, &[]).unwrap();
        }
        bytes
    }

    #[test]
    fn only_what_may_be_ours_is_let_in() {
        let owned = OwnedPorts::default();
        owned.add(Protocol::Tcp, 5000..=5000);
        owned.add(Protocol::Tcp, 61_000..=65_535);
        owned.add(Protocol::Udp, 53..=60);
        let hosts: Vec<IpNet> = (0..60)
            .map(|n| format!("192.0.2.{n}/32").parse().unwrap())
            .chain(["2001:db8::1/128", "2001:db8::2/128"].map(|a| a.parse().unwrap()))
            .collect();
        let p = program(&Wanted::new(hosts, &owned));
        for (v4, to) in [(true, "192.0.2.59"), (true, "192.0.2.0"), (false, "2001:db8::2")] {
            for (port, tcp, taken) in [
                (5000, true, true),
                (65_535, true, true),
                (4999, true, false),
                (60_999, true, false),
                (5000, false, false),
                (53, false, true),
                (60, false, true),
                (61, false, false),
            ] {
                assert_eq!(run(&p, &frame(v4, to, port, tcp)), taken, "{to} {port} {tcp}");
            }
        }
        assert!(!run(&p, &frame(true, "192.0.2.60", 5000, true)), "another host's");
        assert!(!run(&p, &frame(false, "2001:db8::3", 5000, true)));
        let mut fragment = frame(true, "192.0.2.1", 9, false);
        fragment[21] = 7;
        assert!(run(&p, &fragment));
        assert!(!run(&p, &[0; 14]) && !run(&p, &[]));
        let mut arp = vec![0; 42];
        arp[12..14].copy_from_slice(&[8, 6]);
        arp[21] = 1;
        assert!(!run(&p, &arp));
        arp[21] = 2;
        assert!(run(&p, &arp));
    }

    #[test]
    fn many_ranges_are_taken_together_where_they_are_near() {
        let owned = OwnedPorts::default();
        (0..1000).for_each(|n| owned.add(Protocol::Tcp, 20_000 + n * 2..=20_000 + n * 2));
        owned.add(Protocol::Tcp, 61_000..=65_535);
        let p = program(&Wanted::new(vec!["192.0.2.1/32".parse().unwrap()], &owned));
        assert!(p.len() < 500, "{}", p.len());
        for (port, taken) in [
            (22, false),
            (19_999, false),
            (20_000, true),
            (21_998, true),
            (21_999, false),
            (60_999, false),
            (65_535, true),
        ] {
            assert_eq!(run(&p, &frame(true, "192.0.2.1", port, true)), taken, "{port}");
        }
    }

    proptest::proptest! {
        #[test]
        fn coarse_ranges_have_all_ports(ports in proptest::collection::btree_set(0..=u16::MAX, 0..300)) {
            let owned = OwnedPorts::default();
            ports.iter().for_each(|p| owned.add(Protocol::Udp, *p..=*p));
            let ranges = coarse(owned.ranges(Protocol::Udp));
            assert!(ranges.len() <= MAX_RANGES && ranges.is_sorted_by(|a, b| a.end() < b.start()));
            assert!(ports.iter().all(|p| ranges.iter().any(|r| r.contains(p))));
        }
    }
}
