//! A client of swd's API: HTTP/1.1 with JSON bodies over a Unix socket.
//!
//! Each request has a connection of its own: swd answers on the same machine, so a connection costs some
//! microseconds, and a client that keeps none has no stale one after swd was restarted. A request, connecting
//! included, ends within the client's timeout; only the streams ([`Lines`], [`Chunks`]) have none, since they wait for things to
//! happen. Answers are bounded by [`MAX_ANSWER`], lines of a stream by [`MAX_LINE`]. Everything runs in the caller's tokio runtime.
//!
//! ```no_run
//! use ctl::{api::DEFAULT_SOCKET, client::{Client, ClientError}};
//!
//! # async fn show() -> Result<(), ClientError> {
//! for port in Client::new(DEFAULT_SOCKET).ports().await? {
//!     println!("{}: {} frames received", port.name, port.rx_packets);
//! }
//! # Ok(())
//! # }
//! ```

mod handover;
mod lines;

use std::{
    io,
    path::{Path, PathBuf},
    time::Duration,
};

use http_body_util::{BodyExt, Full, Limited};
use hyper::{
    Method, Request, Response, StatusCode,
    body::{Bytes, Incoming},
    client::conn::http1,
    header,
};
use hyper_util::rt::TokioIo;
use serde::{Serialize, de::DeserializeOwned};
use thiserror::Error;
use tokio::{net::UnixStream, time};

pub use lines::Lines;

use crate::api::{
    AttachSpec, CAPTURE_ID, CaptureSpec, Connection, ConnectionFilter, Count, DropCount, Event, FdbEntry,
    FdbFlush, FdbSpec, Flushed, Inspected, LiveTraceSpec, LiveTraced, Mirror, MirrorKind, MirrorState,
    Network, NetworkSpec, Port, PortChange, PortSpec, Problem, PublishSpec, Published, Rule, Status,
    TraceSpec, Traced,
};

/// How long a request may take unless [`Client::with_timeout`] says otherwise.
///
/// Attaching a container on a busy machine takes well below a second; a daemon that needs this long hangs.
pub const DEFAULT_TIMEOUT: Duration = Duration::from_secs(30);
/// Longest answer in bytes: some hundred thousand FDB entries.
pub const MAX_ANSWER: usize = 64 << 20;
/// Longest line of a stream in bytes.
pub const MAX_LINE: usize = 1 << 20;

/// Pause before connecting again while swd's backlog is full.
const RETRY_PAUSE: Duration = Duration::from_millis(5);

/// Talks to one instance of swd.
#[derive(Clone, Debug)]
pub struct Client {
    socket: PathBuf,
    timeout: Duration,
}

impl Client {
    /// A client of the instance that listens at `socket`. Does not connect yet.
    pub fn new(socket: impl Into<PathBuf>) -> Self {
        Self { socket: socket.into(), timeout: DEFAULT_TIMEOUT }
    }

    /// The same with another timeout for each request.
    #[must_use]
    pub fn with_timeout(self, timeout: Duration) -> Self {
        Self { timeout, ..self }
    }

    /// `GET /v1/status`: is it up, and what does it hold.
    pub async fn status(&self) -> Result<Status, ClientError> {
        self.get("/v1/status").await
    }

    /// `GET /v1/networks`: every network.
    pub async fn networks(&self) -> Result<Vec<Network>, ClientError> {
        self.get("/v1/networks").await
    }

    /// `GET /v1/networks/{name}`: one network.
    pub async fn network(&self, name: &str) -> Result<Network, ClientError> {
        self.get(&format!("/v1/networks/{}", encode(name))).await
    }

    /// `POST /v1/networks`: adds a network.
    pub async fn add_network(&self, spec: &NetworkSpec) -> Result<Network, ClientError> {
        self.post("/v1/networks", spec).await
    }

    /// `DELETE /v1/networks/{name}`: removes a network without ports.
    pub async fn remove_network(&self, name: &str) -> Result<(), ClientError> {
        self.delete(&format!("/v1/networks/{}", encode(name))).await
    }

    /// `GET /v1/ports`: every port with its counters.
    pub async fn ports(&self) -> Result<Vec<Port>, ClientError> {
        self.get("/v1/ports").await
    }

