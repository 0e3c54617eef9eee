//! `swctl`: drives swd over its API socket.
fn main() {}
