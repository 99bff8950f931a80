//! `cargo xtask bench agent`: builds `lb` optimised and a real API server, and runs the benchmark
//! in `lb-testbed/benches/agent`, which describes what it measures.

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

/// The sizes of the targets, as Services and endpoints of each.
const SIZES: [(u32, u32); 2] = [(10_000, 10), (5_000, 50)];
const QUICK_SIZES: [(u32, u32); 2] = [(1_000, 10), (500, 50)];
const PROGRAMS: [KubernetesProgram; 1] = [KubernetesProgram::KubeApiserver];

#[derive(clap::Args)]
pub struct Options {
    /// Number of Services (default: 10,000 with 10 endpoints each, and 5,000 with 50 each)
    #[arg(long, requires = "endpoints")]
    services: Option<u32>,
    /// Number of endpoints of each Service
    #[arg(long, requires = "services")]
    endpoints: Option<u32>,
    /// Number of starts without pinned maps; the result is their median
    #[arg(long, default_value_t = 5)]
    starts: u32,
    /// Seconds without changes, for the CPU time of an idle agent
    #[arg(long, default_value_t = 60)]
    idle: u32,
    /// Number of changes that are measured under each load
    #[arg(long, default_value_t = 500)]
    changes: u32,
    /// Changes a second of 100 other Services
    #[arg(long, default_value_t = 100)]
    churn: u32,
    /// Connections in the flow table
    #[arg(long, default_value_t = 1_000_000)]
    flows: u32,
    /// Small sizes, and few rounds and changes: shows in minutes whether everything works
    #[arg(long, conflicts_with_all = ["services", "starts", "idle", "changes", "flows"])]
    quick: bool,
    /// Format of the output
    #[arg(long, short, value_enum, default_value = "table")]
    output: Output,
    /// Write the table into docs/benchmarks.md
    #[arg(long)]
    write_docs: bool,
    #[command(flatten)]
    setup: InstallOptions,
}

pub fn run(options: &Options) -> Result<()> {
    if !is_root() {
        bail!("the benchmark creates network namespaces: run `sudo -E cargo xtask bench agent`");
    }
    if let Some(reason) = k8s::unavailable(k8s::NEWEST, &PROGRAMS) {
        bail!("{reason}");
    }
    setup::provide(&[Program::Compiler, Program::Ip, Program::Etcd].map(Need::Program), options.setup)?;
    build_ebpf::ensure()?;
    compile(cargo().args(["build", "--release", "-p", "lb-userspace", "--bin", "lb"]))?;
    let variables = [
        ("SLUICE_LB", workspace::target().join("release/lb")),
        ("SLUICE_K8S_BIN", k8s::provide(k8s::NEWEST, &PROGRAMS)?),
        // A busy machine starts an agent with 250,000 endpoints slowly. That is no failure.
        ("SLUICE_PATIENCE", "10".into()),
    ];
    let benchmark = Benchmark { name: "agent", features: "programs,control-plane" };
    run_benchmark(benchmark, arguments(options), &variables)
}

fn arguments(options: &Options) -> Vec<OsString> {
    let own = options.services.zip(options.endpoints).map(|size| vec![size]);
    let sizes = own.unwrap_or(if options.quick { QUICK_SIZES } else { SIZES }.to_vec());
    let mut arguments: Vec<OsString> = Vec::new();
    for (services, endpoints) in sizes {
        arguments.extend(["--size".into(), format!("{services}x{endpoints}").into()]);
    }
    let Options { starts, idle, changes, churn, flows, .. } = *options;
    let numbers =
        if options.quick { [2, 10, 100, churn, 50_000] } else { [starts, idle, changes, churn, flows] };
    for (name, number) in ["--starts", "--idle", "--changes", "--churn", "--flows"].into_iter().zip(numbers) {
        arguments.extend([name.into(), number.to_string().into()]);
    }
    if options.output == Output::Json {
        arguments.push("--print-json".into());
    }
    if options.write_docs {
        arguments.extend(["--docs".into(), workspace::root().join("docs/benchmarks.md").into()]);
    }
    arguments
}
