//! Builds the programs that read `deploy/`: helm, kustomize and promtool, from their Go modules.
//! They are kept below `target/deploy/`.

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result};

use crate::{go, task, workspace};

/// A program, its package and the module that contains it. Their modules are built together, so
/// that dependencies that they share are compiled once.
struct Tool {
    name: &'static str,
    module: &'static str,
    package: &'static str,
    version: &'static str,
}

const TOOLS: [Tool; 3] = [
    Tool {
        name: "kustomize",
        module: "sigs.k8s.io/kustomize/kustomize/v5",
        package: "sigs.k8s.io/kustomize/kustomize/v5",
        version: "v5.8.1",
    },
    Tool { name: "helm", module: "helm.sh/helm/v3", package: "helm.sh/helm/v3/cmd/helm", version: "v3.22.0" },
    Tool {
        name: "promtool",
        module: "github.com/prometheus/prometheus",
        package: "github.com/prometheus/prometheus/cmd/promtool",
        version: "v0.316.0",
    },
];

/// promtool is built without the service discovery of clouds, which takes minutes to compile.
const FLAGS: [&str; 4] = ["-tags", "remove_all_sd", "-ldflags", "-s -w"];

/// Returns the reason and the remedy if [`provide`] can neither find nor build the programs.
pub fn unavailable() -> Option<String> {
    let names: Vec<_> = missing(&bin()).map(|tool| tool.name).collect();
    (!names.is_empty() && !go::is_installed())
        .then(|| format!("Go is needed to build {}\nremedy: {}", names.join(", "), go::INSTALL))
}

/// The folder has the versions in its name: other versions are built again.
fn root() -> PathBuf {
    let versions: Vec<_> = TOOLS.iter().map(|tool| format!("{}-{}", tool.name, tool.version)).collect();
    workspace::target().join("deploy").join(versions.join("-"))
}

fn bin() -> PathBuf {
    root().join("bin")
}

fn missing(bin: &Path) -> impl Iterator<Item = &'static Tool> {
    TOOLS.iter().filter(move |tool| !bin.join(tool.name).is_file())
}

/// Returns the folder with the programs. Builds those that are missing.
pub fn provide() -> Result<PathBuf> {
    let bin = bin();
    if missing(&bin).next().is_none() {
        return Ok(bin);
    }
    fs::create_dir_all(&bin).with_context(|| format!("cannot create {}", bin.display()))?;
    let lock = fs::File::create(root().join("lock"))?;
    lock.lock()?;
    let module = root().join("module");
    fs::create_dir_all(&module)?;
    fs::write(module.join("go.mod"), go_mod())?;
    for tool in missing(&bin) {
        go::report_build(task::DEPLOY, tool.name, "about a minute");
        go::build(task::DEPLOY, &module, tool.package, &FLAGS, &bin.join(tool.name))?;
    }
    Ok(bin)
}

fn go_mod() -> String {
    let requires: String = TOOLS.iter().map(|tool| format!("\t{} {}\n", tool.module, tool.version)).collect();
    format!("module sluice.test/deploy\n\ngo 1.26.0\n\nrequire (\n{requires})\n")
}
