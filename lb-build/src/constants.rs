//! Names that several modules use.

/// Target of the kernel programs. It is little endian: the agent runs on little-endian machines
/// only.
pub const TARGET: &str = "bpfel-unknown-none";

/// Name of this task in its lines of progress.
pub const TASK: &str = "build-ebpf";

/// Environment variables that configure the build: the toolchain by its name in rustup, and the
/// path of a linker.
pub const VARIABLES: [&str; 2] = ["SLUICE_EBPF_TOOLCHAIN", "SLUICE_BPF_LINKER"];

pub const LINKER_VERSION: &str = "0.13.0";

/// LLVM versions that [`LINKER_VERSION`] can be built for. Each has a feature `llvm-<major>`.
pub const LINKER_LLVM_MAJORS: [&str; 3] = ["21", "22", "23"];
