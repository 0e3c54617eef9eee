//! What outlived the daemon before this one.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// Connections that this daemon took over from the one before it, when it started.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Eq, Serialize, ToSchema)]
pub struct Restored {
    /// How many go on.
    pub connections: u64,
    /// How many do not, by reason: `clash`, `damaged`, `external-address`, `foreign`, `full`, `gone`, `malformed`, `torn`,
    /// `truncated`, `unpublished`, `version`. Those that were over in any case do not count.
    pub refused: BTreeMap<String, u64>,
}

/// `POST /v1/handover`: a new daemon asks the running one to stand still and be ready to end.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq, Serialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct HandoverSpec {
    /// The protocol that the new one speaks: [`HANDOVER`].
    pub protocol: u32,
    /// Its process: if that ends without a word, the running one goes on.
    pub pid: u32,
}

/// The answer to it: the running daemon changes nothing any more, and forwards until it is told to end.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq, Serialize, ToSchema)]
pub struct Handover {
    /// Its process.
    pub pid: u32,
    /// Its version.
    pub version: String,
}

/// The version of the protocol by which one daemon takes over from another: this exchange, the keeper's, and what is left with
/// the keeper. The journal has a version of its own.
pub const HANDOVER: u32 = 1;
