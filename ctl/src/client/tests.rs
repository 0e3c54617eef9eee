//! The client against servers in this process that speak real HTTP over real Unix sockets.

use std::{
    convert::Infallible,
    os::fd::AsRawFd,
    sync::{Arc, Mutex},
};

use hyper::{server::conn::http1 as server, service::service_fn};
use nix::sys::socket::{self, AddressFamily, Backlog, SockFlag, SockType, UnixAddr};
use serde_json::json;
use tempfile::TempDir;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::UnixListener,
};

use super::*;

/// A folder with a socket in it, and a client of that socket.
fn lab() -> (TempDir, UnixListener, Client) {
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("swd.sock");
    let listener = UnixListener::bind(&socket).unwrap();
    (dir, listener, Client::new(socket).with_timeout(Duration::from_secs(5)))
}

/// `METHOD path body` of each request a server has seen.
type Seen = Arc<Mutex<Vec<String>>>;

/// Serves every request with one answer.
fn serve(listener: UnixListener, status: u16, content_type: &'static str, answer: String) -> Seen {
    let seen = Seen::default();
    let log = Arc::clone(&seen);
    tokio::spawn(async move {
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            let (log, answer) = (Arc::clone(&log), answer.clone());
            let service = service_fn(move |request: Request<Incoming>| {
                let (log, answer) = (Arc::clone(&log), answer.clone());
                async move {
                    let (head, body) = request.into_parts();
                    assert_eq!(head.headers[header::HOST], "swd");
                    let body = body.collect().await.unwrap().to_bytes();
                    let line = format!("{} {} {}", head.method, head.uri, String::from_utf8_lossy(&body));
                    log.lock().unwrap().push(line.trim_end().to_owned());
                    let response = Response::builder()
                        .status(status)
                        .header(header::CONTENT_TYPE, content_type)
                        .body(Full::new(Bytes::from(answer)));
                    Ok::<_, Infallible>(response.unwrap())
                }
            });
            tokio::spawn(server::Builder::new().serve_connection(TokioIo::new(stream), service));
        }
    });
    seen
}

/// Reads one request's head, sends `answer` as it is, and closes.
fn serve_raw(listener: UnixListener, answer: &'static [u8]) {
    tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        let mut head = [0; 4096];
        assert!(stream.read(&mut head).await.unwrap() > 0);
        stream.write_all(answer).await.unwrap();
    });
}

fn drop_count() -> serde_json::Value {
    json!({"reason": "too-short", "count": 3, "help": "A frame below 14 bytes.", "a_later_key": true})
}

#[tokio::test]
async fn a_listing_is_decoded_and_unknown_keys_are_ignored() {
    let (_dir, listener, client) = lab();
    let seen = serve(listener, 200, "application/json", json!([drop_count()]).to_string());
    let drops = client.drops().await.unwrap();
    assert_eq!(
        drops,
        [DropCount { reason: "too-short".into(), count: 3, help: "A frame below 14 bytes.".into() }]
    );
    assert_eq!(*seen.lock().unwrap(), ["GET /v1/drops"]);
}

