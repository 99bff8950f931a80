//! Packets for the tests: parsed from a line of text, built, dissected, verified, compared.
//!
//! This module does not use `lb-common`. It is an independent implementation that the kernel
//! programs are checked against. It is slow and simple on purpose.

mod build;
mod dissect;
pub mod layer;
pub mod sums;
mod text;
mod verify;

pub use build::build;
pub use dissect::dissect;
pub use layer::{Layer, Link};
pub use text::{ParseError, diff, parse, render, split_layers};
pub use verify::verify;

#[cfg(test)]
mod tests;
