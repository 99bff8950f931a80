//! `cargo xtask bench forward` and `bench connect`: builds `lb`, the programs that measure and
//! kube-proxy, and runs the benchmark in `lb-testbed/benches/forward` or `…/connect`, which
//! describes what it measures.

use std::ffi::OsString;

use anyhow::{Result, bail};

use super::run::{Benchmark, Output, run_benchmark};
use crate::{
    build_ebpf,
    k8s::{self, KubernetesProgram},
    process::{cargo, compile, is_root},
    setup::{self, InstallOptions, Need, Program},
    workspace,
};

const KUBERNETES: [KubernetesProgram; 2] = [KubernetesProgram::KubeApiserver, KubernetesProgram::KubeProxy];

#[derive(clap::Args)]
pub struct Options {
    /// Number of rounds; the result is their median
    #[arg(long, default_value_t = 7)]
    rounds: u32,
    /// One round: shows in a minute whether everything works
    #[arg(long, conflicts_with = "rounds")]
    quick: bool,
    /// Leave kube-proxy out: the first run then builds no Kubernetes programs
    #[arg(long)]
    without_kube_proxy: bool,
    /// Format of the output
    #[arg(long, short, value_enum, default_value = "table")]
    output: Output,
    /// Write the table into docs/benchmarks.md
    #[arg(long)]
    write_docs: bool,
    #[command(flatten)]
    setup: InstallOptions,
}

/// Runs a benchmark of `lb-testbed/benches`.
pub fn run(name: &'static str, options: &Options) -> Result<()> {
    if !is_root() {
        bail!("the benchmark creates network namespaces: run `sudo -E cargo xtask bench {name}`");
    }
    let mut programs = vec![Program::Compiler, Program::Ip, Program::Ethtool];
    let mut variables = Vec::new();
    if !options.without_kube_proxy {
        if let Some(reason) = k8s::unavailable(k8s::NEWEST, &KUBERNETES) {
            bail!("{reason}\nremedy: with --without-kube-proxy, it is not needed");
        }
        programs.extend([Program::Etcd, Program::Nft, Program::Iptables]);
    }
    setup::provide(&programs.into_iter().map(Need::Program).collect::<Vec<_>>(), options.setup)?;
    build_ebpf::ensure()?;
    if name == "forward" {
        variables.push(("SLUICE_BENCH_PROGRAMS", build_ebpf::for_benchmarks()?));
    }
    compile(cargo().args(["build", "--release", "-p", "lb-userspace", "--bin", "lb"]))?;
    variables.push(("SLUICE_LB", workspace::target().join("release/lb")));
    if !options.without_kube_proxy {
        variables.push(("SLUICE_K8S_BIN", k8s::provide(k8s::NEWEST, &KUBERNETES)?));
    }
    let benchmark = Benchmark { name, features: "programs,control-plane" };
    run_benchmark(benchmark, arguments(options), &variables)
}

fn arguments(options: &Options) -> Vec<OsString> {
    let rounds = if options.quick { 1 } else { options.rounds };
    let mut arguments: Vec<OsString> = vec!["--rounds".into(), rounds.to_string().into()];
    arguments.extend(options.without_kube_proxy.then(|| "--without-kube-proxy".into()));
    if options.output == Output::Json {
        arguments.push("--print-json".into());
    }
    if options.write_docs {
        arguments.extend(["--docs".into(), workspace::root().join("docs/benchmarks.md").into()]);
    }
    arguments
}
