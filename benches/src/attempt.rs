//! Try something that may panic, and end in good order when the user wants an end.

use std::panic::{self, AssertUnwindSafe};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use anyhow::{Context as _, Result, anyhow, bail};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};

/// The message of the panic that is being turned into an error.
static MESSAGE: Mutex<Option<String>> = Mutex::new(None);

fn stopped() -> &'static Arc<AtomicBool> {
    static STOPPED: OnceLock<Arc<AtomicBool>> = OnceLock::new();
    STOPPED.get_or_init(Arc::default)
}

/// Makes SIGINT, SIGTERM and SIGHUP end the program by unwinding, so that all namespaces and daemons go with their
/// handles, and panics inside [`attempt()`] silent.
///
/// # Errors
/// When the handlers cannot be set.
pub fn prepare() -> Result<()> {
    for signal in [SIGHUP, SIGINT, SIGTERM] {
        signal_hook::flag::register(signal, Arc::clone(stopped())).context("signal handlers")?;
    }
    panic::set_hook(Box::new(|info| {
        let text = info.payload_as_str().unwrap_or("a panic without words");
        let at = info.location().map(|l| format!(" ({}:{})", l.file(), l.line())).unwrap_or_default();
        *MESSAGE.lock().unwrap_or_else(PoisonError::into_inner) = Some(format!("{text}{at}"));
    }));
    Ok(())
}

/// Fails once the user wants an end. Asked between loads, each of which ends within seconds.
///
/// # Errors
/// When a signal came.
pub fn go_on() -> Result<()> {
    if stopped().load(Ordering::Relaxed) {
        bail!("interrupted");
    }
    Ok(())
}

/// Runs `f`; its panic is an error.
///
/// # Errors
/// The panic's message.
pub fn attempt<T>(f: impl FnOnce() -> Result<T>) -> Result<T> {
    // What `f` leaves half done are handles, which clean up as they drop.
    panic::catch_unwind(AssertUnwindSafe(f)).unwrap_or_else(|_| {
        let message = MESSAGE.lock().unwrap_or_else(PoisonError::into_inner).take();
        Err(anyhow!(message.unwrap_or_else(|| "a panic".to_owned())))
    })
}
