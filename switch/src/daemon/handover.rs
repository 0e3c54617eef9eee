//! Taking over from a running daemon (`swd --replace`), from the new one's side. The other side is `api/handover.rs`.

use std::path::Path;
use std::time::Duration;

use ctl::api::Handover;
use ctl::client::{Client, ClientError};

/// How long the running daemon may take to answer.
const PATIENCE: Duration = Duration::from_secs(8);

/// Why nothing was taken over. The running daemon, if there is one, goes on.
#[derive(Debug, thiserror::Error)]
pub enum HandoverError {
    /// None runs.
    #[error("--replace: no instance named {name} runs ({why}); start swd without --replace")]
    None {
        /// The instance.
        name: String,
        /// How that is known.
        why: &'static str,
    },
    /// It speaks otherwise.
    #[error(
        "--replace: the instance {name} that runs cannot hand over to this version ({why}); stop it and start this one: \
         connections survive that too"
    )]
    Version {
        /// The instance.
        name: String,
        /// What it says.
        why: String,
    },
    /// It does not do it.
    #[error("--replace: the instance {name} that runs does not hand over: {source}")]
    Refused {
        /// The instance.
        name: String,
        /// Why.
        source: ClientError,
    },
}

/// A running daemon that stands still.
#[derive(Debug)]
pub(super) struct Predecessor {
    client: Client,
    name: String,
    pub(super) told: Handover,
}

impl Predecessor {
    /// Finds the instance by its socket and asks it to stand still.
    ///
    /// # Errors
    /// When there is none, or it cannot or does not.
    pub(super) async fn find(name: &str, socket: &Path) -> Result<Self, HandoverError> {
        let client = Client::new(socket).with_timeout(PATIENCE);
        let name = name.to_owned();
        match client.handover_begin().await {
            Ok(told) => Ok(Self { client, name, told }),
            Err(ClientError::NoSocket { .. }) => Err(HandoverError::None { name, why: "there is no socket" }),
            Err(ClientError::NotListening { .. }) => {
                Err(HandoverError::None { name, why: "nobody listens at its socket" })
            }
            Err(e) if e.is_not_found() => {
                Err(HandoverError::Version { name, why: "it does not know how".to_owned() })
            }
            Err(ClientError::Problem(problem)) if problem.detail.contains("protocol") => {
                Err(HandoverError::Version { name, why: problem.detail })
            }
            Err(source) => Err(HandoverError::Refused { name, source }),
        }
    }

    /// Makes it leave everything and end. When this returns, nothing is forwarded.
    ///
    /// # Errors
    /// When it goes on instead.
    pub(super) async fn end(&self) -> Result<(), HandoverError> {
        let ended = self.client.handover_end().await;
        ended.map_err(|source| HandoverError::Refused { name: self.name.clone(), source })
    }

    /// Lets it go on.
    pub(super) async fn call_off(&self) {
        // If it does not hear that, it goes on a little later.
        let _ = self.client.handover_call_off().await;
    }
}
