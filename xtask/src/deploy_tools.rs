//! Builds the programs that read `deploy/`: helm, kustomize and promtool, from their Go modules.
//! They are kept below `target/deploy/`.

use std::{fs, path::PathBuf};

use anyhow::Result;

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
    let programs = programs();
    let names: Vec<_> = go::missing(&root(), &programs).iter().map(|program| program.name).collect();
    (!names.is_empty() && !go::is_installed())
        .then(|| format!("Go is needed to build {}\nremedy: {}", names.join(", "), go::INSTALL))
}

fn root() -> PathBuf {
    let versions: Vec<_> = TOOLS.iter().map(|tool| format!("{}-{}", tool.name, tool.version)).collect();
    workspace::target().join("deploy").join(versions.join("-"))
}

fn programs() -> Vec<go::Program> {
    TOOLS.iter().map(|tool| go::Program { name: tool.name, package: tool.package.to_owned() }).collect()
}

/// Returns the folder with the programs. Builds those that are missing.
pub fn provide() -> Result<PathBuf> {
    let folder = go::Programs { task: task::DEPLOY, root: root(), flags: &FLAGS, takes: "about a minute" };
    folder.provide(&programs(), |module| Ok(fs::write(module.join("go.mod"), go_mod())?))
}

fn go_mod() -> String {
    let requires: String = TOOLS.iter().map(|tool| format!("\t{} {}\n", tool.module, tool.version)).collect();
    format!("module sluice.test/deploy\n\ngo 1.26.0\n\nrequire (\n{requires})\n")
}