    /// `GET /v1/ports/{name}`: one port with its counters.
    pub async fn port(&self, name: &str) -> Result<Port, ClientError> {
        self.get(&format!("/v1/ports/{}", encode(name))).await
    }

    /// `POST /v1/ports`: makes a port of an existing interface.
    pub async fn add_port(&self, spec: &PortSpec) -> Result<Port, ClientError> {
        self.post("/v1/ports", spec).await
    }

    /// `DELETE /v1/ports/{name}`: gives the interface back.
    pub async fn remove_port(&self, name: &str) -> Result<(), ClientError> {
        self.delete(&format!("/v1/ports/{}", encode(name))).await
    }

    /// `POST /v1/attach`: gives a container an interface, an address and a default route.
    pub async fn attach(&self, spec: &AttachSpec) -> Result<Port, ClientError> {
        self.post("/v1/attach", spec).await
    }

    /// `DELETE /v1/attach/{name}`: takes an attached interface away.
    pub async fn detach(&self, name: &str) -> Result<(), ClientError> {
        self.delete(&format!("/v1/attach/{}", encode(name))).await
    }

    /// `GET /v1/fdb`: the forwarding database.
    pub async fn fdb(&self) -> Result<Vec<FdbEntry>, ClientError> {
        self.get("/v1/fdb").await
    }

    /// `POST /v1/fdb`: adds a static entry.
    pub async fn add_fdb(&self, spec: &FdbSpec) -> Result<FdbEntry, ClientError> {
        self.post("/v1/fdb", spec).await
    }

    /// `DELETE /v1/fdb/{network}/{mac}`: removes an entry.
    pub async fn remove_fdb(&self, network: &str, mac: &str) -> Result<(), ClientError> {
        self.delete(&format!("/v1/fdb/{}/{}", encode(network), encode(mac))).await
    }

    /// `POST /v1/fdb/flush`: forgets dynamic entries.
    pub async fn flush_fdb(&self, what: &FdbFlush) -> Result<Flushed, ClientError> {
        self.post("/v1/fdb/flush", what).await
    }

    /// `GET /v1/publishes`: published ports.
    pub async fn published(&self) -> Result<Vec<Published>, ClientError> {
        self.get("/v1/publishes").await
    }

    /// `POST /v1/publishes`: publishes ports.
    pub async fn publish(&self, spec: &PublishSpec) -> Result<Published, ClientError> {
        self.post("/v1/publishes", spec).await
    }

    /// `DELETE /v1/publishes/{name}`: takes a publish back.
    pub async fn unpublish(&self, name: &str) -> Result<(), ClientError> {
        self.delete(&format!("/v1/publishes/{}", encode(name))).await
    }

    /// `GET /v1/connections`: the connection table.
    pub async fn connections(&self, filter: &ConnectionFilter) -> Result<Vec<Connection>, ClientError> {
        self.get(&format!("/v1/connections{}", query(filter))).await
    }

    /// `GET /v1/connections/count`: how many there are.
    pub async fn count_connections(&self, filter: &ConnectionFilter) -> Result<Count, ClientError> {
        self.get(&format!("/v1/connections/count{}", query(filter))).await
    }

    /// `POST /v1/connections/flush`: ends connections.
    pub async fn flush_connections(&self, filter: &ConnectionFilter) -> Result<Flushed, ClientError> {
        self.post("/v1/connections/flush", filter).await
    }

    /// `GET /v1/policy`: the rules, in an order that decides nothing.
    pub async fn policy(&self) -> Result<Vec<Rule>, ClientError> {
        self.get("/v1/policy").await
    }

    /// `POST /v1/policy`: adds a rule, or puts it in the place of one about the same. Tells it as it is kept.
    pub async fn add_rule(&self, rule: &Rule) -> Result<Rule, ClientError> {
        self.post("/v1/policy", rule).await
    }

    /// `DELETE /v1/policy`: removes the rule that is about the same.
    pub async fn remove_rule(&self, rule: &Rule) -> Result<(), ClientError> {
        self.delete(&format!("/v1/policy{}", query(rule))).await
    }

