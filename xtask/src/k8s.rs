//! `cargo xtask k8s`: builds a real Kubernetes API server (and on request other programs) for the
//! tests from its Go modules, and keeps it below `target/k8s/`.
//!
//! A Go module cannot simply depend on Kubernetes, because the go.mod of Kubernetes replaces its
//! staging modules by folders. This task writes a module that requires Kubernetes and replaces the
//! same modules by their published versions. It builds the programs unchanged.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Stdio,
};

use anyhow::{Context as _, Result, bail};
use clap::ValueEnum;
use lb_build::progress::report;

use crate::{go, task, workspace};

/// The release that `docs/semantics.md` describes.
pub const NEWEST: &str = "1.37.2";

#[derive(clap::Args)]
pub struct Options {
    /// Programs to build
    #[arg(value_enum, default_value = "kube-apiserver")]
    programs: Vec<KubernetesProgram>,
    /// The release of Kubernetes
    #[arg(long, value_name = "VERSION", default_value = NEWEST)]
    release: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum KubernetesProgram {
    KubeApiserver,
    KubeControllerManager,
    KubeProxy,
    Kubectl,
}

impl KubernetesProgram {
    fn name(self) -> &'static str {
        match self {
            Self::KubeApiserver => "kube-apiserver",
            Self::KubeControllerManager => "kube-controller-manager",
            Self::KubeProxy => "kube-proxy",
            Self::Kubectl => "kubectl",
        }
    }
}

pub fn run(options: &Options) -> Result<()> {
    let folder = provide(&options.release, &options.programs)?;
    for program in &options.programs {
        println!("{}", folder.join(program.name()).display());
    }
    Ok(())
}

/// Returns the reason and the remedy if [`provide`] can neither find nor build these programs.
pub fn unavailable(release: &str, programs: &[KubernetesProgram]) -> Option<String> {
    (!go::missing(&root(release), &packages(programs)).is_empty() && !go::is_installed()).then(|| {
        format!("Go is needed to build the programs of Kubernetes {release}\nremedy: {}", go::INSTALL)
    })
}

fn root(release: &str) -> PathBuf {
    workspace::target().join("k8s").join(release)
}

fn packages(programs: &[KubernetesProgram]) -> Vec<go::Program> {
    let package = |name| go::Program { name, package: format!("k8s.io/kubernetes/cmd/{name}") };
    programs.iter().map(|program| package(program.name())).collect()
}

/// Returns the folder with the programs of a release. Builds those that are missing.
pub fn provide(release: &str, programs: &[KubernetesProgram]) -> Result<PathBuf> {
    let ldflags = format!("-s -w -X k8s.io/component-base/version.gitVersion=v{release}");
    let flags = ["-ldflags", &ldflags];
    let folder =
        go::Programs { task: task::K8S, root: root(release), flags: &flags, takes: "about four minutes" };
    folder.provide(&packages(programs), |module| {
        go::resolve(task::K8S, module, &packages(KubernetesProgram::value_variants()), || {
            report(task::K8S, &format!("fetching the Go modules of Kubernetes {release}"));
            let own = fs::read_to_string(download(release, module)?)
                .context("cannot read the go.mod of Kubernetes")?;
            Ok(go_mod(release, &own))
        })
    })
}

/// Downloads Kubernetes and returns the path of its go.mod in Go's cache.
fn download(release: &str, folder: &Path) -> Result<PathBuf> {
    let module = format!("k8s.io/kubernetes@v{release}");
    let output =
        go::command(folder).args(["mod", "download", "-json", &module]).stderr(Stdio::inherit()).output();
    let output = output.with_context(|| format!("cannot run `go`\nremedy: {}", go::INSTALL))?;
    let json = String::from_utf8_lossy(&output.stdout);
    let path = json.lines().find_map(|line| line.trim().strip_prefix("\"GoMod\": \"")?.strip_suffix("\","));
    match path {
        Some(path) if output.status.success() => Ok(path.into()),
        _ => bail!(
            "`go mod download {module}` failed: {json}\nremedy: connect to the network (proxy.golang.org is needed once)"
        ),
    }
}

/// Returns the go.mod of this task's module, from the `go` line and the replaced modules of
/// Kubernetes' go.mod.
fn go_mod(release: &str, kubernetes: &str) -> String {
    let minor = release.strip_prefix("1.").unwrap_or(release);
    let go = kubernetes.lines().find(|line| line.starts_with("go ")).unwrap_or("go 1.26");
    let mut text =
        format!("module sluice.test/k8s\n\n{go}\n\nrequire k8s.io/kubernetes v{release}\n\nreplace (\n");
    for line in kubernetes.lines() {
        if let Some((module, _)) = line.trim().trim_start_matches("replace ").split_once(" => ./staging/") {
            text.push_str(&format!("\t{module} => {module} v0.{minor}\n"));
        }
    }
    text.push_str(")\n");
    text
}

#[cfg(test)]
mod tests {
    use super::go_mod;

    #[test]
    fn modules_that_kubernetes_replaces_by_folders_are_replaced_by_their_releases() {
        let own = "module k8s.io/kubernetes\n\ngo 1.26.0\n\nrequire (\n\tk8s.io/api v0.0.0\n)\n\nreplace (\n\
                   \tk8s.io/api => ./staging/src/k8s.io/api\n\tk8s.io/client-go => ./staging/src/k8s.io/client-go\n)\n";
        assert_eq!(
            go_mod("1.37.2", own),
            "module sluice.test/k8s\n\ngo 1.26.0\n\nrequire k8s.io/kubernetes v1.37.2\n\nreplace (\n\
             \tk8s.io/api => k8s.io/api v0.37.2\n\tk8s.io/client-go => k8s.io/client-go v0.37.2\n)\n"
        );
    }
}
