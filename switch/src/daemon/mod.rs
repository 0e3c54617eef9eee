//! The control plane.

pub mod desired;
pub mod ipam;
pub mod plan;
pub mod state;
