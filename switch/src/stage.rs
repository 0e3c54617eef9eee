//! Stages.
/// A stage.
pub trait Stage: Send {}
