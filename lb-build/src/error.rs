//! Reasons why the kernel programs cannot be built.

use std::{
    io,
    path::{Path, PathBuf},
};

/// Each message names the action that failed, the reason and the remedy.
#[derive(Debug, thiserror::Error)]
pub enum BuildError {
    #[error(
        "no Rust toolchain can compile the kernel programs:\n{}\n\
         remedy: `rustup toolchain install nightly --component rust-src` (needs the network once)",
        list(.reasons)
    )]
    NoToolchain { reasons: Vec<String> },

    #[error(
        "cannot build bpf-linker {version}: {reason}\n{output}\n\
         remedy: it is fetched from crates.io and needs the network once, and a C compiler to link with (Debian: \
         `apt-get install gcc libc6-dev`); or name one built for LLVM {llvm} in SLUICE_BPF_LINKER"
    )]
    Linker { version: &'static str, llvm: String, reason: String, output: String },

    #[error("SLUICE_BPF_LINKER is {}, which is not a file\nremedy: correct or unset it", .0.display())]
    NamedLinkerMissing(PathBuf),

    #[error("cannot run {program}: {source}\nremedy: install it or add its folder to PATH")]
    Spawn { program: String, source: io::Error },

    #[error(
        "{command} failed ({status}), see its messages above\n\
         remedy: correct the errors; if crates could not be downloaded, run `cargo fetch` once with the network"
    )]
    Failed { command: String, status: String },

    #[error("cannot {action} {}: {source}", .path.display())]
    File { action: &'static str, path: PathBuf, source: io::Error },

    #[error("the agent could not load {}:\n{}", .object.display(), list(.problems))]
    Object { object: PathBuf, problems: Vec<String> },
}

/// Returns one line for each item.
fn list(items: &[String]) -> String {
    items.iter().map(|item| format!("  - {item}")).collect::<Vec<_>>().join("\n")
}

impl BuildError {
    pub(crate) fn file(action: &'static str, path: &Path, source: io::Error) -> Self {
        Self::File { action, path: path.to_owned(), source }
    }
}
