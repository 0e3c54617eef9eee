use super::*;
use Direction::{Original, Reply};

/// A segment: flags by letters, sequence, acknowledgment, payload.
fn segment(flags: &str, sequence: u32, acknowledgment: u32, payload: u32) -> TcpSegment {
    let bit = |letter, bit| if flags.contains(letter) { bit } else { 0 };
    TcpSegment {
        flags: bit('S', tcp_flag::SYN)
            | bit('A', tcp_flag::ACK)
            | bit('F', tcp_flag::FIN)
            | bit('R', tcp_flag::RST),
        sequence,
        acknowledgment,
        window: 1000,
        payload,
        window_scale: flags.contains('S').then_some(7),
    }
}

/// Runs segments through and returns the states after each; `None` for one that had no effect.
fn run(first: &TcpSegment, rest: &[(Direction, TcpSegment)]) -> Vec<Option<State>> {
    let (mut ends, mut state) = Ends::open(first).unwrap();
    let mut states = vec![Some(state)];
    for (direction, segment) in rest {
        states.push(match ends.follow(state, *direction, segment) {
            Effect::Ignored => None,
            Effect::Reopened => {
                state = State::SynSent;
                Some(state)
            }
            Effect::State(next) => {
                state = next;
                Some(state)
            }
        });
    }
    states
}

const HANDSHAKE: [(Direction, TcpSegment); 2] = [
    (
        Reply,
        TcpSegment {
            flags: tcp_flag::SYN | tcp_flag::ACK,
            sequence: 900,
            acknowledgment: 101,
            window: 1000,
            payload: 0,
            window_scale: Some(7),
        },
    ),
    (
        Original,
        TcpSegment {
            flags: tcp_flag::ACK,
            sequence: 101,
            acknowledgment: 901,
            window: 1000,
            payload: 0,
            window_scale: None,
        },
    ),
];

/// The states after the handshake and these segments.
fn after_handshake(rest: &[(Direction, TcpSegment)]) -> Vec<Option<State>> {
    let all: Vec<_> = HANDSHAKE.iter().chain(rest).copied().collect();
    run(&segment("S", 100, 0, 0), &all).split_off(3)
}

#[test]
fn the_usual_life() {
    let states = run(
        &segment("S", 100, 0, 0),
        &[
            HANDSHAKE[0],
            HANDSHAKE[1],
            (Original, segment("A", 101, 901, 50)),
            (Reply, segment("A", 901, 151, 9000)),
            (Original, segment("FA", 151, 9901, 0)),
            (Reply, segment("A", 9901, 152, 100)),
            (Reply, segment("FA", 10_001, 152, 0)),
            (Original, segment("A", 152, 10_002, 0)),
        ],
    );
    use State::{Closed, Closing, Established, SynReceived, SynSent};
    let expected =
        [SynSent, SynReceived, Established, Established, Established, Closing, Closing, Closing, Closed];
    assert_eq!(states, expected.map(Some));
}

/// RFC 5382 REQ-2a, RFC 9293 figure 7.
#[test]
fn both_ends_may_open_at_once() {
    let states = run(
        &segment("S", 100, 0, 0),
        &[
            (Reply, segment("S", 900, 0, 0)),
            (Original, segment("SA", 100, 901, 0)),
            (Reply, segment("SA", 900, 101, 0)),
        ],
    );
    assert_eq!(states[3], Some(State::Established));
}

#[test]
fn both_ends_may_close_at_once() {
    let states = after_handshake(&[
        (Original, segment("FA", 101, 901, 0)),
        (Reply, segment("FA", 901, 101, 0)),
        (Original, segment("A", 102, 902, 0)),
        (Reply, segment("A", 902, 102, 0)),
    ]);
    assert_eq!(states, [State::Closing, State::Closing, State::Closing, State::Closed].map(Some));
}

#[test]
fn a_refusal_resets() {
    let states = run(&segment("S", 100, 0, 0), &[(Reply, segment("RA", 0, 101, 0))]);
    assert_eq!(states[1], Some(State::Reset));
    let forged =
        run(&segment("S", 100, 0, 0), &[(Reply, segment("RA", 0, 77, 0)), (Reply, segment("R", 5, 0, 0))]);
    assert_eq!(forged[1..], [None, None]);
}

/// RFC 7857 section 2.2: out of window a RST has no effect; in window data brings the connection back.
#[test]
fn a_reset_must_be_in_window_and_is_not_the_last_word() {
    let states = after_handshake(&[
        (Reply, segment("R", 500_000_000, 0, 0)),
        (Reply, segment("R", 900, 0, 0)),
        (Reply, segment("R", 901, 0, 0)),
        (Original, segment("A", 101, 901, 10)),
        (Reply, segment("RA", 901, 111, 0)),
    ]);
    let expected = [None, None, Some(State::Reset), Some(State::Established), Some(State::Reset)];
    assert_eq!(states, expected);
}

