//! From wanted services to map entries.

pub mod tables;
