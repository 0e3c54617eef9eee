//! The relay against a real kernel: clients on the host itself reach a container by a port that is swd's.

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, UdpSocket};
use std::sync::Mutex;
use std::thread;
use std::time::Instant;

use switch::daemon::portguard::Protocol::{Tcp, Udp};
use switch::daemon::portguard::Purpose::Publish;
use tests::guarded::{Guarded, LOCAL, each_mechanism, echo, free, reset, serve, web};
use tests::process::{ms, s, wait_until};

#[test]
fn curl_on_the_host_reaches_the_container_by_every_address() {
    each_mechanism(|mechanism| {
        let site = Guarded::new();
        let (mut guards, relay) = site.start(Some(mechanism));
        for port in [15_000, 16_001] {
            web(&site.container, &format!("[::]:{port}"));
        }
        guards.own(Tcp, 5000..=5000, Publish).expect("own");
        guards.own(Tcp, 6000..=6100, Publish).expect("own");
        for local in LOCAL.iter().chain(&["[fd30::1]"]) {
            for port in [5000, 6001] {
                let url = format!("http://{local}:{port}/");
                let got = site.host.run(&["curl", "-sS", "-m5", "-g", &url]).ok().stdout;
                let gateway = if local.starts_with('[') { "fd30::1" } else { "172.30.0.1" };
                assert!(got.contains(gateway), "{url}: {got}");
            }
        }
        // The container does not listen there: a reset at once.
        let start = Instant::now();
        reset(site.dial("127.0.0.1:6002"));
        assert!(start.elapsed() < ms(500));
        wait_until("nothing is open", s(2), || relay.counts().open == 0);
        assert_eq!(relay.counts().refused, 1);
        // Released: refused by the stack.
        guards.release(Tcp, 5000..=5000, Publish).expect("release");
        free(&site.host, "127.0.0.1:5000");
    });
}

#[test]
fn each_half_of_a_connection_ends_by_itself() {
    let site = Guarded::new();
    let (mut guards, relay) = site.start(None);
    guards.own(Tcp, 5000..=5001, Publish).expect("own");
    // Reads to the end, then answers with what it got; 3 MB are more than all buffers on the way.
    serve(site.container.tcp_listen("0.0.0.0:15000"), |mut stream| {
        let mut all = Vec::new();
        stream.read_to_end(&mut all).expect("read");
        thread::sleep(ms(100));
        stream.write_all(&all).expect("write");
    });
    let sent: Vec<u8> = (0..3_000_003_u32).map(|n| n.wrapping_mul(0x9e37_79b9).to_be_bytes()[0]).collect();
    let mut stream = site.dial("127.0.0.1:5000").expect("connect");
    stream.set_read_timeout(Some(s(10))).expect("timeout");
    stream.write_all(&sent).expect("write");
    stream.shutdown(Shutdown::Write).expect("shutdown");
    let mut got = Vec::new();
    stream.read_to_end(&mut got).expect("read");
    assert!(got == sent, "{} bytes", got.len());
    drop(stream);

    // The other way round: the container ends first, and goes on reading.
    let (told, heard) = std::sync::mpsc::channel();
    let told = Mutex::new(told);
    serve(site.container.tcp_listen("0.0.0.0:15001"), move |mut stream| {
        stream.shutdown(Shutdown::Write).expect("shutdown");
        let mut all = Vec::new();
        stream.read_to_end(&mut all).expect("read");
        told.lock().expect("lock").send(all).expect("send");
    });
    let mut stream = site.dial("10.9.0.1:5001").expect("connect");
    assert_eq!(stream.read(&mut [0]).expect("the end"), 0);
    stream.write_all(b"still here").expect("write");
    drop(stream);
    assert_eq!(heard.recv_timeout(s(5)).expect("what the container got"), b"still here");
    wait_until("nothing is open", s(2), || relay.counts().open == 0);
}