    /// `PATCH /v1/ports/{name}`: changes limits and guard of a port. Tells what it is then.
    pub async fn change_port(&self, name: &str, change: &PortChange) -> Result<Port, ClientError> {
        let body = serde_json::to_vec(change).map_err(ClientError::Encode)?;
        self.decode(&self.request(Method::PATCH, &format!("/v1/ports/{}", encode(name)), body.into()).await?)
    }

    /// `POST /v1/trace`: what would become of packets.
    pub async fn trace(&self, spec: &TraceSpec) -> Result<Vec<Traced>, ClientError> {
        self.post("/v1/trace", spec).await
    }

    /// `GET /v1/trace/live`: what is decided about frames, as they pass.
    pub async fn live_trace(&self, spec: &LiveTraceSpec) -> Result<Lines<LiveTraced>, ClientError> {
        self.lines(&format!("/v1/trace/live{}", query(spec))).await
    }

    /// `GET /v1/capture`: frames as they pass.
    pub async fn capture(&self, spec: &CaptureSpec) -> Result<Chunks, ClientError> {
        let path = format!("/v1/capture{}", query(spec));
        let head = self.bounded(self.exchange(Method::GET, &path, Bytes::new())).await?;
        let id = head.headers().get(CAPTURE_ID).and_then(|id| id.to_str().ok()?.parse().ok());
        Ok(Chunks { socket: self.socket.clone(), id, body: head.into_body() })
    }

    /// `DELETE /v1/capture/{id}`: ends a capture. Its reader gets what was captured so far, and then the end.
    pub async fn end_capture(&self, id: u64) -> Result<(), ClientError> {
        self.delete(&format!("/v1/capture/{id}")).await
    }

    /// `GET /v1/mirrors`: every mirror.
    pub async fn mirrors(&self) -> Result<Vec<MirrorState>, ClientError> {
        self.get("/v1/mirrors").await
    }

    /// `POST /v1/mirrors`: adds a mirror, or changes the ways of one.
    pub async fn add_mirror(&self, mirror: &Mirror) -> Result<Mirror, ClientError> {
        self.post("/v1/mirrors", mirror).await
    }

    /// `DELETE /v1/mirrors/{kind}/{from}/{to}`: removes a mirror.
    pub async fn remove_mirror(&self, kind: MirrorKind, from: &str, to: &str) -> Result<(), ClientError> {
        let kind = match kind {
            MirrorKind::Port => "port",
            MirrorKind::Network => "network",
        };
        self.delete(&format!("/v1/mirrors/{kind}/{}/{}", encode(from), encode(to))).await
    }

    /// `GET /v1/inspect`: what a network namespace looks like from within.
    pub async fn inspect(&self, netns: &str) -> Result<Inspected, ClientError> {
        self.get(&format!("/v1/inspect?netns={}", encode(netns))).await
    }

    /// `GET /v1/drops`: frames dropped, by reason.
    pub async fn drops(&self) -> Result<Vec<DropCount>, ClientError> {
        self.get("/v1/drops").await
    }

    /// `GET /v1/events`: what happens from now on.
    pub async fn events(&self) -> Result<Lines<Event>, ClientError> {
        self.lines("/v1/events").await
    }

    async fn lines<T: DeserializeOwned>(&self, path: &str) -> Result<Lines<T>, ClientError> {
        let head = self.bounded(self.exchange(Method::GET, path, Bytes::new())).await?;
        Ok(Lines::new(self.socket.clone(), head.into_body()))
    }

    async fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T, ClientError> {
        self.decode(&self.request(Method::GET, path, Bytes::new()).await?)
    }

    async fn post<T: DeserializeOwned>(&self, path: &str, body: &impl Serialize) -> Result<T, ClientError> {
        let body = serde_json::to_vec(body).map_err(ClientError::Encode)?;
        self.decode(&self.request(Method::POST, path, body.into()).await?)
    }

    async fn delete(&self, path: &str) -> Result<(), ClientError> {
        self.request(Method::DELETE, path, Bytes::new()).await.map(drop)
    }

    fn decode<T: DeserializeOwned>(&self, body: &[u8]) -> Result<T, ClientError> {
        serde_json::from_slice(body)
            .map_err(|source| ClientError::Decode { socket: self.socket.clone(), source })
    }

