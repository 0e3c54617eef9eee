//! Clients of the API that mean no good: frames go on meanwhile, and those who ask properly are answered.

use std::io::{self, ErrorKind, Read, Write};
use std::os::unix::net::UnixStream;
use std::thread;

use tests::process::{TIMEOUT, s, wait_until};
use tests::site::{Site, Way};

/// The status line and the body of an answer to these bytes.
fn send(site: &Site, request: &[u8]) -> io::Result<(u16, String)> {
    let mut stream = UnixStream::connect(site.socket())?;
    stream.set_read_timeout(Some(TIMEOUT))?;
    // It may be refused before all of it is sent: the answer is there nonetheless.
    match stream.write_all(request) {
        Err(e) if ![ErrorKind::BrokenPipe, ErrorKind::ConnectionReset].contains(&e.kind()) => return Err(e),
        _ => {}
    }
    let mut answer = Vec::new();
    if let Err(e) = stream.read_to_end(&mut answer)
        && answer.is_empty()
    {
        return Err(e);
    }
    let answer = String::from_utf8_lossy(&answer).into_owned();
    let status = answer.split(' ').nth(1).and_then(|s| s.parse().ok()).unwrap_or(0);
    Ok((status, answer.split_once("\r\n\r\n").map_or(String::new(), |(_, body)| body.to_owned())))
}

fn post(path: &str, body: &[u8]) -> Vec<u8> {
    let head = format!(
        "POST {path} HTTP/1.1\r\nHost: swd\r\nConnection: close\r\nContent-Length: {}\r\n\r\n",
        body.len()
    );
    [head.as_bytes(), body].concat()
}

#[test]
fn abuse_disturbs_nobody_and_is_told_what_is_wrong() {
    let site = Site::new();
    let c1 = site.container("c1", Way::PortAdd, "172.18.0.10");
    let c2 = site.container("c2", Way::Tap, "172.18.0.20");
    c1.ping(&c2);
    site.ctl(&["status"]);
    let rss = site.rss();
    let log = site.file("ping.log");
    let mut ping = c1.ns.start(&["ping", "-n", "-q", "-i0.01", "-c1000", &c2.address], &log);

    // What is wrong is said, as a problem object, and nothing has changed.
    for (request, status, said) in [
        (post("/v1/networks", b"{\"name\": \"\xff\xfe\", \"subnets\": []}"), 400, "urn:swd:invalid"),
        (post("/v1/networks", b"{\"name\": 7, \"subnets\": \"x\"}"), 400, "urn:swd:invalid"),
        (post("/v1/networks", b"{\"name\": \"x\""), 400, "urn:swd:invalid"),
        (post("/v1/networks", &[b'['; 60_000]), 400, "urn:swd:invalid"),
        (post("/v1/publishes", b"{\"host_port\": 70000}"), 400, "urn:swd:invalid"),
        (post("/v1/networks", &vec![b' '; 100 << 20]), 413, "urn:swd:"),
        (
            b"GET /v1/ports/%ff%00 HTTP/1.1\r\nHost: swd\r\nConnection: close\r\n\r\n".to_vec(),
            400,
            "Invalid UTF-8",
        ),
        (b"BREW /v1/status HTTP/1.1\r\nHost: swd\r\nConnection: close\r\n\r\n".to_vec(), 405, "urn:swd:"),
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n".to_vec(), 400, ""),
        ([b"GET /".as_slice(), &[b'a'; 200_000], b" HTTP/1.1\r\n\r\n"].concat(), 414, ""),
    ] {
        let (got, body) = send(&site, &request).expect("an answer");
        let start = String::from_utf8_lossy(&request[..request.len().min(90)]).into_owned();
        let alike = got == status || (status == 414 && got == 431);
        assert!(alike && body.contains(said), "{start:?}: {got} {body}");
    }
    assert_eq!(site.rows(&["network", "ls"]).len(), 1);

    // As many connections as there are places for, and more, that say nothing or only half of it.
    let idle: Vec<UnixStream> = (0..1000)
        .filter_map(|n| {
            let mut stream = UnixStream::connect(site.socket()).ok()?;
            stream.set_nonblocking(true).ok()?;
            if n % 2 == 0 {
                let _ = stream.write(b"GET /v1/status HTTP/1.1\r\nHos");
            }
            Some(stream)
        })
        .collect();
    assert!(idle.len() >= 512, "{} connected", idle.len());
    wait_until("somebody who asks properly is answered", s(30), || {
        site.try_ctl(&["status"]).status.success()
    });
    drop(idle);

    // As many requests as four clients can send.
    thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                let mut stream = UnixStream::connect(site.socket()).expect("connect");
                let mut buffer = vec![0; 1 << 16];
                for _ in 0..3000 {
                    stream.write_all(b"GET /v1/networks HTTP/1.1\r\nHost: swd\r\n\r\n").expect("send");
                    let n = stream.read(&mut buffer).expect("an answer");
                    assert!(buffer[..n].starts_with(b"HTTP/1.1 200"));
                }
            });
        }
    });

    assert_eq!(ping.wait(s(60)), Some(0), "{}", ping.log());
    assert!(ping.log().contains(" 0% packet loss"), "{}", ping.log());
    let grown = site.rss().saturating_sub(rss) >> 20;
    assert!(grown < 32, "swd's memory grew by {grown} MiB");
}
