//! The control plane.

pub mod desired;
pub mod ipam;
pub mod keeper;
pub mod links;
pub mod plan;
pub mod state;