    async fn request(&self, method: Method, path: &str, body: Bytes) -> Result<Bytes, ClientError> {
        self.bounded(async {
            let response = self.exchange(method, path, body).await?;
            self.collect(response.into_body()).await
        })
        .await
    }

    async fn bounded<T>(&self, work: impl Future<Output = Result<T, ClientError>>) -> Result<T, ClientError> {
        match time::timeout(self.timeout, work).await {
            Ok(result) => result,
            Err(_) => Err(ClientError::Timeout { socket: self.socket.clone(), after: self.timeout }),
        }
    }

    /// Sends a request; an answer that is not a success becomes its problem.
    async fn exchange(
        &self,
        method: Method,
        path: &str,
        body: Bytes,
    ) -> Result<Response<Incoming>, ClientError> {
        let stream = self.connect().await?;
        let (mut sender, connection) =
            http1::handshake(TokioIo::new(stream)).await.map_err(|e| self.http(e))?;
        // Ends by itself once the answer's body is read or dropped. Its error is that of the request or the body.
        tokio::spawn(connection);

        let mut request = Request::builder().method(method).uri(path).header(header::HOST, "swd");
        if !body.is_empty() {
            request = request.header(header::CONTENT_TYPE, "application/json");
        }
        let request =
            request.body(Full::new(body)).map_err(|_| ClientError::Path { path: path.to_owned() })?;
        let response = sender.send_request(request).await.map_err(|e| self.http(e))?;
        if response.status().is_success() {
            return Ok(response);
        }

        let status = response.status();
        let body = self.collect(response.into_body()).await?;
        Err(match serde_json::from_slice(&body) {
            Ok(problem) => ClientError::Problem(problem),
            Err(_) => ClientError::Status { socket: self.socket.clone(), status },
        })
    }

    async fn connect(&self) -> Result<UnixStream, ClientError> {
        loop {
            match UnixStream::connect(&self.socket).await {
                // The backlog is full: a Unix socket says so in place of waiting.
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => time::sleep(RETRY_PAUSE).await,
                Ok(stream) => return Ok(stream),
                Err(e) => return Err(ClientError::connect(&self.socket, e)),
            }
        }
    }

    async fn collect(&self, body: Incoming) -> Result<Bytes, ClientError> {
        match Limited::new(body, MAX_ANSWER).collect().await {
            Ok(collected) => Ok(collected.to_bytes()),
            Err(e) => Err(match e.downcast::<hyper::Error>() {
                Ok(e) => self.http(*e),
                Err(_) => ClientError::TooLong { socket: self.socket.clone() },
            }),
        }
    }

    fn http(&self, source: hyper::Error) -> ClientError {
        ClientError::http(&self.socket, source)
    }
}

/// An answer that comes piece by piece.
#[derive(Debug)]
pub struct Chunks {
    socket: PathBuf,
    id: Option<u64>,
    body: Incoming,
}

impl Chunks {
    /// By which [`Client::end_capture`] ends it; none from a swd that does not tell.
    pub const fn id(&self) -> Option<u64> {
        self.id
    }

    /// Waits for the next piece; `None` when swd ended the answer. Dropping the future loses nothing.
    pub async fn next(&mut self) -> Result<Option<Bytes>, ClientError> {
        loop {
            match self.body.frame().await {
                Some(Ok(frame)) => {
                    if let Ok(bytes) = frame.into_data() {
                        return Ok(Some(bytes));
                    }
                }
                Some(Err(e)) => return Err(ClientError::http(&self.socket, e)),
                None => return Ok(None),
            }
        }
    }
}

