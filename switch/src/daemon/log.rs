//! Where the log goes: standard error, a line for each event, its fields behind it as `name=value`.
//!
//! Under systemd (`JOURNAL_STREAM` is set) each line begins with its priority as sd-daemon(3) has it, so that
//! `journalctl -p warning` works; times are the journal's own. With `SWD_LOG_FORMAT=json` each line is a JSON object.
//! `SWD_LOG` selects what is told, as in `SWD_LOG=info` or `SWD_LOG=switch::daemon=debug`.

use std::fmt;
use std::io;

use tracing::{Event, Level, Subscriber};
use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::format::{Format, Writer};
use tracing_subscriber::fmt::{FmtContext, FormatEvent, FormatFields};
use tracing_subscriber::registry::LookupSpan;

/// Begins to log.
pub(super) fn init() {
    let filter = EnvFilter::try_from_env("SWD_LOG").unwrap_or_else(|_| EnvFilter::new("warn"));
    let log = tracing_subscriber::fmt().with_env_filter(filter).with_writer(io::stderr);
    let set = |name| std::env::var_os(name).is_some_and(|value| !value.is_empty());
    if std::env::var_os("SWD_LOG_FORMAT").is_some_and(|format| format == "json") {
        log.json().flatten_event(true).init();
    } else if set("JOURNAL_STREAM") {
        log.with_ansi(false)
            .event_format(Prioritized(Format::default().without_time().with_level(false)))
            .init();
    } else {
        log.without_time().init();
    }
}

/// Lines that begin with their priority.
struct Prioritized<T>(T);

impl<S, N, T> FormatEvent<S, N> for Prioritized<T>
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
    T: FormatEvent<S, N>,
{
    fn format_event(
        &self,
        context: &FmtContext<'_, S, N>,
        mut writer: Writer<'_>,
        event: &Event<'_>,
    ) -> fmt::Result {
        write!(writer, "<{}>", priority(*event.metadata().level()))?;
        self.0.format_event(context, writer, event)
    }
}

/// As syslog(3) counts them.
const fn priority(level: Level) -> u8 {
    match level {
        Level::ERROR => 3,
        Level::WARN => 4,
        Level::INFO => 6,
        Level::DEBUG | Level::TRACE => 7,
    }
}
