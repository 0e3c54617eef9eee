//! The two labs that the tests of this package run in.
