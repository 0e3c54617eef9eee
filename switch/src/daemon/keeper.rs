//! The keeper: a tiny process beside the daemon that holds what must outlive it.
//!
//! - The switch namespace. The pin below /run/netns would do, but where swd runs in a mount namespace of its own (`ip
//!   netns exec`, systemd's PrivateMounts) the pin ends with it, and every veth pair with the namespace.
//! - Duplicates of the queues of TAP ports. A TAP device ends with its last descriptor.
//! - What keeps the host's stack silent for swd's ports while swd is not running ([`Safe`]), and, from a daemon that ends in
//!   good order to the next one, what its relay carries. These for [`GRACE`] after the daemon has gone, no longer: an
//!   swd that was stopped for good gives its ports back.
//!
//! It has no state but that, and one client at a time in practice: the daemon. It ends when the pin or its own socket is
//! removed and no client is connected, so `ip netns del` and the end of a test's folder leave nothing behind.
//!
//! Protocol: a request is one message, a letter and a name; an answer is one message. Descriptors travel with it.
//! Only root (or whom the keeper runs as) may talk to it.

use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sched::{CloneFlags, setns};
use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify};
use nix::sys::socket::{getsockopt, sockopt::PeerCredentials};

use crate::sys::fds;
use crate::sys::netns::NetNs;

/// Hidden subcommand that makes a process the keeper.
pub const SUBCOMMAND: &str = "keeper";
/// Begins the names of what is not a port's queues. No port's name begins so.
pub const NOT_A_PORT: char = '=';
/// How long such things are held after the last client has gone.
const GRACE: Duration = Duration::from_secs(120);
/// Longest request or answer.
const MAX_MESSAGE: usize = 256;
/// Most clients at once: the daemon, and one that takes over from it.
const MAX_CLIENTS: usize = 8;

/// The daemon's end.
#[derive(Debug)]
pub struct Keeper {
    socket: PathBuf,
    stream: UnixStream,
    /// Where this daemon started it: to be waited for.
    child: Option<Child>,
}

impl Keeper {
    /// Connects to a keeper that runs already.
    pub fn connect(socket: &Path) -> Option<Self> {
        let stream = UnixStream::connect(socket).ok()?;
        let patience = Some(Duration::from_secs(2));
        stream.set_read_timeout(patience).ok()?;
        stream.set_write_timeout(patience).ok()?;
        Some(Self { socket: socket.to_owned(), stream, child: None })
    }

