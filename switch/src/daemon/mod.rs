//! The control plane: what the user wants, made so in the kernel and kept so.
//!
//! [`desired`] is what is wanted, [`plan`] the way there, [`apply`] the way walked; [`reconcile`] follows what the kernel
//! does by itself. [`control::Daemon`] owns it all; [`api`] is how people reach it. One thread; the workers never wait for
//! it.

mod addresses;
mod api;
pub mod apply;
mod capture;
mod confine;
mod connections;
pub mod control;
pub mod desired;
mod dial;
pub mod docker;
pub mod events;
mod filter;
mod handover;
mod inspect;
pub mod ipam;
pub mod keeper;
mod limits;
pub mod links;
pub mod live;
mod live_trace;
mod log;
mod metrics;
mod names;
pub mod namespace;
pub mod options;
mod outside;
mod passage;
pub mod plan;
mod policy;
pub mod portguard;
mod publish;
pub mod publishes;
mod reconcile;
pub mod relay;
mod routes;
mod services;
mod settings;
mod start;
pub mod state;
mod survive;
mod trace;
mod view;

pub use options::Options;
pub use start::{StartupError, main, run};
