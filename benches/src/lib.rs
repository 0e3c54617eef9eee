//! What the programs of this package share: loads, instruments, and how figures are kept and drawn.
//!
//! `compare` runs swd and its rivals side by side, `scale` draws curves against size, `strain` looks at what one container can do to others
//! and what limits and restarts come to. They build their world with the
//! namespaces of the package `tests`, whose functions panic when something cannot be made; [`attempt::attempt`] turns that into an
//! error, so that one rival's failure is one gap in the table.

pub mod attempt;
pub mod congestion;
pub mod figures;
pub mod flow;
pub mod load;
pub mod machine;
pub mod measure;
pub mod memory;
pub mod ping;
pub mod plot;
pub mod world;