    /// Starts one that holds `netns`.
    ///
    /// # Errors
    /// When the socket cannot be made or the process not started.
    pub fn start(socket: &Path, pin: &Path, netns: &NetNs) -> io::Result<Self> {
        match std::fs::remove_file(socket) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
            _ => {}
        }
        let listener = UnixListener::bind(socket)?;
        std::fs::set_permissions(socket, std::fs::Permissions::from_mode(0o600))?;
        // Namespace and socket arrive as its standard input and output: no descriptor needs to be named.
        let child = Command::new("/proc/self/exe")
            .arg0("swd-keeper")
            .arg(SUBCOMMAND)
            .arg(socket)
            .arg(pin)
            .stdin(Stdio::from(netns.as_fd().try_clone_to_owned()?))
            .stdout(Stdio::from(OwnedFd::from(listener)))
            .stderr(Stdio::null())
            .current_dir("/")
            .spawn()?;
        let connected = Self::connect(socket);
        let mut keeper = connected.ok_or_else(|| io::Error::other("the keeper does not answer"))?;
        keeper.child = Some(child);
        // Its first answer: from here on the namespace is held.
        keeper.netns()?;
        Ok(keeper)
    }

    /// Watches for its end, by a connection of its own.
    ///
    /// # Errors
    /// When it does not answer.
    pub fn watch(&self) -> io::Result<Ending> {
        let stream = UnixStream::connect(&self.socket)?;
        stream.set_nonblocking(true)?;
        Ok(Ending(tokio::net::UnixStream::from_std(stream)?))
    }

    /// The namespace it holds.
    ///
    /// # Errors
    /// When it does not answer.
    pub fn netns(&self) -> io::Result<NetNs> {
        let (_, fds) = self.ask(b'n', "", &[])?;
        let fd = fds.into_iter().next().ok_or_else(|| io::Error::other("the keeper holds no namespace"))?;
        NetNs::try_from(fd)
    }

    /// Gives it duplicates of a port's queues, in place of what it has of that port.
    ///
    /// # Errors
    /// When it does not answer.
    pub fn put(&self, port: &str, queues: &[impl AsFd]) -> io::Result<()> {
        let queues: Vec<_> = queues.iter().map(AsFd::as_fd).collect();
        self.ask(b'p', port, &queues).map(|_| ())
    }

    /// Every port of which it has queues, with duplicates of them.
    ///
    /// # Errors
    /// When it does not answer.
    pub fn all(&self) -> io::Result<Vec<(String, Vec<OwnedFd>)>> {
        let mut all = Vec::new();
        loop {
            let (name, queues) = self.ask(b'g', &all.len().to_string(), &[])?;
            if name.is_empty() {
                return Ok(all);
            }
            all.push((name, queues));
        }
    }

    /// Makes it close its duplicates of a port's queues.
    ///
    /// # Errors
    /// When it does not answer.
    pub fn delete(&self, port: &str) -> io::Result<()> {
        self.ask(b'd', port, &[]).map(|_| ())
    }

    /// Everything that it holds besides queues, by name.
    ///
    /// # Errors
    /// When it does not answer.
    pub fn kept(&self) -> io::Result<BTreeMap<String, Vec<OwnedFd>>> {
        Ok(self.all()?.into_iter().filter(|(name, _)| name.starts_with(NOT_A_PORT)).collect())
    }

    /// Makes it end.
    pub fn end(self) {
        let _ = self.ask(b'x', "", &[]);
    }

    fn ask(&self, what: u8, text: &str, with: &[BorrowedFd<'_>]) -> io::Result<(String, Vec<OwnedFd>)> {
        let mut request = vec![what];
        request.extend_from_slice(text.as_bytes());
        fds::send(&self.stream, &request, with)?;
        let mut answer = [0; MAX_MESSAGE];
        let (n, got) = fds::receive(&self.stream, &mut answer)?;
        match answer.get(..n).and_then(<[u8]>::split_first) {
            Some((b'+', text)) => Ok((String::from_utf8_lossy(text).into_owned(), got)),
            Some((_, text)) => Err(io::Error::other(String::from_utf8_lossy(text).into_owned())),
            None => Err(io::Error::other("the keeper is gone")),
        }
    }
}

/// A keeper, as those see it who leave something there in passing: a keeper that is gone is no error of theirs.
#[derive(Debug)]
pub struct Safe {
    socket: PathBuf,
    keeper: Mutex<Option<Keeper>>,
}

impl Safe {
    /// The keeper that listens at `socket`, now or later.
    pub const fn new(socket: PathBuf) -> Self {
        Self { socket, keeper: Mutex::new(None) }
    }

    /// Leaves descriptors there, in place of others of this name.
    pub fn put(&self, name: &str, fds: &[impl AsFd]) {
        self.ask(name, |keeper| keeper.put(name, fds));
    }

    /// Takes them away.
    pub fn delete(&self, name: &str) {
        self.ask(name, |keeper| keeper.delete(name));
    }

    fn ask(&self, name: &str, work: impl Fn(&Keeper) -> io::Result<()>) {
        let mut keeper = self.keeper.lock().unwrap_or_else(PoisonError::into_inner);
        if keeper.as_ref().is_some_and(|keeper| work(keeper).is_ok()) {
            return;
        }
        // Another one may have been started since.
        *keeper = Keeper::connect(&self.socket);
        let done = keeper.as_ref().map_or_else(|| Err(io::ErrorKind::NotConnected.into()), work);
        if let Err(e) = done {
            tracing::warn!("the keeper does not take {name}: {e}");
        }
    }
}

/// The end of a keeper, to be waited for.
#[derive(Debug)]
pub struct Ending(tokio::net::UnixStream);

impl Ending {
    /// Returns when the keeper has ended. May be cancelled.
    pub async fn wait(&self) {
        // A keeper says nothing unasked: what is readable is the end.
        let _ = self.0.readable().await;
    }
}

