//! swctl
fn main() {}
