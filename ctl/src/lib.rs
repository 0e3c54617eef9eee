//! API types and client of swd.
