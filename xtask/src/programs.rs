//! Builds programs and finds them.

use std::{
    path::PathBuf,
    process::{Command, Stdio},
};

use anyhow::{Context as _, Result, ensure};

/// A program that cargo has built: its name and its path.
pub type BuiltProgram = (String, PathBuf);

/// Runs a cargo command that builds, and returns the programs.
pub fn build(cargo: &mut Command) -> Result<Vec<BuiltProgram>> {
    let output = cargo
        .arg("--message-format=json-render-diagnostics")
        .stderr(Stdio::inherit())
        .output()
        .context("cannot run cargo")?;
    ensure!(output.status.success(), "the build failed, see above");
    let messages = String::from_utf8_lossy(&output.stdout);
    let programs = messages.lines().filter_map(|line| {
        let message: serde_json::Value = serde_json::from_str(line).ok()?;
        let name = message["target"]["name"].as_str()?.to_owned();
        Some((name, message["executable"].as_str()?.into()))
    });
    Ok(programs.collect())
}

/// Returns the path of the program with this name.
pub fn path_of(programs: &[BuiltProgram], name: &str) -> Result<PathBuf> {
    let program = programs.iter().find(|(program, _)| program == name);
    program.map(|(_, path)| path.clone()).with_context(|| format!("cargo did not build {name}"))
}