#[tokio::test]
async fn a_body_is_sent_as_json() {
    let (_dir, listener, client) = lab();
    let seen = serve(listener, 200, "application/json", r#"{"flushed": 7}"#.into());
    let what = FdbFlush { port: Some("web".into()), network: None };
    assert_eq!(client.flush_fdb(&what).await.unwrap().flushed, 7);
    assert_eq!(*seen.lock().unwrap(), [r#"POST /v1/fdb/flush {"port":"web","network":null}"#]);
}

#[tokio::test]
async fn deleting_takes_no_notice_of_the_answers_body() {
    let (_dir, listener, client) = lab();
    let seen = serve(listener, 204, "application/json", String::new());
    client.remove_fdb("default", "02:00:00:00:00:01").await.unwrap();
    client.detach("a/b c").await.unwrap();
    assert_eq!(
        *seen.lock().unwrap(),
        ["DELETE /v1/fdb/default/02%3A00%3A00%3A00%3A00%3A01", "DELETE /v1/attach/a%2Fb%20c"]
    );
}

#[tokio::test]
async fn a_problem_is_told_as_it_is() {
    let (_dir, listener, client) = lab();
    let problem = json!({"type": "urn:swd:not-found", "title": "Not Found", "status": 404,
        "detail": "no port 'web'; 'swctl port ls' lists them"});
    serve(listener, 404, "application/problem+json", problem.to_string());
    let error = client.port("web").await.unwrap_err();
    assert_eq!(error.to_string(), "no port 'web'; 'swctl port ls' lists them");
    assert!(error.is_not_found());
}

#[tokio::test]
async fn an_error_status_without_a_problem() {
    let (_dir, listener, client) = lab();
    serve(listener, 502, "text/html", "<h1>Bad Gateway</h1>".into());
    let error = client.status().await.unwrap_err();
    assert!(matches!(error, ClientError::Status { status: StatusCode::BAD_GATEWAY, .. }), "{error}");
    assert!(!error.is_not_found());
}

#[tokio::test]
async fn json_of_another_shape() {
    let (_dir, listener, client) = lab();
    serve(listener, 200, "application/json", r#"{"ready": 1}"#.into());
    assert!(matches!(client.status().await, Err(ClientError::Decode { .. })));
}

#[tokio::test]
async fn no_socket() {
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("swd.sock");
    let error = Client::new(&socket).status().await.unwrap_err();
    assert_eq!(
        error.to_string(),
        format!(
            "cannot reach swd at {}: no such file; is it running? start it with 'swd', or name the socket with \
             --socket",
            socket.display()
        )
    );
}

#[tokio::test]
async fn a_socket_nobody_listens_at() {
    let (_dir, listener, client) = lab();
    drop(listener);
    assert!(matches!(client.status().await, Err(ClientError::NotListening { .. })));
}

#[test]
fn a_socket_of_others() {
    let source = io::Error::from(io::ErrorKind::PermissionDenied);
    let error = ClientError::connect(Path::new("/run/swd/swd.sock"), source);
    assert!(error.to_string().contains("permission denied; run as root"), "{error}");
}

#[tokio::test]
async fn garbage_for_an_answer() {
    let (_dir, listener, client) = lab();
    serve_raw(listener, b"SSH-2.0-OpenSSH_9.9\r\n");
    let error = client.status().await.unwrap_err();
    assert!(matches!(error, ClientError::Protocol { .. }), "{error:?}");
}

#[tokio::test]
async fn a_server_that_closes_without_an_answer() {
    let (_dir, listener, client) = lab();
    serve_raw(listener, b"");
    let error = client.status().await.unwrap_err();
    assert!(matches!(error, ClientError::Closed { .. }), "{error:?}");
}

#[tokio::test]
async fn a_server_that_closes_within_the_answer() {
    let (_dir, listener, client) = lab();
    serve_raw(listener, b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n[");
    let error = client.drops().await.unwrap_err();
    assert!(matches!(error, ClientError::Closed { .. }), "{error:?}");
}

#[tokio::test]
async fn a_server_that_hangs() {
    // Accepted by the kernel, never by the server.
    let (_dir, _listener, client) = lab();
    let error = client.with_timeout(Duration::from_millis(50)).status().await.unwrap_err();
    assert!(matches!(error, ClientError::Timeout { .. }), "{error:?}");
    assert!(error.to_string().contains("did not answer within 50ms"), "{error}");
}

#[tokio::test]
async fn a_full_backlog_is_waited_for() {
    let dir = tempfile::tempdir().unwrap();
    let client = Client::new(dir.path().join("swd.sock"));
    let socket =
        socket::socket(AddressFamily::Unix, SockType::Stream, SockFlag::SOCK_NONBLOCK, None).unwrap();
    socket::bind(socket.as_raw_fd(), &UnixAddr::new(&client.socket).unwrap()).unwrap();
    socket::listen(&socket, Backlog::new(1).unwrap()).unwrap();
    let listener = UnixListener::from_std(socket.into()).unwrap();
    let mut waiting = Vec::new();
    while let Ok(stream) = UnixStream::connect(&client.socket).await {
        waiting.push(stream);
    }
    assert!(waiting.len() < 10);

    let request = tokio::spawn(async move { client.drops().await });
    time::sleep(RETRY_PAUSE * 3).await;
    drop(waiting);
    serve(listener, 200, "application/json", "[]".into());
    assert_eq!(request.await.unwrap().unwrap(), []);
}

#[tokio::test]
async fn events_come_in_any_pieces() {
    let (_dir, listener, client) = lab();
    let line = r#"{"time":"2026-11-21T20:00:00Z","kind":"port-up","subject":"web","message":"up"}"#;
    let (first, second) = line.split_at(20);
    // Half an event; its other half, an empty line, a whole one and half another; the rest; the end.
    let pieces = [first.to_owned(), format!("{second}\n\n{line}\n{first}"), format!("{second}\n")];
    tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        stream.write_all(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n").await.unwrap();
        for piece in pieces {
            let chunk = format!("{:x}\r\n{piece}\r\n", piece.len());
            stream.write_all(chunk.as_bytes()).await.unwrap();
            time::sleep(Duration::from_millis(5)).await;
        }
        stream.write_all(b"0\r\n\r\n").await.unwrap();
    });
    let mut events = client.events().await.unwrap();
    for _ in 0..3 {
        let event = events.next().await.unwrap().unwrap();
        assert_eq!((event.kind.as_str(), event.subject.as_str()), ("port-up", "web"));
    }
    assert_eq!(events.next().await.unwrap(), None);
}

#[tokio::test]
async fn an_event_that_is_none() {
    let (_dir, listener, client) = lab();
    serve(listener, 200, "application/json", "hello\n".into());
    let mut events = client.events().await.unwrap();
    assert!(matches!(events.next().await, Err(ClientError::Decode { .. })));
}

#[tokio::test]
async fn an_event_stream_that_is_cut() {
    let (_dir, listener, client) = lab();
    serve_raw(listener, b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\n{\"a");
    let mut events = client.events().await.unwrap();
    assert!(matches!(events.next().await, Err(ClientError::Closed { .. })));
}

#[test]
fn segments_are_encoded() {
    for (plain, encoded) in [
        ("web-1.a_b~", "web-1.a_b~"),
        ("a/b", "a%2Fb"),
        ("a b?c#d%", "a%20b%3Fc%23d%25"),
        ("é", "%C3%A9"),
        ("", ""),
    ] {
        assert_eq!(encode(plain), encoded);
    }
}
