//! In the steady state a frame costs no allocation: not a matter of speed but of fact, so it is a test.

use std::time::Duration;

use allocation_counter::measure;
use benches::flow::{Flows, scattered};
use benches::memory::{FRAMES, HOST, OUTSIDE, Preset, World};
use nat::Time;

const BATCHES: usize = 1000;

/// Passes batches of a frame, each of which must be sent; none may allocate.
fn no_allocation(what: &str, world: &mut World, preset: &mut Preset) {
    world.pass(preset);
    let mut sent = 0;
    let seen = measure(|| {
        for _ in 0..BATCHES {
            world.wait(Duration::from_micros(100));
            sent += world.pass(preset);
        }
    });
    assert_eq!(sent as u64, FRAMES * BATCHES as u64, "{what}: frames sent");
    assert_eq!(seen.count_total, 0, "{what}: allocations in {sent} frames ({} bytes)", seen.bytes_total);
}

#[test]
fn the_counter_counts() {
    assert_eq!(measure(|| drop(std::hint::black_box(vec![0_u8; 100]))).count_total, 1);
}

#[test]
fn bridging_allocates_nothing() {
    let mut world = World::new();
    for length in [64, 1400] {
        no_allocation("bridged", &mut world, &mut Preset::bridged(0, length));
    }
}

#[test]
fn routing_allocates_nothing() {
    let mut world = World::new();
    let mut outbound = Preset::outbound(4000, 64);
    let mut answer = world.answer_to(&mut outbound);
    assert_eq!(world.left()[26..34], [HOST.octets(), OUTSIDE.octets()].concat(), "masqueraded");
    no_allocation("out", &mut world, &mut outbound);
    no_allocation("in", &mut world, &mut answer);
}

#[test]
fn known_connections_allocate_nothing() {
    const COUNT: u32 = 10_000;
    let mut flows = Flows::new(COUNT);
    let now = Time::from_secs(1000);
    for n in 0..COUNT {
        assert!(flows.send(now, n), "flow {n}");
    }
    assert_eq!(flows.left_as(), Some([192, 0, 2, 1].into()));
    let seen = measure(|| {
        for n in 0..COUNT {
            assert!(flows.send(now, scattered(n, COUNT)));
        }
    });
    assert_eq!(seen.count_total, 0, "allocations for {COUNT} packets of known connections");
}
