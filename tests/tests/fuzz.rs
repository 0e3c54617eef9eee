//! A million frames that nobody would send, through the whole pipeline: none may make it panic, each is accounted for,
//! and whatever comes out keeps to the rules of a switch.

use std::collections::HashMap;

use switch::fdb::FdbConfig;
use switch::mac::Mac;
use switch::port::memory::MemoryFrame;
use switch::snapshot::{NetworkId, PortId};
use tests::lab::{Lab, NetworkOptions, net};
use tests::noise::{Random, mutate, offload};
use tests::process::ms;
use tests::raw::{BROADCAST, arp_request, echo4, experiment, neighbour_solicitation, syn4, udp4, udp6};

const FRAMES: usize = 1_000_000;

struct World {
    lab: Lab,
    /// Ports by network, with what applies to it: gateway's MAC, isolated.
    ports: Vec<(PortId, NetworkId, Mac, bool)>,
    macs: Vec<[u8; 6]>,
}

fn world() -> World {
    let mut lab =
        Lab::new(FdbConfig { max_entries: 200, max_per_port: 80, ..FdbConfig::default() }).without_capture();
    let mut ports = Vec::new();
    let mut macs = vec![BROADCAST, [0; 6], [1, 0x80, 0xc2, 0, 0, 3], [0x33, 0x33, 0, 0, 0, 1]];
    for (n, isolate_ports) in [false, true, false].into_iter().enumerate() {
        let subnets = vec![net(&format!("10.{n}.0.0/16")), net(&format!("fd00:{n}::/64"))];
        let network =
            lab.network(&format!("net{n}"), &NetworkOptions { subnets, isolate_ports, host_access: false });
        let gateway = lab.gateway_mac(network);
        macs.push(gateway.0);
        for p in 0..3 {
            ports.push((lab.port(network, &format!("n{n}p{p}")), network, gateway, isolate_ports));
        }
    }
    macs.extend((0..40).map(|n| [2, 0, 0, 0, 0, n]));
    World { lab, ports, macs }
}

/// A frame that makes sense, for this network.
fn sensible(random: &mut Random, macs: &[[u8; 6]], NetworkId(network): NetworkId) -> Vec<u8> {
    let n = u8::try_from(network).expect("small");
    let pair = (random.pick(macs), random.pick(macs));
    let me4 = [10, n, 0, 2 + random.byte() % 40];
    let to4 = random.pick(&[
        [10, n, 0, 1],
        [10, n, 0, 7],
        [10, n, 255, 255],
        [127, 0, 0, 1],
        [224, 0, 0, 1],
        [8, 8, 8, 8],
    ]);
    let v6 = |last| [0xfd, 0, 0, n, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, last];
    let me6 = v6(2 + random.byte() % 40);
    let to6 = v6(random.pick(&[1, 7]));
    let length = random.below(200);
    let payload = random.bytes(length);
    match random.below(8) {
        0 => arp_request(pair.1, me4, to4),
        1 => neighbour_solicitation(pair.1, me6, to6),
        2 => echo4(pair, me4, to4, &payload),
        3 => udp4(pair, (me4, 5000), (to4, 53), &payload),
        4 => syn4(pair, (me4, 5000), (to4, 80)),
        5 => udp6(pair, (me6, 5000), (to6, 53), &payload),
        6 => experiment(pair.0, pair.1, &payload),
        _ => {
            let mut tagged = echo4(pair, me4, to4, &payload);
            for _ in 0..=random.below(3) {
                let tag = [0x81, 0, random.byte(), random.byte()];
                tagged.splice(12..12, tag);
            }
            tagged
        }
    }
}

#[test]
fn a_million_frames() {
    let World { mut lab, ports, macs } = world();
    let mut random = Random(2026);
    let mut ends = HashMap::<&str, u64>::new();
    for n in 0..FRAMES {
        let (from, network, gateway, isolated) = random.pick(&ports);
        let mut bytes = if random.one_in(3) {
            let length = random.below(120);
            random.bytes(length)
        } else {
            sensible(&mut random, &macs, network)
        };
        mutate(&mut random, &mut bytes);
        let frame = MemoryFrame { bytes, offload: offload(&mut random) };
        let before = lab.counts();
        lab.put(from, frame.clone());
        lab.settle(); // checks that received = forwarded + answered + dropped
        let after = lab.counts();
        assert_eq!(after.received, before.received + 1);

        let mut copies = 0;
        for (port, to_network, ..) in &ports {
            while let Some(out) = lab.take(*port) {
                copies += 1;
                assert_eq!(
                    *to_network, network,
                    "frame {n} crossed from one network to another: {frame:02x?}"
                );
                if *port == from {
                    assert_eq!(
                        after.answered,
                        before.answered + 1,
                        "frame {n} came back and is no answer: {frame:02x?}"
                    );
                    assert_eq!(
                        out.bytes[6..12],
                        gateway.0,
                        "frame {n}: an answer that is not the gateway's: {out:02x?}"
                    );
                } else {
                    assert_eq!(out, frame, "frame {n} was changed on its way");
                    assert!(!isolated, "frame {n} crossed between isolated ports: {frame:02x?}");
                    let source = Mac(out.bytes[6..12].try_into().expect("six bytes"));
                    let destination = Mac(out.bytes[..6].try_into().expect("six bytes"));
                    assert!(
                        !source.is_multicast() && source != Mac::ZERO && source != gateway,
                        "frame {n}: {frame:02x?}"
                    );
                    assert!(
                        !destination.is_link_local() && destination != gateway,
                        "frame {n}: {frame:02x?}"
                    );
                }
            }
        }
        let end = if after.answered > before.answered {
            assert_eq!(copies, 1, "frame {n}: one answer");
            "answered"
        } else if after.forwarded > before.forwarded {
            assert!(copies > 0, "frame {n} is counted as forwarded and went nowhere");
            "forwarded"
        } else {
            assert_eq!(copies, 0, "frame {n} is counted as dropped and went somewhere");
            "dropped"
        };
        *ends.entry(end).or_default() += 1;
        if n % 64 == 0 {
            lab.now = lab.now + ms(u64::from(random.byte()) * 40);
            lab.events();
        }
        if n % 10_000 == 0 {
            lab.shared().fdb.sweep(lab.now);
        }
    }
    assert!(lab.shared().fdb.len() <= 200);
    // The frames reach every part: it would be no test if all of them ended at the first check.
    for end in ["forwarded", "answered", "dropped"] {
        assert!(ends.get(end).is_some_and(|n| *n > FRAMES as u64 / 1000), "{ends:?}");
    }
    eprintln!("{ends:?}");
}