impl Drop for Keeper {
    fn drop(&mut self) {
        // It outlives the daemon; were it gone already, this is where it is collected.
        if let Some(child) = &mut self.child {
            let _ = child.try_wait();
        }
    }
}

/// The keeper's main: standard input is the namespace, standard output the listening socket.
///
/// # Errors
/// When it cannot set itself up; later trouble ends a client, not the keeper.
pub fn serve(socket: &Path, pin: &Path) -> io::Result<()> {
    let netns = NetNs::try_from(io::stdin().as_fd().try_clone_to_owned()?)?;
    let listener = UnixListener::from(io::stdout().as_fd().try_clone_to_owned()?);
    let null = File::options().read(true).write(true).open("/dev/null")?;
    nix::unistd::dup2_stdin(&null)?;
    nix::unistd::dup2_stdout(&null)?;
    // Not the daemon's session: what ends its terminal or its group does not end the keeper.
    nix::unistd::setsid()?;
    // Not the host's namespace: the keeper must not keep that alive.
    netns.enter_for_good()?;
    listener.set_nonblocking(true)?;
    let inode = std::fs::metadata(socket)?.ino();
    pin_for_all(&netns, socket, inode, pin);
    let watch = Inotify::init(InitFlags::IN_CLOEXEC | InitFlags::IN_NONBLOCK)?;
    let gone = AddWatchFlags::IN_DELETE | AddWatchFlags::IN_MOVED_FROM | AddWatchFlags::IN_DELETE_SELF;
    for file in [pin, socket] {
        if let Some(folder) = file.parent() {
            watch.add_watch(folder, gone)?;
        }
    }
    let mut held = Held { netns, things: BTreeMap::new() };
    // When the last client went.
    let mut alone: Option<Instant> = None;
    let mut clients: Vec<UnixStream> = Vec::new();
    let place = Place { socket: socket.to_owned(), inode, pin: pin.to_owned() };
    loop {
        if clients.is_empty() && place.is_gone() {
            return Ok(());
        }
        let mut polled: Vec<PollFd<'_>> = vec![
            PollFd::new(listener.as_fd(), PollFlags::POLLIN),
            PollFd::new(watch.as_fd(), PollFlags::POLLIN),
        ];
        polled.extend(clients.iter().map(|c| PollFd::new(c.as_fd(), PollFlags::POLLIN)));
        let patience = match alone {
            Some(since) if held.is_more_than_queues() => {
                let left = GRACE.saturating_sub(since.elapsed());
                // A millisecond more: not to wake too early.
                PollTimeout::try_from(left + Duration::from_millis(1)).unwrap_or(PollTimeout::NONE)
            }
            _ => PollTimeout::NONE,
        };
        match poll(&mut polled, patience) {
            Err(nix::errno::Errno::EINTR) => continue,
            other => other?,
        };
        let ready: Vec<bool> = polled.iter().map(|p| p.any().unwrap_or(true)).collect();
        let mut end = false;
        let mut at = 2;
        clients.retain_mut(|client| {
            at += 1;
            !ready[at - 1]
                || match held.answer(client) {
                    Ok(next) => {
                        end |= next == Next::End;
                        true
                    }
                    Err(_) => false,
                }
        });
        if end {
            return Ok(());
        }
        if ready[1] {
            let _ = watch.read_events();
        }
        let client = if ready[0] { listener.accept().ok() } else { None };
        if let Some((client, _)) = client.filter(|(c, _)| clients.len() < MAX_CLIENTS && is_trusted(c)) {
            let _ = client.set_nonblocking(false);
            let _ = client.set_read_timeout(Some(Duration::from_secs(1)));
            let _ = client.set_write_timeout(Some(Duration::from_secs(1)));
            clients.push(client);
        }
        match (clients.is_empty(), alone) {
            (false, _) => alone = None,
            (true, None) => alone = Some(Instant::now()),
            (true, Some(since)) if since.elapsed() >= GRACE => held.forget_all_but_queues(),
            (true, Some(_)) => {}
        }
    }
}

