//! Bytes that the receiver can check without having them: a stream that position alone determines, and datagrams that
//! their number alone determines.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream, UdpSocket};
use std::thread;
use std::time::{Duration, Instant};

const CHUNK: usize = 1 << 16;

/// Fills a buffer with what belongs at `position`, which must be a multiple of 8.
fn fill(seed: u64, position: u64, buffer: &mut [u8]) {
    for (n, word) in (position / 8..).zip(buffer.chunks_mut(8)) {
        // splitmix64: every word depends on its position only.
        let mut z = seed.wrapping_add((n + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15));
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        let bytes = (z ^ (z >> 31)).to_le_bytes();
        word.copy_from_slice(&bytes[..word.len()]);
    }
}

/// Sends `length` bytes over a connection to `listener` and checks each of them at the other end.
///
/// # Panics
/// When a byte is wrong or missing, or nothing moves for 20 seconds.
#[track_caller]
pub fn tcp_is_identical(connection: TcpStream, listener: &TcpListener, length: u64) {
    let patience = Some(Duration::from_secs(20));
    connection.set_write_timeout(patience).expect("timeout");
    thread::scope(|scope| {
        scope.spawn(move || {
            let mut connection = connection;
            let mut buffer = vec![0; CHUNK];
            let mut position = 0;
            while position < length {
                fill(1, position, &mut buffer);
                let part = usize::try_from(length - position).map_or(CHUNK, |left| left.min(CHUNK));
                connection.write_all(&buffer[..part]).expect("send");
                position += part as u64;
            }
        });
        let (mut received, _) = listener.accept().expect("accept");
        received.set_read_timeout(patience).expect("timeout");
        let (mut got, mut want) = (vec![0; CHUNK], vec![0; CHUNK]);
        let mut position = 0;
        while position < length {
            let part = usize::try_from(length - position).map_or(CHUNK, |left| left.min(CHUNK));
            received.read_exact(&mut got[..part]).unwrap_or_else(|e| panic!("at byte {position}: {e}"));
            fill(1, position, &mut want);
            assert!(got[..part] == want[..part], "not what was sent, in the 64 KiB from byte {position}");
            position += part as u64;
        }
        let more = received.read(&mut got).expect("end of the stream");
        assert_eq!(more, 0, "more bytes than were sent");
    });
}

/// Sends `length` bytes over a connection that is open already, from one of its ends to the other, and checks each of them there.
///
/// # Panics
/// When a byte is wrong or missing, or nothing moves for 20 seconds.
#[track_caller]
pub fn bytes_are_identical(from: &TcpStream, to: &TcpStream, seed: u64, length: u64) {
    let patience = Some(Duration::from_secs(20));
    from.set_write_timeout(patience).expect("timeout");
    to.set_read_timeout(patience).expect("timeout");
    let part = |position: u64| usize::try_from(length - position).map_or(CHUNK, |left| left.min(CHUNK));
    thread::scope(|scope| {
        scope.spawn(move || {
            let (mut from, mut buffer, mut position) = (from, vec![0; CHUNK], 0);
            while position < length {
                fill(seed, position, &mut buffer);
                from.write_all(&buffer[..part(position)]).expect("send");
                position += part(position) as u64;
            }
        });
        let (mut to, mut got, mut want, mut position) = (to, vec![0; CHUNK], vec![0; CHUNK], 0);
        while position < length {
            let part = part(position);
            to.read_exact(&mut got[..part]).unwrap_or_else(|e| panic!("at byte {position}: {e}"));
            fill(seed, position, &mut want);
            assert!(got[..part] == want[..part], "not what was sent, in the 64 KiB from byte {position}");
            position += part as u64;
        }
    });
}

/// The length of datagram `n`: mixed, from 8 bytes to `max`.
fn datagram_length(n: u64, max: usize) -> usize {
    let mut bytes = [0; 8];
    fill(2, n * 8, &mut bytes);
    8 + usize::from(u16::from_le_bytes([bytes[0], bytes[1]])) % (max - 7)
}

fn datagram(n: u64, max: usize) -> Vec<u8> {
    let mut bytes = vec![0; datagram_length(n, max)];
    fill(n, 0, &mut bytes);
    bytes[..8].copy_from_slice(&n.to_be_bytes());
    bytes
}

/// What it took to bring datagrams across.
#[derive(Clone, Copy, Debug)]
pub struct Datagrams {
    /// Datagrams that had to be sent again.
    pub again: u64,
}

/// Sends `count` datagrams of mixed sizes up to `max` bytes, each of which must arrive, and byte-identical. At most a few
/// are under way at a time (the receiver acknowledges), so a full buffer is not taken for corruption; those that are lost
/// are sent again and counted.
///
/// # Panics
/// When one arrives with other bytes, or not at all.
#[track_caller]
pub fn udp_is_identical(sender: &UdpSocket, receiver: &UdpSocket, count: u64, max: usize) -> Datagrams {
    const WINDOW: u64 = 16;
    sender.set_read_timeout(Some(Duration::from_millis(500))).expect("timeout");
    receiver.set_read_timeout(Some(Duration::from_millis(500))).expect("timeout");
    let end = Instant::now() + Duration::from_secs(150);
    thread::scope(|scope| {
        let checker = scope.spawn(|| {
            let mut arrived = vec![false; usize::try_from(count).expect("fits")];
            let mut left = count;
            let mut buffer = vec![0; 1 << 16];
            while left > 0 {
                assert!(Instant::now() < end, "{left} of {count} datagrams did not arrive in time");
                let Ok((length, from)) = receiver.recv_from(&mut buffer) else { continue };
                let got = &buffer[..length];
                let number = got.first_chunk().map(|n| u64::from_be_bytes(*n)).expect("8 bytes and more");
                assert!(
                    number < count && got == datagram(number, max),
                    "datagram {number} is not what was sent"
                );
                let seen = &mut arrived[usize::try_from(number).expect("fits")];
                if !*seen {
                    *seen = true;
                    left -= 1;
                }
                drop(receiver.send_to(&number.to_be_bytes(), from));
            }
        });
        let mut again = 0;
        let mut next = 0;
        let mut open: Vec<(u64, Instant)> = Vec::new();
        while (next < count || !open.is_empty()) && !checker.is_finished() {
            while next < count && (open.len() as u64) < WINDOW {
                sender.send(&datagram(next, max)).expect("send");
                open.push((next, Instant::now()));
                next += 1;
            }
            let mut ack = [0; 8];
            if let Ok(8) = sender.recv(&mut ack) {
                let number = u64::from_be_bytes(ack);
                open.retain(|(n, _)| *n != number);
            }
            for (number, sent) in &mut open {
                if sent.elapsed() > Duration::from_millis(500) {
                    sender.send(&datagram(*number, max)).expect("send");
                    *sent = Instant::now();
                    again += 1;
                }
            }
        }
        checker.join().unwrap_or_else(|e| std::panic::resume_unwind(e));
        Datagrams { again }
    })
}

/// An echo over a new TCP connection: does what is sent come back?
pub fn tcp_echoes(connection: std::io::Result<TcpStream>, listener: &TcpListener) -> bool {
    let Ok(mut connection) = connection else { return false };
    let Ok((mut accepted, _)) = listener.accept() else { return false };
    let mut buffer = [0; 5];
    connection.write_all(b"hello").is_ok()
        && accepted.read_exact(&mut buffer).is_ok()
        && accepted.write_all(&buffer).is_ok()
        && connection.read_exact(&mut buffer).is_ok()
        && &buffer == b"hello"
}
