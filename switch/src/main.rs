//! swd
fn main() {}
