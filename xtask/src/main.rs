//! `cargo xtask …`: the tasks of this workspace, in Rust instead of scripts. Each task has a file.

mod aarch64;
mod bench;
mod build_ebpf;
mod cargo_tools;
mod demo;
mod deploy_tools;
mod fuzz;
mod go;
mod image;
mod k8s;
mod kernels;
mod mutants;
mod process;
mod programs;
mod run;
mod setup;
mod tally;
mod task;
mod test;
mod tree;
mod workspace;

use std::process::ExitCode;

use anyhow::Result;
use clap::Parser;

#[derive(Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask", about = "Tasks of this workspace")]
enum Task {
    /// Build the kernel programs (finds a toolchain; builds the linker the first time)
    BuildEbpf(build_ebpf::Options),
    /// Build lb and run it as root: `cargo xtask run agent --manifests deploy/examples`
    Run(run::Options),
    /// Show Sluice at work: two nodes, four pods and real traffic in network namespaces, on this
    /// machine alone
    Demo(demo::DemoTask),
    /// Install what the tests need, and run them: formatting, lints, unit, packet, end-to-end and
    /// cluster tests
    Test(test::Options),
    /// Measure: the figures of docs/benchmarks.md
    #[command(subcommand)]
    Bench(bench::Bench),
    /// Plant faults into the kernel programs, one at a time, and check that a test notices each
    Mutants(mutants::Options),
    /// Send generated packets through the kernel programs and compare the results with a model
    Fuzz(fuzz::Options),
    /// Check the rules of this repository (links, documentation of maps, manifests); part of `test`
    Tidy,
    /// Build the image as an OCI layout, without a container engine
    Image(image::Options),
    /// Build the Kubernetes programs that the cluster tests need, into target/k8s
    K8s(k8s::Options),
}

fn main() -> ExitCode {
    let result = if kernels::is_guest() { kernels::guest() } else { run(Task::parse()) };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(task: Task) -> Result<()> {
    match task {
        Task::BuildEbpf(options) => build_ebpf::run(&options),
        Task::Run(options) => run::run(&options),
        Task::Demo(task) => demo::run(&task),
        Task::Test(options) => test::run(&options),
        Task::Bench(bench) => bench::run(&bench),
        Task::Tidy => test::run(&test::Options::tidy()),
        Task::Fuzz(options) => fuzz::run(&options),
        Task::Mutants(options) => mutants::run(&options),
        Task::Image(options) => image::run(&options),
        Task::K8s(options) => k8s::run(&options),
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    #[test]
    fn the_command_line_is_well_formed() {
        super::Task::command().debug_assert();
    }
}
