//! Programs of crates.io that are built below the target folder: cargo-deny, cargo-cyclonedx.

use std::{fs, path::PathBuf};

use anyhow::{Context as _, Result};
use lb_build::progress::{report, timed, watched};

use crate::{
    process::{cargo, command},
    workspace,
};

/// A program with the version that is built if the machine has none.
pub struct Tool {
    pub task: &'static str,
    pub name: &'static str,
    pub version: &'static str,
}

impl Tool {
    /// Returns the path of the program: that of the machine, or one below the target folder, which
    /// is built the first time. Returns `None` if it cannot be built.
    pub fn provide(&self) -> Result<Option<PathBuf>> {
        let Self { task, name, version } = *self;
        let installed = command(name).arg("--version").output();
        if installed.is_ok_and(|output| output.status.success()) {
            return Ok(Some(name.into()));
        }
        let folder = workspace::target().join("tools").join(format!("{name}-{version}"));
        let program = folder.join("bin").join(name);
        if program.is_file() {
            return Ok(Some(program));
        }
        fs::create_dir_all(&folder).with_context(|| format!("cannot create {}", folder.display()))?;
        report(task, &format!("building {name} {version} into {} (once, some minutes)", folder.display()));
        let mut install = cargo();
        install
            .args(["install", name, "--version", &format!("={version}"), "--locked", "--root"])
            .arg(&folder)
            // The programs run for seconds even without optimization; the build takes half the
            // time.
            .env("CARGO_PROFILE_RELEASE_OPT_LEVEL", "1")
            .env("CARGO_PROFILE_RELEASE_LTO", "false")
            .env("CARGO_PROFILE_RELEASE_CODEGEN_UNITS", "16");
        lb_build::without_cargo_environment(&mut install);
        let ended = timed(task, &format!("built {name}"), || watched(task, &mut install))
            .context("cannot run cargo")?;
        if let Err(failure) = ended {
            eprintln!("{failure}");
            return Ok(None);
        }
        Ok(Some(program))
    }

    /// Returns the command that a person can run if [`Self::provide`] cannot build the program.
    pub fn remedy(&self) -> String {
        format!("`cargo install {} --version {}`", self.name, self.version)
    }
}
