//! From the command line to a running daemon, and to its end.

use std::fs::File;
use std::io::{self, Read, Seek, Write};
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use clap::Parser;
use ctl::config::{Config, ConfigError, Uplink};
use ctl::spec::{self, SpecError};
use jiff::Timestamp;
use nix::fcntl::{Flock, FlockArg};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::Mutex;
use tokio::time::{Instant, MissedTickBehavior, interval, sleep, sleep_until};

use super::capture::Captures;
use super::confine::{self, ConfineError};
use super::control::{Daemon, Error};
use super::docker::{self, Promised};
use super::events::Events;
use super::handover::{HandoverError, Predecessor};
use super::links::{Conn, LinkError, Watch, default_interface};
use super::live::Live;
use super::namespace::{self, NamespaceError};
use super::options::{Internal, Options};
use super::outside::Outside;
use super::passage::Passage;
use super::reconcile::{Heard, Lost};
use super::state::{StateError, Store};
use super::{api, keeper, log, services, settings, view};
use crate::dataplane::{self, DataEvent, Dataplane, StageFactory, StartError};
use crate::fdb::FdbConfig;
use crate::sys::netns::NetNs;
use crate::sys::{activation, heap};
use crate::worker;

/// How long to gather news from the kernel before acting: a thousand interfaces that come at once are one change.
const GATHER: Duration = Duration::from_millis(3);
/// How often aged MACs are cleared away. They are not used from the moment they age out, so this is for memory only.
const SWEEP: Duration = Duration::from_secs(30);
/// How often the kernel is asked what it forwarded, while it forwards anything.
const COLLECT: Duration = Duration::from_secs(1);
/// How often flows are looked at that may take turns, while there are any in the kernel.
const REVIEW: Duration = Duration::from_millis(100);

/// How long a daemon that was replaced may take to end.
const LEAVING: Duration = Duration::from_secs(5);

/// How often it is looked whether ports were taken from swd, and whether such that were refused are to be had now.
const MEND: Duration = Duration::from_secs(10);