#[test]
fn what_is_far_out_of_window_changes_nothing() {
    let states = after_handshake(&[
        (Reply, segment("FA", 5_000_000, 101, 0)),
        (Reply, segment("FA", 901, 999_999, 0)),
        (Reply, segment("A", 901, 101, 10)),
    ]);
    assert_eq!(states, [None, None, Some(State::Established)]);
}

/// Data that passed where nobody could tell of it, in both directions: each FIN acknowledges what was never seen.
#[test]
fn a_connection_closes_after_data_that_nobody_saw() {
    let states = after_handshake(&[
        (Original, segment("FA", 151, 951, 0)),
        (Reply, segment("FA", 951, 152, 0)),
        (Original, segment("A", 152, 952, 0)),
    ]);
    assert_eq!(states, [State::Closing, State::Closing, State::Closed].map(Some));
    // A FIN may be among what was not seen: the rest closes.
    let states =
        after_handshake(&[(Reply, segment("FA", 951, 152, 0)), (Original, segment("A", 152, 952, 0))]);
    assert_eq!(states, [State::Closing; 2].map(Some));
}

#[test]
fn retransmissions_and_keepalives_are_in_order() {
    let states = after_handshake(&[
        (Original, segment("A", 101, 901, 100)),
        (Original, segment("A", 101, 901, 100)),
        (Reply, segment("A", 901, 201, 0)),
        (Original, segment("A", 200, 901, 0)),
        (Reply, segment("SA", 900, 101, 0)),
    ]);
    assert!(states.iter().all(Option::is_some), "{states:?}");
}

#[test]
fn a_syn_opens_a_closed_connection_anew() {
    let states = after_handshake(&[
        (Original, segment("RA", 101, 901, 0)),
        (Original, segment("S", 7_000_000, 0, 0)),
        (Reply, segment("SA", 50, 7_000_001, 0)),
        (Original, segment("A", 7_000_001, 51, 0)),
    ]);
    let expected = [State::Reset, State::SynSent, State::SynReceived, State::Established];
    assert_eq!(states, expected.map(Some));
}

#[test]
fn a_forged_answer_does_not_lock_out_the_real_one() {
    let states =
        run(&segment("S", 100, 0, 0), &[(Reply, segment("S", 12_345, 0, 0)), HANDSHAKE[0], HANDSHAKE[1]]);
    assert_eq!(states[3], Some(State::Established));
}

#[test]
fn a_connection_can_be_met_in_the_middle() {
    let states = run(
        &segment("A", 5000, 9000, 0),
        &[
            (Reply, segment("A", 9000, 5000, 100_000)),
            (Original, segment("A", 5000, 109_000, 10)),
            (Reply, segment("FA", 109_000, 5010, 0)),
        ],
    );
    let expected = [State::SynReceived, State::Established, State::Established, State::Closing];
    assert_eq!(states, expected.map(Some));
    for flags in ["R", "RA", "F", "FA", "SA", ""] {
        assert_eq!(Ends::open(&segment(flags, 1, 1, 0)), None, "{flags}");
    }
}

#[test]
fn one_that_was_answered_unseen_before_a_restart_goes_on() {
    let (before, state) = Ends::open(&segment("S", 100, 0, 0)).unwrap();
    let mut ends = Ends::from_essence(before.essence(), state).unwrap();
    let mut follow = |direction, segment| ends.follow(State::SynSent, direction, &segment);
    assert_eq!(follow(Original, segment("A", 5101, 9901, 0)), Effect::State(State::SynReceived));
    assert_eq!(follow(Reply, segment("A", 9901, 5101, 1000)), Effect::State(State::Established));
    // Windows are taken for the largest that they may be.
    assert_eq!(follow(Reply, segment("A", 9901 + 500_000, 5101, 1000)), Effect::State(State::Established));
}

#[test]
fn sequence_numbers_wrap() {
    let start = u32::MAX - 1;
    let states = run(
        &segment("S", start, 0, 0),
        &[
            (Reply, segment("SA", start, start.wrapping_add(1), 0)),
            (Original, segment("A", start.wrapping_add(1), start.wrapping_add(1), 100)),
            (Reply, segment("A", start.wrapping_add(1), start.wrapping_add(101), 100)),
            (Original, segment("A", start.wrapping_add(101), start.wrapping_add(101), 0)),
        ],
    );
    assert_eq!(states[4], Some(State::Established));
}
