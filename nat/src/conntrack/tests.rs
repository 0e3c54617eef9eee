use std::time::Duration;

use super::*;
use crate::tuple::Endpoint;

const T0: Time = Time::from_secs(5000);

fn tuple(n: u32, network: u32) -> Tuple {
    let [a, b, c, d] = n.to_be_bytes();
    Tuple {
        source: Endpoint { address: Address::from_v4_octets([10, a, b, c]), port: u16::from(d) },
        destination: Endpoint { address: Address::from_v4_octets([192, 0, 2, 1]), port: 80 },
        protocol: Protocol::Udp,
        network: NetworkId(network),
    }
}

fn connection(n: u32, lifetime: u64) -> Connection {
    let original = tuple(n, 1);
    let owners = [OwnerId(n % 10 + 1), OwnerId::OUTSIDE];
    let mut connection = Connection::new(T0, [original, original.reversed(NetworkId::OUTSIDE)], owners, None);
    connection.deadline = T0 + Duration::from_secs(lifetime);
    connection
}

/// Collects everything that is due, and returns how many connections ended in how many steps.
fn collect(table: &mut Conntrack, now: Time) -> (u32, u32) {
    let (mut ended, mut steps) = (0, 0);
    loop {
        steps += 1;
        match table.step(now) {
            Step::Busy => {}
            Step::Dead(id) => {
                assert!(table.remove(id).is_some());
                ended += 1;
            }
            Step::Idle => return (ended, steps),
        }
    }
}

#[test]
fn a_connection_is_found_both_ways() {
    let mut table = Conntrack::new(10);
    let id = table.insert(connection(1, 60)).unwrap();
    assert_eq!(table.find(T0, &tuple(1, 1)), Lookup::Live(id, Direction::Original));
    let reply = tuple(1, 1).reversed(NetworkId::OUTSIDE);
    assert_eq!(table.find(T0, &reply), Lookup::Live(id, Direction::Reply));
    assert_eq!(table.find(T0, &tuple(1, 2)), Lookup::Nothing, "another network");
    assert_eq!(table.insert(connection(1, 60)), Err(InsertError::Clash));
    assert_eq!(table.find(T0 + Duration::from_secs(60), &reply), Lookup::Dead(id));
    table.remove(id).unwrap();
    assert_eq!(table.find(T0, &reply), Lookup::Nothing);
    assert!(table.get(id).is_none());
}

#[test]
fn a_full_table_refuses() {
    let mut table = Conntrack::new(10);
    for n in 0..10 {
        table.insert(connection(n, 60)).unwrap();
    }
    assert_eq!(table.insert(connection(99, 60)), Err(InsertError::Full));
    assert_eq!(table.iter(T0).count(), 10);
}

#[test]
fn deadlines_are_kept_whether_they_move_away_or_closer() {
    let mut table = Conntrack::new(10_000);
    let ids: Vec<_> =
        (0..1000).map(|n| table.insert(connection(n, 1 + u64::from(n) * 13)).unwrap()).collect();
    // One third moves away, one comes closer.
    for (n, id) in (0u64..).zip(&ids) {
        match n % 3 {
            0 => table.set_deadline(*id, T0 + Duration::from_secs(20_000)),
            1 => table.set_deadline(*id, T0 + Duration::from_secs(1 + n)),
            _ => {}
        }
    }
    for second in 0..20_010 {
        let now = T0 + Duration::from_secs(second);
        collect(&mut table, now);
        // Nothing goes early, and nothing stays for more than a second and a bit.
        let late = now - Duration::from_secs(2);
        assert!(table.slab.iter().all(|(_, entry)| entry.connection.deadline > late));
        let expected = table.slab.iter().filter(|(_, entry)| entry.connection.deadline > now).count();
        assert_eq!(table.iter(now).count(), expected);
    }
    assert_eq!(table.len(), 0);
    assert_eq!(table.poll_at(), None);
}

#[test]
fn a_filter_ends_at_once_and_the_sweep_collects() {
    let mut table = Conntrack::new(10_000);
    for n in 0..5000 {
        table.insert(connection(n, 600)).unwrap();
    }
    let before = table.find(T0, &tuple(3, 1));
    assert!(matches!(before, Lookup::Live(..)));
    assert!(table.end_all(Filter { owner: Some(OwnerId(4)), ..Filter::default() }).is_empty());
    assert!(matches!(table.find(T0, &tuple(3, 1)), Lookup::Dead(_)));
    assert!(matches!(table.find(T0, &tuple(4, 1)), Lookup::Live(..)));
    assert_eq!(table.iter(T0).count(), 4500);
    // What is made after the filter is not held against it.
    let mut successor = connection(9_003, 600);
    successor.owners[0] = OwnerId(4);
    table.insert(successor).unwrap();
    assert_eq!(table.poll_at(), Some(Time::ZERO));
    let (ended, steps) = collect(&mut table, T0);
    assert_eq!(ended, 500);
    assert!(steps <= 5100, "{steps}");
    assert_eq!(table.iter(T0).count(), 4501);
    assert!(table.filters.noted.is_empty());
}

#[test]
fn filters_are_bounded() {
    let mut table = Conntrack::new(1000);
    for n in 0..1000 {
        table.insert(connection(n, 600)).unwrap();
    }
    let mut collected = 0;
    for n in 100..300 {
        let filter = Filter { port: Some(n), ..Filter::default() };
        for id in table.end_all(filter) {
            table.remove(id).unwrap();
            collected += 1;
        }
        assert!(table.filters.noted.len() <= MAX_FILTERS);
    }
    assert!(collected > 0);
    // Ports 0 to 99 of four addresses are left.
    assert_eq!(table.iter(T0).count(), 400);
}

#[test]
fn the_same_tuple_both_ways_is_indexed_once() {
    let mut table = Conntrack::new(10);
    let alike = tuple(1, 1);
    let mut connection = Connection::new(T0, [alike, alike], [OwnerId(1); 2], None);
    connection.deadline = T0 + Duration::from_secs(60);
    let id = table.insert(connection).unwrap();
    assert_eq!(table.find(T0, &alike), Lookup::Live(id, Direction::Original));
    table.remove(id).unwrap();
    assert_eq!(table.find(T0, &alike), Lookup::Nothing);
}

/// The memory of a connection of IPv4, all in: its entry, what is known of TCP's ends, its places in the index, its mapping and that
/// one's place.
#[test]
fn a_connection_takes_less_than_270_bytes() {
    let entry = Slab::<Entry>::SLOT;
    let mapping = Slab::<crate::masquerade::Mapping>::SLOT;
    let heads = 2 * 4 + 4;
    // What malloc(3) has in front of a piece of memory, and its size of steps.
    let ends = (size_of::<tcp::Ends>() + 8).next_multiple_of(16);
    let total = entry + ends + mapping + heads;
    assert!(total <= 270, "{entry} + {ends} + {mapping} + {heads}");
}
