//! Frames and requests that nobody would send.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use crate::netns::Namespace;
use crate::noise::{Random, mutate};
use crate::outside::judge;
use crate::raw::{Raw, arp_request, echo4, mac, syn4, udp4};
use crate::site::Site;

/// Of what the watch outside takes for inside addresses, those that no network here has. To swd they are anybody's, and a destination that
/// a mutation made one of them goes outside.
const NOBODYS: [&str; 3] = ["10.0.0.0/8", "172.20.0.0/14", "fd00::/8"];

/// Requests, none of which changes anything even if it is understood.
const REQUESTS: [&[u8]; 7] = [
    b"GET /v1/ports/web HTTP/1.1\r\nHost: swd\r\n\r\n",
    b"GET /v1/connections?container=web&limit=5 HTTP/1.1\r\nHost: swd\r\n\r\n",
    b"POST /v1/networks HTTP/1.1\r\nHost: swd\r\nContent-Length: 24\r\n\r\n{\"name\": \"a b\", \"x\": []}",
    b"POST /v1/publishes HTTP/1.1\r\nHost: swd\r\nContent-Length: 20\r\n\r\n{\"host_port\": 70000}\n",
    b"POST /v1/trace HTTP/1.1\r\nHost: swd\r\nContent-Length: 26\r\n\r\n{\"from\":\"web\",\"packet\":\"\"}",
    b"DELETE /v1/mirrors/port/nobody/nobody HTTP/1.1\r\nHost: swd\r\n\r\n",
    b"PATCH /v1/ports/nobody HTTP/1.1\r\nHost: swd\r\nContent-Length: 9\r\n\r\n{\"a\": []}",
];

/// Sends it, and counts.
#[derive(Debug, Default)]
pub(super) struct Garbage {
    frames: u64,
    requests: u64,
}

impl Garbage {
    /// Frames from a container's `eth0`, to others, the host and the outside.
    #[track_caller]
    pub(super) fn frames(&mut self, random: &mut Random, from: &Namespace, gateway: &str) {
        let own = mac(&from.mac("eth0"));
        let mut raw = Raw::open(from, "eth0");
        let nobodys = NOBODYS.map(|net| net.parse().expect("a network"));
        let frames: Vec<Vec<u8>> = (0..300)
            .map(|_| {
                let to = random.pick(&[[0xff; 6], mac(gateway), [2, 0, 0, 0, 0, 9]]);
                let me = [172, 18, 1, random.byte()];
                let target =
                    random.pick(&[[172, 18, 0, 1], [172, 18, 0, 20], [203, 0, 113, 7], [172, 19, 0, 9]]);
                let payload = random.bytes(40);
                let port = 1024 + u16::from(random.byte());
                let mut frame = match random.below(5) {
                    0 => arp_request(own, me, target),
                    1 => syn4((to, own), (me, port), (target, 9)),
                    2 => udp4((to, own), (me, port), (target, 9), &payload),
                    3 => echo4((to, own), me, target, &payload),
                    _ => random.bytes(60),
                };
                mutate(random, &mut frame);
                frame
            })
            // Shorter ones are none: the socket takes no frame without a header.
            .filter(|frame| (14..1400).contains(&frame.len()) && judge(frame, &nobodys).is_none())
            .collect();
        self.frames += frames.len() as u64;
        raw.send_all(frames.iter().map(Vec::as_slice));
    }

    /// Requests, whole and half ones.
    #[track_caller]
    pub(super) fn requests(&mut self, random: &mut Random, site: &Site) {
        for _ in 0..40 {
            let mut stream = UnixStream::connect(site.socket()).expect("swd listens");
            let mut request = random.pick(&REQUESTS).to_vec();
            // The word that says what is done stays, so that nothing else is done.
            let (word, rest) = request.split_at(request.iter().position(|b| *b == b' ').expect("a blank"));
            let (word, mut rest) = (word.to_vec(), rest.to_vec());
            mutate(random, &mut rest);
            request = [word, rest].concat();
            stream.set_read_timeout(Some(Duration::from_millis(20))).expect("timeout");
            // It may hang up in the middle, and need not answer half a request.
            if stream.write_all(&request).is_ok() && random.one_in(2) {
                let _ = stream.read(&mut [0; 4096]);
            }
            self.requests += 1;
        }
    }

    /// Frames and requests so far.
    pub(super) const fn sent(&self) -> (u64, u64) {
        (self.frames, self.requests)
    }
}