#[test]
fn a_reset_travels_and_a_full_receiver_stops_the_sender() {
    let site = Guarded::new();
    let (mut guards, relay) = site.start(None);
    guards.own(Tcp, 5000..=5000, Publish).expect("own");
    let listener = site.container.tcp_listen("0.0.0.0:15000");
    let mut stream = site.dial("127.0.0.1:5000").expect("connect");
    let (mut accepted, _) = listener.accept().expect("accept");
    // Nobody reads: the sender is stopped after what the buffers hold.
    stream.set_write_timeout(Some(ms(300))).expect("timeout");
    let chunk = vec![7; 1 << 16];
    let mut sent = 0;
    while sent < 200_000_000 {
        match stream.write(&chunk) {
            Ok(n) => sent += n,
            Err(_) => break,
        }
    }
    assert!(sent < 100_000_000, "{sent} bytes and no end");
    let mut buffer = vec![0; 1 << 16];
    let mut got = 0;
    accepted.set_read_timeout(Some(s(5))).expect("timeout");
    while got < sent {
        let n = accepted.read(&mut buffer).expect("read");
        assert!(n > 0 && buffer[..n].iter().all(|b| *b == 7));
        got += n;
    }
    assert_eq!(relay.counts().open, 1);
    relay.end(Tcp, 5000..=5000);
    assert!(accepted.read(&mut buffer).is_err());
    assert!(stream.read(&mut buffer).is_err());
    wait_until("nothing is open", s(2), || relay.counts().open == 0);
}

#[test]
fn a_connection_too_many_is_reset_and_the_others_stay() {
    let site = Guarded::new();
    let (mut guards, relay) = site.start(None);
    guards.own(Tcp, 5000..=5000, Publish).expect("own");
    let listener = site.container.tcp_listen("0.0.0.0:15000");
    let mut open: Vec<_> = (0..50).map(|_| site.dial("127.0.0.1:5000").expect("connect")).collect();
    let mut held: Vec<_> = (0..50).map(|_| listener.accept().expect("accept").0).collect();
    reset(site.dial("127.0.0.1:5000"));
    assert_eq!((relay.counts().overflowed, relay.counts().open), (1, 50));
    for end in &mut held {
        end.write_all(b"x").expect("write");
    }
    for stream in &mut open {
        stream.set_read_timeout(Some(s(2))).expect("timeout");
        stream.read_exact(&mut [0]).expect("read");
    }
    relay.end_target("172.30.0.2".parse().expect("address"));
    wait_until("nothing is open", s(2), || relay.counts().open == 0);
}

#[test]
fn datagrams_are_answered_from_the_address_that_was_dialled() {
    each_mechanism(|mechanism| {
        let site = Guarded::new();
        let (mut guards, relay) = site.start(Some(mechanism));
        for port in [15_000, 16_001] {
            echo(&site.container, &format!("[::]:{port}"));
        }
        guards.own(Udp, 5000..=5000, Publish).expect("own");
        guards.own(Udp, 6000..=6010, Publish).expect("own");
        let mut sessions = 0;
        for local in LOCAL {
            for port in [5000, 6001] {
                let dialled: SocketAddr = format!("{local}:{port}").parse().expect("address");
                // Not connected: it would take an answer from anywhere.
                let client = site.host.udp(if dialled.is_ipv6() { "[::]:0" } else { "0.0.0.0:0" });
                client.set_read_timeout(Some(s(2))).expect("timeout");
                for length in [0, 1, 1400, 40_000] {
                    client.send_to(&vec![9; length], dialled).expect("send");
                    let mut buffer = vec![0; 1 << 16];
                    let (n, from) = client.recv_from(&mut buffer).expect("an answer");
                    assert_eq!((n, from), (length, dialled));
                }
                sessions += 1;
                assert_eq!(relay.counts().open, sessions);
            }
        }
        // The container's port is closed: nothing comes, and it goes on when the port opens.
        let client = site.host.udp("0.0.0.0:0");
        client.connect("127.0.0.1:6002").expect("connect");
        client.set_read_timeout(Some(s(1))).expect("timeout");
        client.send(b"too early").expect("send");
        thread::sleep(ms(50));
        echo(&site.container, "0.0.0.0:16002");
        client.send(b"now").expect("send");
        let mut buffer = [0; 20];
        assert_eq!(client.recv(&mut buffer).expect("an answer"), 3);
        relay.end(Udp, 5000..=6010);
        wait_until("nothing is open", s(2), || relay.counts().open == 0);
    });
}

#[test]
fn old_sessions_make_room_for_new_ones() {
    let site = Guarded::new();
    let (mut guards, relay) = site.start(None);
    echo(&site.container, "0.0.0.0:15000");
    guards.own(Udp, 5000..=5000, Publish).expect("own");
    let clients: Vec<UdpSocket> = (0..80).map(|_| site.host.udp("127.0.0.1:0")).collect();
    for client in &clients {
        client.connect("127.0.0.1:5000").expect("connect");
        client.set_read_timeout(Some(s(2))).expect("timeout");
        client.send(b"x").expect("send");
        client.recv(&mut [0; 4]).expect("an answer");
    }
    let counts = relay.counts();
    assert_eq!((counts.open, counts.evicted), (50, 30));
}
