use super::*;

const NET: NetworkId = NetworkId(0);
const A: PortId = PortId(1);
const B: PortId = PortId(2);

fn mac(n: u32) -> Mac {
    let [a, b, c, d] = n.to_be_bytes();
    Mac([2, 0, a, b, c, d])
}

fn at(secs: u64) -> Time {
    Time::from_secs(1000 + secs)
}

fn small() -> Fdb {
    Fdb::new(FdbConfig { aging: Duration::from_secs(300), max_entries: 100, max_per_port: 60 })
}

#[test]
fn learns_refreshes_and_ages() {
    let fdb = small();
    assert_eq!(fdb.lookup(NET, mac(1), at(0)), None);
    assert_eq!(fdb.learn(NET, mac(1), A, at(0)), Learned::Known);
    assert_eq!(fdb.lookup(NET, mac(1), at(299)), Some(A));
    assert_eq!(fdb.lookup(NET, mac(1), at(300)), None);
    assert_eq!(fdb.lookup(NetworkId(1), mac(1), at(0)), None);
    // A refresh keeps it; the sweep forgets what has aged.
    assert_eq!(fdb.learn(NET, mac(1), A, at(200)), Learned::Known);
    fdb.sweep(at(499));
    assert_eq!(fdb.lookup(NET, mac(1), at(499)), Some(A));
    fdb.sweep(at(500));
    assert_eq!(fdb.len(), 0);
    assert_eq!(fdb.shares().total, 0);
}

#[test]
fn moves_but_not_forever() {
    let fdb = small();
    fdb.learn(NET, mac(1), A, at(0));
    let mut ports = [B, A].into_iter().cycle();
    for _ in 0..MOVES_PER_WINDOW {
        let to = ports.next().unwrap();
        assert!(matches!(fdb.learn(NET, mac(1), to, at(1)), Learned::Moved { .. }));
    }
    // An odd number of moves: it is at B now, and stays there.
    assert_eq!(fdb.learn(NET, mac(1), A, at(1)), Learned::Damped { port: B, tell: true });
    assert_eq!(fdb.learn(NET, mac(1), A, at(5)), Learned::Damped { port: B, tell: false });
    assert_eq!(fdb.learn(NET, mac(1), B, at(5)), Learned::Known);
    assert_eq!(fdb.learn(NET, mac(1), A, at(6)), Learned::Moved { from: B });
}

#[test]
fn static_entries_neither_age_nor_move() {
    let fdb = small();
    fdb.learn(NET, mac(1), A, at(0));
    fdb.set(NET, mac(1), B, Kind::Static);
    assert_eq!(fdb.shares().total, 0);
    assert_eq!(fdb.learn(NET, mac(1), A, at(1)), Learned::Bound);
    assert_eq!(fdb.learn(NET, mac(1), B, at(1)), Learned::Known);
    fdb.sweep(at(100_000));
    assert_eq!(fdb.flush(|_, _| true), 0);
    assert_eq!(fdb.lookup(NET, mac(1), at(100_000)), Some(B));
    assert!(fdb.remove(NET, mac(1)));
    assert!(!fdb.remove(NET, mac(1)));
}

#[test]
fn a_port_keeps_to_its_limit() {
    let fdb = small();
    for n in 0..60 {
        assert_eq!(fdb.learn(NET, mac(n), A, at(0)), Learned::Known);
    }
    assert_eq!(fdb.learn(NET, mac(60), A, at(0)), Learned::Full { tell: true });
    assert_eq!(fdb.learn(NET, mac(61), A, at(59)), Learned::Full { tell: false });
    assert_eq!(fdb.learn(NET, mac(62), A, at(60)), Learned::Full { tell: true });
    assert_eq!(fdb.learn(NET, mac(60), B, at(0)), Learned::Known);
    // Nor by moving addresses to it.
    assert_eq!(fdb.learn(NET, mac(60), A, at(100)), Learned::Full { tell: false });
}

#[test]
fn a_full_table_is_shared_fairly() {
    let fdb = small();
    let quiet = PortId(7);
    fdb.learn(NET, mac(9999), quiet, at(0));
    for port in [A, B] {
        for n in 0..1000 {
            fdb.learn(NET, mac(port.0 * 10_000 + n), port, at(0));
        }
    }
    assert_eq!(fdb.len(), 100);
    assert_eq!(fdb.lookup(NET, mac(9999), at(0)), Some(quiet));
    // A newcomer gets room from the one that has the most, oldest entry first.
    for n in 0..30 {
        assert_eq!(fdb.learn(NET, mac(50_000 + n), quiet, at(1)), Learned::Known, "{n}");
    }
    assert_eq!(fdb.len(), 100);
    assert_eq!(fdb.lookup(NET, mac(9999), at(1)), Some(quiet));
    assert_eq!(fdb.lookup(NET, mac(10_000), at(1)), None);
    let fair = 100 / 3;
    for n in 0..30 {
        fdb.learn(NET, mac(60_000 + n), quiet, at(1));
    }
    assert_eq!(fdb.shares().of(quiet).count, fair);
}

#[test]
fn a_port_that_goes_takes_all_along() {
    let fdb = small();
    fdb.learn(NET, mac(1), A, at(0));
    fdb.learn(NET, mac(2), B, at(0));
    fdb.set(NET, mac(3), A, Kind::Static);
    fdb.remove_port(A);
    let left: Vec<_> = fdb.entries(at(1)).iter().map(|e| (e.mac, e.port, e.age)).collect();
    assert_eq!(left, [(mac(2), B, Duration::from_secs(1))]);
    assert_eq!(fdb.shares().total, 1);
    assert_eq!(fdb.flush(|_, port| port == B), 1);
    assert!(fdb.is_empty());
}

#[test]
fn a_flood_of_a_million_sources_is_bounded_and_unlearns_nobody() {
    let fdb = Fdb::new(FdbConfig::default());
    for n in 0..100 {
        fdb.learn(NET, mac(n), B, at(0));
    }
    for n in 0..1_000_000 {
        fdb.learn(NET, mac(1_000_000 + n), A, at(0));
    }
    assert_eq!(fdb.len(), 100 + FdbConfig::default().max_per_port);
    assert!((0..100).all(|n| fdb.lookup(NET, mac(n), at(0)) == Some(B)));
    assert!(fdb.shares().of(A).order.len() <= FdbConfig::default().max_per_port);
}
