//! `cargo xtask …`: what is done in this workspace, in Rust instead of scripts. One file per task.

mod build_ebpf;

use std::path::Path;

use anyhow::Result;
use clap::Parser;

#[derive(Parser)]
#[command(name = "cargo xtask", about = "What is done in this workspace", max_term_width = 110)]
enum Task {
    /// Build the kernel programs (finds a toolchain and makes the linker when it is the first time)
    BuildEbpf(build_ebpf::Options),
}

fn main() -> Result<()> {
    match Task::parse() {
        Task::BuildEbpf(options) => build_ebpf::run(&options),
    }
}

/// Root folder of the workspace, wherever cargo was started from.
fn workspace() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap_or(Path::new("."))
}
