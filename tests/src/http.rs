//! HTTP on connections that stay.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::thread;

use crate::netns::Namespace;
use crate::process::s;

/// Answers requests on connections that stay, as HTTP servers do.
///
/// # Panics
/// When there is no thread to be had.
pub fn serve(listener: TcpListener) {
    thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            thread::Builder::new()
                .stack_size(64 << 10)
                .spawn(move || {
                    let mut request = Vec::new();
                    let mut buffer = [0; 512];
                    while let Ok(n @ 1..) = stream.read(&mut buffer) {
                        request.extend_from_slice(&buffer[..n]);
                        while let Some(end) = request.windows(4).position(|w| w == b"\r\n\r\n") {
                            let line = String::from_utf8_lossy(&request[..end]).into_owned();
                            request.drain(..end + 4);
                            let path = line.split(' ').nth(1).unwrap_or_default().to_owned();
                            let answer =
                                format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{path}", path.len());
                            if stream.write_all(answer.as_bytes()).is_err() {
                                return;
                            }
                        }
                    }
                })
                .expect("a thread");
        }
    });
}

/// A connection that stays, and the requests on it.
#[derive(Debug)]
pub struct Http(TcpStream);

impl Http {
    /// Connects.
    ///
    /// # Panics
    /// When that fails.
    #[track_caller]
    pub fn open(from: &Namespace, to: &str) -> Self {
        let stream = from.tcp_connect(to, s(10)).unwrap_or_else(|e| panic!("{to}: {e}"));
        stream.set_read_timeout(Some(s(20))).expect("timeout");
        Self(stream)
    }

    /// Asks, without waiting for the answer.
    ///
    /// # Panics
    /// When the connection has ended.
    #[track_caller]
    pub fn ask(&mut self, what: &str) {
        write!(self.0, "GET /{what} HTTP/1.1\r\nHost: x\r\n\r\n").expect("the connection takes a request");
    }

    /// The answer to what was asked last must come.
    ///
    /// # Panics
    /// When it does not.
    #[track_caller]
    pub fn answered(&mut self, what: &str) {
        let end = format!("\r\n\r\n/{what}");
        let mut got = Vec::new();
        let mut buffer = [0; 512];
        while !got.ends_with(end.as_bytes()) {
            let n = self.0.read(&mut buffer).unwrap_or_else(|e| panic!("no answer for {what}: {e}"));
            assert!(n > 0, "the connection ended before {what} was answered");
            got.extend_from_slice(&buffer[..n]);
        }
    }
}