/// Pins the namespace where whoever started swd sees it. Where swd runs in a mount namespace of its own, the pin that it
/// made is seen by nobody else; so the keeper moves to the mount namespace from which swd came, and pins it there too.
fn pin_for_all(netns: &NetNs, socket: &Path, inode: u64, pin: &Path) {
    let enter = |file: &File| setns(file, CloneFlags::CLONE_NEWNS).is_ok();
    let Ok(own) = File::open("/proc/self/ns/mnt") else { return };
    let Some(outer) = outer_mounts(&own) else { return };
    if !enter(&outer) {
        return;
    }
    // A folder that is private to swd cannot be watched from there.
    if !std::fs::metadata(socket).is_ok_and(|m| m.ino() == inode) {
        enter(&own);
        return;
    }
    let pinned = NetNs::open(pin).and_then(|ns| ns.id());
    if !matches!((pinned, netns.id()), (Ok(a), Ok(b)) if a == b) {
        let _ = netns.pin(pin);
    }
}

/// The mount namespace of the nearest ancestor that has another than this process.
fn outer_mounts(own: &File) -> Option<File> {
    let own = own.metadata().ok()?.ino();
    let mut process = nix::unistd::getppid().as_raw();
    // Each step goes to an older process, so this ends at process 1.
    while process > 0 {
        let mounts = File::open(format!("/proc/{process}/ns/mnt")).ok()?;
        if mounts.metadata().ok()?.ino() != own {
            return Some(mounts);
        }
        let status = std::fs::read_to_string(format!("/proc/{process}/status")).ok()?;
        process = status.lines().find_map(|l| l.strip_prefix("PPid:"))?.trim().parse().ok()?;
    }
    None
}

/// Root, or whom the keeper itself runs as.
fn is_trusted(client: &UnixStream) -> bool {
    let own = nix::unistd::geteuid().as_raw();
    getsockopt(client, PeerCredentials).is_ok_and(|peer| peer.uid() == 0 || peer.uid() == own)
}

struct Place {
    socket: PathBuf,
    inode: u64,
    pin: PathBuf,
}

impl Place {
    fn is_gone(&self) -> bool {
        let same = std::fs::metadata(&self.socket).is_ok_and(|m| m.ino() == self.inode);
        !same || !self.pin.exists()
    }
}

struct Held {
    netns: NetNs,
    things: BTreeMap<String, Vec<OwnedFd>>,
}

#[derive(PartialEq, Eq)]
enum Next {
    Go,
    End,
}

impl Held {
    fn is_more_than_queues(&self) -> bool {
        self.things.keys().any(|name| name.starts_with(NOT_A_PORT))
    }

    fn forget_all_but_queues(&mut self) {
        self.things.retain(|name, _| !name.starts_with(NOT_A_PORT));
    }

    /// Reads one request and answers it; an error ends the client.
    fn answer(&mut self, client: &UnixStream) -> io::Result<Next> {
        let mut request = [0; MAX_MESSAGE];
        let (n, queues) = fds::receive(client, &mut request)?;
        let Some((what, name)) = request.get(..n).and_then(<[u8]>::split_first) else {
            return Err(io::ErrorKind::UnexpectedEof.into());
        };
        let name = String::from_utf8_lossy(name).into_owned();
        let reply = |text: &str, with: &[BorrowedFd<'_>]| {
            let mut answer = vec![b'+'];
            answer.extend_from_slice(text.as_bytes());
            fds::send(client, &answer, with)
        };
        match what {
            b'n' => reply("", &[self.netns.as_fd()])?,
            b'p' => {
                self.things.insert(name, queues);
                reply("", &[])?;
            }
            b'd' => {
                self.things.remove(&name);
                reply("", &[])?;
            }
            b'g' => match name.parse().ok().and_then(|at: usize| self.things.iter().nth(at)) {
                Some((name, queues)) => {
                    reply(name, &queues.iter().map(AsFd::as_fd).collect::<Vec<_>>())?;
                }
                None => reply("", &[])?,
            },
            b'x' => {
                reply("", &[])?;
                return Ok(Next::End);
            }
            _ => fds::send(client, b"-unknown request", &[])?,
        }
        Ok(Next::Go)
    }
}
