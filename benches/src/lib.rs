//! Benchmarks of swd; see `benches/`.
