//! What the CNI plugin `swd-cni` is made of: what a runtime asks (environment and configuration), what is done about it through the
//! API, and what the runtime is answered. Reading and answering have no I/O.

mod outcome;
mod plugin;
mod request;

pub use outcome::{Failure, added, versions};
pub use plugin::{Wanted, run};
pub use request::{Config, Environment, version_of};