/// Why the daemon does not start.
#[derive(Debug, thiserror::Error)]
pub enum StartupError {
    /// The configuration.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The name.
    #[error("--name: {0}")]
    Name(#[from] SpecError),
    /// Not allowed to.
    #[error("cannot start: {0}")]
    Capabilities(String),
    /// Rights could not be given up.
    #[error(transparent)]
    Confine(#[from] ConfineError),
    /// Another one runs.
    #[error("an instance named {name} runs already{pid}; stop it, or start this one with another --name")]
    Running {
        /// The instance.
        name: String,
        /// Its process.
        pid: String,
    },
    /// A file or folder.
    #[error("cannot use {path}: {source}")]
    File {
        /// Which.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The uplink.
    #[error(
        "the uplink {0} is not there; 'ip link' lists the host's interfaces, and --uplink none does without"
    )]
    NoUplink(String),
    /// The pool of external ports.
    #[error("{0}")]
    Pool(String),
    /// The switch namespace.
    #[error(transparent)]
    Namespace(#[from] NamespaceError),
    /// Netlink.
    #[error(transparent)]
    Link(#[from] LinkError),
    /// The state file.
    #[error(transparent)]
    State(#[from] StateError),
    /// The data plane.
    #[error("{}", chain(.0))]
    Dataplane(StartError),
    /// What was there before, or is configured, cannot be set up.
    #[error(transparent)]
    Control(#[from] Error),
    /// Nothing was taken over.
    #[error(transparent)]
    Handover(#[from] HandoverError),
    /// The API.
    #[error("{0}")]
    Api(String),
    /// Names for the host.
    #[error(
        "cannot answer for names at {address} ([dns] listen): {source}; it must be an address of this host, with a port that \
         nobody has"
    )]
    Names {
        /// Where.
        address: SocketAddr,
        /// Why.
        source: io::Error,
    },
    /// The system.
    #[error("cannot start: {0}")]
    System(#[from] io::Error),
}

/// An error with its causes, in one line.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text = format!("{text}: {error}");
        cause = error.source();
    }
    text
}

/// The whole of `swd`, as the body of a `main`: parses the command line, runs, and tells the exit code. `stages` makes
/// the user's own stages for each worker.
#[expect(clippy::needless_pass_by_value, reason = "so that a closure can be given as it is written")]
pub fn main(stages: Box<StageFactory>) -> ExitCode {
    let options = Options::parse();
    if let Some(Internal::Keeper { socket, pin }) = &options.internal {
        return match keeper::serve(socket, pin) {
            Ok(()) => ExitCode::SUCCESS,
            Err(_) => ExitCode::FAILURE,
        };
    }
    log::init();
    match run(&options, &*stages) {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            eprintln!("error: {}", e.to_string().lines().collect::<Vec<_>>().join("; "));
            ExitCode::FAILURE
        }
    }
}

/// Runs the daemon until it is told to end by SIGTERM or SIGINT.
///
/// # Errors
/// When it cannot start.
pub fn run(options: &Options, stages: &StageFactory) -> Result<(), StartupError> {
    spec::check_name("instance", &options.name)?;
    let config = match &options.config {
        Some(path) => Config::load(path)?,
        None => Config::default(),
    };
    if let Some(missing) = view::missing_capabilities() {
        return Err(StartupError::Capabilities(missing));
    }
    // While there is one thread: the others inherit it.
    confine::confine()?;
    let passed = activation::take()?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(live((options, &config), stages, passed))
}

async fn live(
    (options, config): (&Options, &Config),
    stages: &StageFactory,
    passed: Vec<OwnedFd>,
) -> Result<(), StartupError> {
    settings::raise_descriptors();
    // Before anything can be left behind.
    let mut ends =
        Ends { terminate: signal(SignalKind::terminate())?, interrupt: signal(SignalKind::interrupt())? };
    let folder = &options.runtime_dir;
    std::fs::create_dir_all(folder).map_err(|source| StartupError::File { path: folder.clone(), source })?;
    let socket = folder.join(format!("{}.sock", options.name));
    let predecessor = match options.replace {
        true => Some(Predecessor::find(&options.name, &socket).await?),
        false => None,
    };
    let passed = activation::listener_at(passed, &socket);
    let place = (socket.as_path(), passed);
    let started = serve((options, config), stages, place, predecessor.as_ref(), &mut ends).await;
    if let (Err(_), Some(predecessor)) = (&started, &predecessor) {
        predecessor.call_off().await;
    }
    started
}

/// The signals that end the daemon.
struct Ends {
    terminate: Signal,
    interrupt: Signal,
}

async fn serve(
    (options, config): (&Options, &Config),
    stages: &StageFactory,
    (socket, passed): (&Path, Option<UnixListener>),
    predecessor: Option<&Predecessor>,
    ends: &mut Ends,
) -> Result<(), StartupError> {
    let folder = &options.runtime_dir;
    // While another one runs, its name and its namespace are its own.
    let mut held = match predecessor {
        Some(_) => None,
        None => Some(lock(folder, &options.name)?),
    };
    let mut store = Store::open(&options.state_dir, &options.name)?;
    let saved = store.load()?;
    let access = api::Access::of(&config.api).map_err(|e| StartupError::Api(e.to_string()))?;

    let host_netns = NetNs::current()?;
    let host = Conn::here()?;
    let uplink = find_uplink(options.uplink.as_ref().unwrap_or(&config.uplink), &host).await?;
    let place = namespace::open(&options.name, folder, &host_netns, predecessor.is_none())?;
    let mut claim = place.claim;
    let switch_netns = place.netns;
    let switch = Conn::within(&switch_netns)?;
    // Watching begins before looking, so that nothing falls in between.
    let mut host_watch = Watch::with_routes()?;
    let mut switch_watch = Watch::within(&switch_netns)?;
    let workers = options.workers.unwrap_or(config.workers) as usize;
    let fdb = FdbConfig {
        aging: Duration::from_secs(config.fdb.aging_s),
        max_entries: usize::try_from(config.fdb.max_entries).unwrap_or(usize::MAX),
        max_per_port: usize::try_from(config.fdb.max_per_port).unwrap_or(usize::MAX),
    };
    let nat = settings::of_instance(&config.nat);
    let wanted = options.uplink.as_ref().unwrap_or(&config.uplink).clone();
    if wanted != Uplink::None {
        settings::check_pool(&config.nat).map_err(StartupError::Pool)?;
    }
    let mechanism = settings::mechanism(options.guards.unwrap_or(config.nat.guards));
    let (dataplane, mut data_events) = Dataplane::start(
        (&switch_netns, &host_netns),
        &dataplane::Config { workers, fdb, fast_path: config.fast_path, nat },
        stages,
    )
    .map_err(StartupError::Dataplane)?;
    let mut daemon = Daemon {
        name: options.name.clone(),
        workers,
        uplink,
        outside: Outside::new(
            wanted,
            config.nat.pool.ports(),
            mechanism,
            Passage::new(
                namespace::keeper_socket(&options.name, folder),
                &place.keeper,
                predecessor.map(|p| p.told.pid),
            ),
        ),
        nat: config.nat.clone(),
        started: Timestamp::now(),
        desired: saved.clone().unwrap_or_default(),
        store,
        live: Live::default(),
        switch_netns,
        host_netns,
        switch,
        host,
        keeper: place.keeper,
        runtime_dir: folder.clone(),
        dataplane,
        events: Events::default(),
        captures: Captures::default(),
        live_traces: Vec::new(),
        promised: Promised::default(),
        restored: ctl::api::Restored::default(),
    };
    let lost = Lost { pairs: place.netns_is_new, queues: place.keeper_is_new };
    daemon.reconcile(lost).await?;
    daemon.add_configured(config, saved.is_none()).await?;
    // From here until frames are received nothing is forwarded.
    if let Some(predecessor) = predecessor {
        predecessor.end().await?;
    }
    daemon.restore_connections();
    daemon.dataplane.receive().map_err(StartupError::Dataplane)?;
    daemon.outside.settle();
    daemon.adopt_relayed();
    if let Some(predecessor) = predecessor {
        tracing::info!("took over from process {}", predecessor.told.pid);
        held = Some(lock_soon(folder, &options.name).await?);
        claim = Some(namespace::claim(&options.name, &daemon.switch_netns)?);
        // What it kept from this one while it was there.
        daemon.set_up_publishes();
    }
    // Its predecessor's sockets are gone by now. What was asked meanwhile waits.
    let bound = config.dns.listen.map(|address| {
        services::Sockets::bind(address).map_err(|source| StartupError::Names { address, source })
    });
    let mut asks = services::start(&daemon.dataplane, bound.transpose()?)?;
    let _until_the_end = (held, claim);

    let mut keeper_ends = daemon.check_keeper();

    let daemon = Arc::new(Mutex::new(daemon));
    let activated = passed.is_some();
    api::serve(Arc::clone(&daemon), socket, access, passed).map_err(|e| StartupError::Api(e.to_string()))?;
    let plugin = options.docker.then(|| docker::socket(&options.docker_plugins, &options.name));
    if let Some(plugin) = &plugin {
        docker::serve(Arc::clone(&daemon), plugin).map_err(|e| StartupError::Api(e.to_string()))?;
    }
    if let Some(address) = config.metrics.listen {
        let served = api::serve_metrics(Arc::clone(&daemon), address).await;
        served.map_err(|e| StartupError::Api(e.to_string()))?;
    }
    heap::trim();
    announce(predecessor.is_some())?;

    let mut sweep = interval(SWEEP);
    sweep.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut mend = interval(MEND);
    mend.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut collect = interval(COLLECT);
    collect.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut review = interval(REVIEW);
    review.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut watchdog = watchdog().map(interval);
    let mut fast = false;
    let mut heard: Option<(Instant, Heard)> = None;
    loop {
        let gathered = async {
            match &heard {
                Some((at, _)) => sleep_until(*at).await,
                None => std::future::pending().await,
            }
        };
        let keeper_ended = async {
            match &keeper_ends {
                Some(ending) => ending.wait().await,
                None => std::future::pending().await,
            }
        };
        let watched = async {
            match &mut watchdog {
                Some(watchdog) => watchdog.tick().await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            _ = ends.terminate.recv() => break,
            _ = ends.interrupt.recv() => break,
            notice = switch_watch.next() => note(&mut heard).switch(notice),
            notice = host_watch.next() => note(&mut heard).host(notice),
            () = gathered => {
                if let Some((_, heard)) = heard.take() {
                    daemon.lock().await.hear(heard).await;
                }
            }
            Some(event) = data_events.recv() => {
                fast |= event == DataEvent::FastPath;
                daemon.lock().await.data_event(event).await;
            }
            Some(ask) = asks.recv() => daemon.lock().await.serve_ask(ask),
            () = keeper_ended => keeper_ends = daemon.lock().await.check_keeper(),
            _ = review.tick(), if fast => daemon.lock().await.dataplane.review(),
            _ = collect.tick(), if fast => fast = daemon.lock().await.dataplane.collect() > 0,
            _ = sweep.tick() => {
                let mut daemon = daemon.lock().await;
                daemon.dataplane.fdb().sweep(worker::now());
                daemon.dataplane.count_losses();
                keeper_ends = daemon.check_keeper();
                daemon.tidy();
                // The event that tells may have been lost.
                fast = daemon.dataplane.collect() > 0;
            }
            _ = watched => {
                // Only one whose control plane gets its turn is alive.
                drop(daemon.lock().await);
                let _ = sd_notify::notify(&[sd_notify::NotifyState::Watchdog]);
            }
            _ = mend.tick() => {
                let mut daemon = daemon.lock().await;
                daemon.look_for_intruders();
                if let Err(e) = daemon.mend().await {
                    tracing::warn!("{e}");
                }
            }
        }
    }
    let _ = sd_notify::notify(&[sd_notify::NotifyState::Stopping]);
    // A change that is under way is finished first.
    let mut last = daemon.lock().await;
    last.leave();
    // Who passed it listens on: its clients wait for the next swd.
    if !activated {
        let _ = std::fs::remove_file(socket);
    }
    if let Some(plugin) = &plugin {
        let _ = std::fs::remove_file(plugin);
    }
    Ok(())
}

fn note(heard: &mut Option<(Instant, Heard)>) -> &mut Heard {
    &mut heard.get_or_insert_with(|| (Instant::now() + GATHER, Heard::default())).1
}

/// Says that frames are forwarded: to a person or script by a line, to systemd by its protocol.
fn announce(replaces: bool) -> io::Result<()> {
    let mut out = io::stdout();
    // That nobody reads it is no reason to end.
    let _ = writeln!(out, "ready").and_then(|()| out.flush());
    if replaces {
        let _ = sd_notify::notify(&[sd_notify::NotifyState::MainPid(std::process::id())]);
    }
    let _ = sd_notify::notify(&[sd_notify::NotifyState::Ready]);
    Ok(())
}

/// The same, when a process that has left it is about to end.
async fn lock_soon(folder: &Path, name: &str) -> Result<Flock<File>, StartupError> {
    let late = Instant::now() + LEAVING;
    loop {
        match lock(folder, name) {
            Err(StartupError::Running { .. }) if Instant::now() < late => {
                sleep(Duration::from_millis(5)).await;
            }
            other => return other,
        }
    }
}

/// How often systemd wants to hear that swd lives, if it does (`WatchdogSec=`): twice in its time.
fn watchdog() -> Option<Duration> {
    sd_notify::watchdog_enabled().map(|time| time / 2)
}

/// Takes the instance's name: held until the process ends, however it ends.
fn lock(folder: &Path, name: &str) -> Result<Flock<File>, StartupError> {
    let path = folder.join(format!("{name}.lock"));
    let error = |source| StartupError::File { path: path.clone(), source };
    let file =
        File::options().create(true).read(true).write(true).truncate(false).open(&path).map_err(error)?;
    match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
        Ok(mut lock) => {
            let written = lock.set_len(0).and_then(|()| lock.rewind());
            written.and_then(|()| writeln!(lock, "{}", std::process::id())).map_err(error)?;
            Ok(lock)
        }
        Err((mut file, nix::errno::Errno::EWOULDBLOCK)) => {
            let mut text = String::new();
            let _ = file.read_to_string(&mut text);
            let pid = text.trim();
            let pid = if pid.is_empty() { String::new() } else { format!(" (pid {pid})") };
            Err(StartupError::Running { name: name.to_owned(), pid })
        }
        Err((_, e)) => Err(error(e.into())),
    }
}

async fn find_uplink(wanted: &Uplink, host: &Conn) -> Result<Option<String>, StartupError> {
    match wanted {
        Uplink::None => Ok(None),
        Uplink::Auto => Ok(default_interface(host).await?),
        Uplink::Interface(name) => match host.link(name).await? {
            Some(link) if !link.loopback => Ok(Some(name.clone())),
            _ => Err(StartupError::NoUplink(name.clone())),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_taken_once() {
        let folder = tempfile::tempdir().unwrap();
        let first = lock(folder.path(), "swd").unwrap();
        let said = lock(folder.path(), "swd").unwrap_err().to_string();
        let pid = std::process::id();
        assert_eq!(
            said,
            format!(
                "an instance named swd runs already (pid {pid}); stop it, or start this one with another --name"
            )
        );
        lock(folder.path(), "other").unwrap();
        drop(first);
        lock(folder.path(), "swd").unwrap();
    }
}
