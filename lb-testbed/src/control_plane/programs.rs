//! Programs of Kubernetes that `cargo xtask k8s` has built.

use std::path::PathBuf;

use anyhow::{Result, bail};

/// Environment variable with the folder that contains the programs.
const BIN_VARIABLE: &str = "SLUICE_K8S_BIN";

/// Returns the path of the `kube-apiserver` program.
pub fn program() -> Result<PathBuf> {
    program_named("kube-apiserver", "test --only cluster")
}

/// Returns the path of a program of Kubernetes. The xtask command `task` builds it.
pub(super) fn program_named(name: &str, task: &str) -> Result<PathBuf> {
    let remedy =
        format!("run `cargo xtask {task}`, or build it with `cargo xtask k8s {name}` and set {BIN_VARIABLE}");
    let Some(folder) = std::env::var_os(BIN_VARIABLE) else {
        bail!("{BIN_VARIABLE} is not set to the folder of {name}: {remedy}");
    };
    let program = PathBuf::from(folder).join(name);
    if !program.is_file() {
        bail!("{} does not exist: {remedy}", program.display());
    }
    Ok(program)
}
