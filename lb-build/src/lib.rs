//! Builds the kernel programs (`lb-ebpf`), for `cargo xtask build-ebpf` and for the agent's build
//! script.
//!
//! It needs a machine with rustup and a C compiler. It finds a toolchain that can compile for BPF
//! ([`toolchain`]), builds a `bpf-linker` with the same LLVM once ([`linker`]), compiles, and
//! checks that the agent can load the object ([`check`]). Its results stay in `target/`. An object
//! is built again only after one of its inputs has changed ([`fingerprint`]).

mod build;
pub mod check;
mod command;
mod constants;
mod error;
mod fingerprint;
mod folder;
mod linker;
mod lock;
pub mod progress;
mod strip;
pub mod toolchain;

pub use build::{Build, BuiltObject, Programs};
pub use command::{without_cargo_environment, without_package};
pub use constants::{TARGET, VARIABLES};
pub use error::BuildError;
pub use toolchain::Toolchain;