/// Why a request failed.
#[derive(Debug, Error)]
pub enum ClientError {
    /// There is no socket.
    #[error(
        "cannot reach swd at {}: no such file; is it running? start it with 'swd', or name the socket with --socket",
        socket.display()
    )]
    NoSocket {
        /// The socket's path.
        socket: PathBuf,
    },
    /// There is a socket, but nobody listens: swd was killed.
    #[error(
        "cannot reach swd at {}: nobody listens there; swd has stopped: start it with 'swd', or name another \
         socket with --socket",
        socket.display()
    )]
    NotListening {
        /// The socket's path.
        socket: PathBuf,
    },
    /// The socket's owner does not admit this user.
    #[error(
        "cannot reach swd at {}: permission denied; run as root, or as a member of the group that swd's \
         configuration names",
        socket.display()
    )]
    Denied {
        /// The socket's path.
        socket: PathBuf,
    },
    /// Connecting failed otherwise.
    #[error("cannot reach swd at {}", socket.display())]
    Connect {
        /// The socket's path.
        socket: PathBuf,
        /// The system's reason.
        source: io::Error,
    },
    /// The answer did not come in time.
    #[error("swd at {} did not answer within {after:?}; it hangs or is overloaded: see its log", socket.display())]
    Timeout {
        /// The socket's path.
        socket: PathBuf,
        /// The client's timeout.
        after: Duration,
    },
    /// The connection ended before the answer did.
    #[error("swd at {} closed the connection before it had answered; see its log", socket.display())]
    Closed {
        /// The socket's path.
        socket: PathBuf,
    },
    /// What came back is not HTTP.
    #[error("what listens at {} does not speak swd's protocol; name swd's socket with --socket", socket.display())]
    Protocol {
        /// The socket's path.
        socket: PathBuf,
        /// What the HTTP parser says.
        source: hyper::Error,
    },
    /// The answer is longer than any of swd's.
    #[error("the answer from {} is too long; is it swd's socket?", socket.display())]
    TooLong {
        /// The socket's path.
        socket: PathBuf,
    },
    /// An error status without a problem object.
    #[error("{} answered '{status}' without a reason; is it swd, and of this version?", socket.display())]
    Status {
        /// The socket's path.
        socket: PathBuf,
        /// HTTP status.
        status: StatusCode,
    },
    /// The answer is not what the API says.
    #[error("cannot understand swd's answer at {}; is it of this version?", socket.display())]
    Decode {
        /// The socket's path.
        socket: PathBuf,
        /// What the JSON parser says.
        source: serde_json::Error,
    },
    /// The request does not go into JSON.
    #[error("cannot write the request as JSON")]
    Encode(#[source] serde_json::Error),
    /// The request's path is too long for HTTP.
    #[error("cannot ask swd for '{path}': the name is too long")]
    Path {
        /// The path.
        path: String,
    },
    /// swd refused, and says why.
    #[error("{}", .0.detail)]
    Problem(Problem),
}

impl ClientError {
    /// True when swd says that what was named does not exist.
    #[must_use]
    pub fn is_not_found(&self) -> bool {
        matches!(self, Self::Problem(problem) if problem.status == StatusCode::NOT_FOUND.as_u16())
    }

    fn connect(socket: &Path, source: io::Error) -> Self {
        let socket = socket.to_owned();
        match source.kind() {
            io::ErrorKind::NotFound => Self::NoSocket { socket },
            io::ErrorKind::ConnectionRefused => Self::NotListening { socket },
            io::ErrorKind::PermissionDenied => Self::Denied { socket },
            _ => Self::Connect { socket, source },
        }
    }

    fn http(socket: &Path, source: hyper::Error) -> Self {
        let socket = socket.to_owned();
        if source.is_parse() { Self::Protocol { socket, source } } else { Self::Closed { socket } }
    }
}

/// A filter as a query string; empty when nothing is set.
fn query(fields: &impl Serialize) -> String {
    // A struct of plain fields becomes an object; those that are not set are left out.
    let Ok(serde_json::Value::Object(fields)) = serde_json::to_value(fields) else { return String::new() };
    let text = |value: serde_json::Value| match value {
        serde_json::Value::String(text) => text,
        other => other.to_string(),
    };
    let set = fields.into_iter().filter(|(_, value)| !value.is_null());
    let set: Vec<String> = set.map(|(key, value)| format!("{key}={}", encode(&text(value)))).collect();
    if set.is_empty() { String::new() } else { format!("?{}", set.join("&")) }
}

/// Percent-encodes one segment of a path: everything but RFC 3986's unreserved characters.
fn encode(segment: &str) -> String {
    let mut encoded = String::with_capacity(segment.len());
    for &byte in segment.as_bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
            encoded.push(char::from(byte));
        } else {
            encoded.push_str(&format!("%{byte:02X}"));
        }
    }
    encoded
}

#[cfg(test)]
mod tests;
