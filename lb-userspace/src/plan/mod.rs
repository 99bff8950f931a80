//! From model and node facts to the wanted map contents: pure functions, no I/O, no clock, no randomness.

pub mod wanted;
