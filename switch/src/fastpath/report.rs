//! What the kernel tells of segments that it has forwarded, because they change a connection's state.

use nat::packet::tcp_flag;
use nat::{ConnectionId, Direction, TcpSegment};

/// Bytes of the longest TCP header.
const HEADER: u16 = 60;
/// Of those, both ports.
const PORTS: u16 = 4;

/// What the kernel tells of a segment that it has forwarded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Report {
    pub(super) connection: ConnectionId,
    pub(super) direction: Direction,
    pub(super) what: What,
}

/// What there is to tell.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum What {
    /// It was the answer to a SYN: the whole segment, but for its ports.
    Answer(TcpSegment),
    /// It had a FIN; the sequence number after it.
    Fin(u32),
}

impl Report {
    /// Bytes of a report: connection (8), direction and number (4 each), and the TCP header from its sequence number on.
    pub(super) const SIZE: u16 = 16 + HEADER - PORTS;

    pub(super) fn parse(report: [u8; Self::SIZE as usize]) -> Self {
        let [a, b, c, d, e, f, g, h, i, j, k, l, m, n, o, p, rest @ ..] = report;
        let mut header = [0; HEADER as usize];
        header[PORTS as usize..].copy_from_slice(&rest);
        let number = u32::from_ne_bytes([m, n, o, p]);
        let segment = TcpSegment::parse(&header);
        // What an answer carries is told by the numbers around it; the SYN has one, too.
        let payload = number.wrapping_sub(segment.sequence).wrapping_sub(1);
        let segment = TcpSegment { payload, ..segment };
        let what = if segment.has(tcp_flag::SYN) { What::Answer(segment) } else { What::Fin(number) };
        let direction = if [i, j, k, l] == [0; 4] { Direction::Original } else { Direction::Reply };
        let connection = ConnectionId::from_bits(u64::from_ne_bytes([a, b, c, d, e, f, g, h]));
        Self { connection, direction, what }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A report of a segment with these flags and a window scale of 7, which ends before the number 511.
    fn told(flags: u8) -> Report {
        let about =
            [&(7_u64 << 32 | 8).to_ne_bytes()[..], &1_u32.to_ne_bytes(), &511_u32.to_ne_bytes()].concat();
        let numbers =
            [&500_u32.to_be_bytes()[..], &101_u32.to_be_bytes(), &[6 << 4, flags, 1, 0, 9, 9, 0, 0]].concat();
        let mut report = [about, numbers, vec![1, 3, 3, 7]].concat();
        report.resize(Report::SIZE.into(), 0);
        Report::parse(report.try_into().unwrap())
    }

    #[test]
    fn a_fin_is_told_by_its_number_and_an_answer_as_it_was() {
        let fin = told(tcp_flag::FIN | tcp_flag::ACK);
        assert_eq!((fin.connection, fin.direction), (ConnectionId::from_bits(7 << 32 | 8), Direction::Reply));
        assert_eq!(fin.what, What::Fin(511));
        let flags = tcp_flag::SYN | tcp_flag::ACK;
        let (sequence, acknowledgment, window, payload) = (500, 101, 256, 10);
        let window_scale = Some(7);
        let answer = TcpSegment { flags, sequence, acknowledgment, window, payload, window_scale };
        assert_eq!(told(flags).what, What::Answer(answer));
    }
}
