//! Packets for the tests: described in one line of text, built, taken apart, verified, compared.
//!
//! Nothing here uses `lb-common`: this is the independent opinion that the kernel programs are checked against. Slow
//! and plain on purpose.

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
