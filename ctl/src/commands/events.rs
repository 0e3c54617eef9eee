//! `swctl events`.

use anyhow::{Context, bail};
use ctl::{
    api::Event,
    client::{Client, ClientError},
};
use tokio::{
    signal::unix::{SignalKind, signal},
    task,
};

use crate::{
    output::{self, Format},
    table,
};

/// `swctl events`: a line for each, until interrupted or until nobody reads them.
pub(crate) async fn events(client: &Client, format: Format) -> anyhow::Result<()> {
    let mut interrupted = signal(SignalKind::interrupt()).context("cannot handle SIGINT")?;
    let mut terminated = signal(SignalKind::terminate()).context("cannot handle SIGTERM")?;
    let mut reader_gone = task::spawn_blocking(output::wait_for_reader_gone);
    let mut events = client.events().await?;
    loop {
        let event = tokio::select! {
            // A daemon that was killed does not end the stream in due form.
            event = events.next() => match event {
                Err(ClientError::Closed { .. }) => None,
                event => event?,
            },
            _ = interrupted.recv() => return Ok(()),
            _ = terminated.recv() => return Ok(()),
            _ = &mut reader_gone => return Ok(()),
        };
        let Some(event) = event else {
            bail!("swd ended the stream of events: it has stopped, or runs anew")
        };
        output::print(match format {
            Format::Human => describe(&event),
            Format::Json => serde_json::to_string(&event).context("cannot write the event as JSON")? + "\n",
        })?;
    }
}

fn describe(event: &Event) -> String {
    let Event { time, kind, subject, message } = event;
    table::printable(&format!("{time:.3}  {kind:<16}  {subject}  {message}")) + "\n"
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_event_is_a_line() {
        let event = Event {
            time: "2026-11-21T20:00:00.123456Z".parse().unwrap(),
            kind: "port-up".into(),
            subject: "web".into(),
            message: "its link\nis up".into(),
        };
        assert_eq!(describe(&event), "2026-11-21T20:00:00.123Z  port-up           web  its link is up\n");
    }
}
