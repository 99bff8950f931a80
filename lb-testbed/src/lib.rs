//! Placeholder.

pub mod packet;
pub mod programs;
