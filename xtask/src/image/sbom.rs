//! The list of crates in the program (CycloneDX), by cargo-cyclonedx. It lacks the crates of the
//! kernel programs: the build script of lb-datapath compiles these, so cargo does not list them as
//! dependencies.

use anyhow::{Context as _, Result, bail};
use lb_build::progress::{timed, watched};

use crate::{cargo_tools::Tool, process::command, task, tree::Tree, workspace};

const TOOL: Tool = Tool { task: task::IMAGE, name: "cargo-cyclonedx", version: "0.5.9" };

/// Returns the list for a target.
pub fn of(target: &str) -> Result<String> {
    let Some(program) = TOOL.provide()? else {
        bail!("cargo-cyclonedx could not be built, see above\nremedy: {}", TOOL.remedy());
    };
    // The program writes its output beside the manifest of each crate, so it gets a copy of the
    // sources.
    let tree = Tree::copy_to(workspace::target().join("image/sources"))?;
    let manifest = tree.root().join("lb-userspace/Cargo.toml");
    let mut cyclonedx = command(program);
    cyclonedx
        .current_dir(tree.root())
        .args(["cyclonedx", "--format", "json", "--spec-version", "1.5", "--target", target])
        .args(["--override-filename", "sbom", "--manifest-path"])
        .arg(&manifest);
    timed(task::IMAGE, "listed the crates", || watched(task::IMAGE, &mut cyclonedx))
        .context("cannot run cargo-cyclonedx")?
        .map_err(|failure| anyhow::anyhow!("cargo-cyclonedx failed: {failure}"))?;
    tree.read("lb-userspace/sbom.json")
}
