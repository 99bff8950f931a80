//! Keeps a proxy equal to the objects.

mod controller;

pub use controller::{Controller, Outcome};
