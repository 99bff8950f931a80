//! `cargo xtask test releases`: the part `cluster` with older releases of Kubernetes.

use anyhow::{Result, bail};
use lb_build::progress::report;

use super::part::Part;
use crate::{
    build_ebpf,
    k8s::{self, KubernetesProgram},
    process::{cargo, is_root},
    setup::{self, InstallOptions},
    task,
};

/// The release that runs by default: the first one with the field selector `spec.clusterIP`. It has
/// no ServiceCIDRs and no streaming lists.
const OLDER: &str = "1.31.14";

const PROGRAMS: [KubernetesProgram; 1] = [KubernetesProgram::KubeApiserver];

#[derive(clap::Args, Default)]
pub struct Options {
    /// Releases of Kubernetes
    #[arg(value_name = "VERSION", default_value = OLDER)]
    releases: Vec<String>,
    /// Run the cases whose name contains this
    #[arg(long, value_name = "TEXT")]
    case: Option<String>,
    #[command(flatten)]
    setup: InstallOptions,
}

pub fn run(options: &Options) -> Result<()> {
    if !is_root() {
        bail!(
            "loads kernel programs and creates network namespaces: run `sudo -E cargo xtask test releases`"
        );
    }
    if let Some(reason) = options.releases.iter().find_map(|release| k8s::unavailable(release, &PROGRAMS)) {
        bail!("{reason}");
    }
    setup::provide(&Part::Cluster.needs(), options.setup)?;
    build_ebpf::ensure()?;
    let mut failed = Vec::new();
    for release in &options.releases {
        let bin = k8s::provide(release, &PROGRAMS)?;
        report(task::K8S, &format!("testing with Kubernetes {release}"));
        let mut command = cargo();
        command.env("SLUICE_K8S_BIN", bin);
        command.args(["test", "-p", "lb-testbed", "--test", "cluster", "--"]).args(&options.case);
        if !command.status()?.success() {
            failed.push(release.as_str());
        }
    }
    if !failed.is_empty() {
        bail!("cases failed with Kubernetes {}, see above", failed.join(" and "));
    }
    Ok(())
}
