//! What happened, for whoever listens.
//!
//! A ring of [`KEPT`] events for all listeners together: one that is too slow loses the oldest and is told so.

use ctl::api::Event;
use jiff::Timestamp;
use tokio::sync::broadcast;

/// Events that a listener may lag behind.
const KEPT: usize = 1024;

/// Where events go.
#[derive(Debug)]
pub struct Events(broadcast::Sender<Event>);

impl Default for Events {
    fn default() -> Self {
        Self(broadcast::channel(KEPT).0)
    }
}

impl Events {
    /// Tells all listeners.
    pub fn tell(&self, kind: &str, subject: &str, message: impl Into<String>) {
        let message = message.into();
        tracing::info!(kind, subject, "{message}");
        // Nobody listening is no error.
        let _ = self.0.send(event(kind, subject, message));
    }

    /// A listener of what happens from now on.
    pub fn listen(&self) -> Listener {
        Listener(self.0.subscribe())
    }
}

fn event(kind: &str, subject: &str, message: String) -> Event {
    Event { time: Timestamp::now(), kind: kind.to_owned(), subject: subject.to_owned(), message }
}

/// One listener.
#[derive(Debug)]
pub struct Listener(broadcast::Receiver<Event>);

impl Listener {
    /// The next event; none when the daemon ends.
    pub async fn next(&mut self) -> Option<Event> {
        match self.0.recv().await {
            Ok(event) => Some(event),
            Err(broadcast::error::RecvError::Closed) => None,
            Err(broadcast::error::RecvError::Lagged(lost)) => {
                let message = format!("{lost} events were lost: they were not read as fast as they came");
                Some(event("events-lost", "events", message))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_slow_listener_is_told_what_it_lost() {
        let events = Events::default();
        let mut slow = events.listen();
        for n in 0..KEPT + 10 {
            events.tell("port-added", "p", n.to_string());
        }
        let first = slow.next().await.unwrap();
        assert_eq!((first.kind.as_str(), &first.message[..9]), ("events-lost", "10 events"));
        assert_eq!(slow.next().await.unwrap().message, "10");
        drop(events);
        let mut left = 0;
        while slow.next().await.is_some() {
            left += 1;
        }
        assert_eq!(left, KEPT - 1);
    }
}
