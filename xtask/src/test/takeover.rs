//! `cargo xtask test takeover`: Sluice takes a node over from a real kube-proxy, and gives it back.

use anyhow::{Result, bail};
use clap::ValueEnum;

use super::part::Part;
use crate::{
    build_ebpf,
    k8s::{self, KubernetesProgram},
    process::{cargo, is_root},
    setup::{self, InstallOptions, Need, Program},
};

const PROGRAMS: [KubernetesProgram; 2] = [KubernetesProgram::KubeApiserver, KubernetesProgram::KubeProxy];

#[derive(clap::Args, Default)]
pub struct Options {
    /// Run with this mode of kube-proxy only
    #[arg(value_enum)]
    mode: Option<Mode>,
    #[command(flatten)]
    setup: InstallOptions,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Mode {
    Iptables,
    Nftables,
}

pub fn run(options: &Options) -> Result<()> {
    if !is_root() {
        bail!(
            "loads kernel programs and creates network namespaces: run `sudo -E cargo xtask test takeover`"
        );
    }
    if let Some(reason) = k8s::unavailable(k8s::NEWEST, &PROGRAMS) {
        bail!("{reason}");
    }
    let mut needs = Part::Cluster.needs();
    needs.extend([Program::Iptables, Program::Nft].map(Need::Program));
    setup::provide(&needs, options.setup)?;
    build_ebpf::ensure()?;
    let mut command = cargo();
    command.env("SLUICE_K8S_BIN", k8s::provide(k8s::NEWEST, &PROGRAMS)?);
    command.args(["test", "-p", "lb-testbed", "--test", "cluster", "--"]);
    let mode = options.mode.as_ref().and_then(Mode::to_possible_value);
    command.arg(mode.map_or_else(|| "takeover".to_owned(), |mode| format!("takeover::{}", mode.get_name())));
    if !command.status()?.success() {
        bail!("a takeover failed, see above");
    }
    Ok(())
}
