//! `cargo xtask test`: runs every check of this repository, in parts that can be selected, and
//! prints a summary.

mod cross;
mod deny;
mod miri;
mod summary;

use std::{process::Command, time::Instant};

use anyhow::{Context as _, Result, bail};
use clap::ValueEnum;

use self::summary::Report;
pub use self::summary::Tally;
use crate::{
    build_ebpf,
    k8s::{self, Program},
    kernels,
    process::{cargo, is_root, run_and_read, try_compile},
    setup::{self, Component, Need},
};

#[derive(clap::Args, Default)]
#[command(args_conflicts_with_subcommands = true)]
pub struct Options {
    /// Run these parts only
    #[arg(long, value_enum, value_delimiter = ',', value_name = "PART")]
    only: Vec<Part>,
    /// Run all but these parts
    #[arg(long, value_enum, value_delimiter = ',', value_name = "PART", conflicts_with = "only")]
    skip: Vec<Part>,
    /// Fail if a part cannot run on this machine, instead of skipping it
    #[arg(long)]
    require_all: bool,
    #[command(flatten)]
    setup: setup::InstallOptions,
    /// Run the tests whose name contains this, in the parts that have named tests
    filter: Option<String>,
    /// Passed on to the test programs (such as `--nocapture`)
    #[arg(last = true)]
    test_args: Vec<String>,
    #[command(subcommand)]
    separate: Option<Separate>,
}

/// Tests with options of their own.
#[derive(clap::Subcommand)]
enum Separate {
    /// Boot other kernels in emulated machines and test there (needs root and QEMU)
    Kernels(kernels::Options),
}

impl Options {
    /// The options of `cargo xtask tidy`.
    pub fn tidy() -> Self {
        Self { only: vec![Part::Tidy], ..Self::default() }
    }

    fn parts(&self) -> Vec<Part> {
        Part::value_variants()
            .iter()
            .copied()
            .filter(|part| self.only.is_empty() || self.only.contains(part))
            .filter(|part| !self.skip.contains(part))
            // A filter selects the parts with named tests, unless --only names others.
            .filter(|part| self.filter.is_none() || !part.is_one_check() || self.only.contains(part))
            .collect()
    }
}

/// In the order in which they run: the quick parts come first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Part {
    /// Formatting
    Fmt,
    /// Licences, sources, duplicates and advisories of the crates that this workspace depends on
    Deny,
    /// Lints of the compiler and clippy, warnings denied; the kernel programs with their own
    /// toolchain
    Clippy,
    /// The agent and the kernel programs compile for aarch64 (nothing is run)
    Cross,
    /// Rules of this repository: links, documentation of maps, manifests
    Tidy,
    /// Unit and property tests
    Unit,
    /// Unit tests of the pure crates under Miri, which detects undefined behaviour (needs a
    /// nightly)
    Miri,
    /// Packets through the loaded kernel programs (needs root)
    Packets,
    /// Real connections in network namespaces (needs root)
    E2e,
    /// The agent against a real Kubernetes API server (needs root, etcd, and Go to build the
    /// server)
    Cluster,
    /// The programs load on three other kernels in emulated machines (needs root, QEMU and Debian's
    /// apt); `cargo xtask test kernels` runs cases there
    Kernels,
}

impl Part {
    pub fn name(self) -> String {
        self.to_possible_value().map(|value| value.get_name().to_owned()).unwrap_or_default()
    }

    fn needs_root(self) -> bool {
        matches!(self, Self::Packets | Self::E2e | Self::Cluster | Self::Kernels)
    }

    fn compiles_the_agent(self) -> bool {
        !matches!(self, Self::Fmt | Self::Deny | Self::Miri)
    }

    /// The part has no tests with names: it passes or fails as a whole.
    fn is_one_check(self) -> bool {
        matches!(self, Self::Fmt | Self::Deny | Self::Clippy | Self::Cross | Self::Kernels)
    }

    /// What the machine must have before this part can run.
    fn needs(self) -> Vec<Need> {
        use setup::Program::{Bpftool, Compiler, Etcd, Ethtool, Ip, Ipset, Iptables, Nft};

        let components: &[Component] = match self {
            Self::Fmt => &[Component::Rustfmt],
            Self::Clippy => &[Component::Clippy, Component::KernelClippy, Component::KernelRustSrc],
            Self::Deny | Self::Miri => &[],
            Self::Cross
            | Self::Tidy
            | Self::Unit
            | Self::Packets
            | Self::E2e
            | Self::Cluster
            | Self::Kernels => &[Component::KernelRustSrc],
        };
        let programs: &[setup::Program] = match self {
            Self::Fmt => &[],
            Self::Deny | Self::Clippy | Self::Tidy | Self::Unit | Self::Miri => &[Compiler],
            Self::Cross => &[Compiler, setup::Program::Aarch64Compiler],
            Self::Packets => &[Compiler, Ip],
            Self::E2e => &[Compiler, Ip, Ethtool, Bpftool, Iptables, Nft, Ipset],
            Self::Cluster => &[Compiler, Ip, Ethtool, Etcd],
            Self::Kernels => &kernels::PROGRAMS,
        };
        let components = components.iter().copied().map(Need::Component);
        components.chain(programs.iter().copied().map(Need::Program)).collect()
    }

    /// Returns the reason and the remedy if the part cannot run on this machine and no package
    /// changes that.
    fn unavailable(self) -> Option<String> {
        match self {
            Self::Miri => miri::unavailable(),
            Self::Cluster => k8s::unavailable(&[Program::KubeApiserver]),
            Self::Kernels => kernels::unavailable(),
            Self::Cross => cross::unavailable(),
            _ => None,
        }
    }

    fn run(self, options: &Options) -> Result<Tally> {
        if self.needs_root() && !is_root() {
            bail!("loads kernel programs and creates network namespaces: run `sudo -E cargo xtask test`");
        }
        match self {
            Self::Fmt => check(&mut [cargo().args(["fmt", "--all", "--", "--check"])]),
            Self::Deny => deny::run(),
            Self::Clippy => clippy(),
            Self::Tidy => {
                let tidy = ["-p", "xtask", "--no-default-features", "--test", "tidy"];
                tests(cargo(), &tidy, options)
            }
            Self::Unit => {
                // The integration tests of these two packages are parts of their own.
                let have_own_parts = ["lb-testbed", "xtask"];
                let mut units = vec!["--no-fail-fast", "--workspace", "--tests", "--exclude", "lb-ebpf"];
                units.extend(have_own_parts.iter().flat_map(|package| ["--exclude", package]));
                let mut rest = vec!["--no-fail-fast", "--lib", "--bins"];
                rest.extend(have_own_parts.iter().flat_map(|package| ["-p", package]));
                Ok(tests(cargo(), &units, options)? + tests(cargo(), &rest, options)?)
            }
            Self::Miri => miri::run(options),
            Self::Packets => tests(cargo(), &["-p", "lb-testbed", "--test", "packets"], options),
            Self::E2e => {
                // The tests of the testbed itself come first: what they find broken explains every
                // other failure.
                let mut arguments = vec!["-p", "lb-testbed", "--no-fail-fast"];
                arguments.extend(["testbed", "kube_proxy", "e2e"].iter().flat_map(|test| ["--test", test]));
                tests(cargo(), &arguments, options)
            }
            Self::Cluster => {
                let bin = k8s::provide(&[Program::KubeApiserver])?;
                let mut command = cargo();
                command.env("SLUICE_K8S_BIN", bin);
                tests(command, &["-p", "lb-testbed", "--test", "cluster"], options)
            }
            Self::Cross => cross::run(),
            Self::Kernels => kernels::loads(),
        }
    }
}

pub fn run(options: &Options) -> Result<()> {
    if let Some(Separate::Kernels(options)) = &options.separate {
        return kernels::run(options);
    }
    let parts = options.parts();
    let names: Vec<_> = parts.iter().map(|part| part.name()).collect();
    println!("Parts: {}.", names.join(" "));
    if !crate::target().join("debug/lb").exists() && parts.iter().any(|part| part.compiles_the_agent()) {
        println!(
            "This is the first run: it downloads and builds some 400 crates, and a Kubernetes API server for the part \
             `cluster`.\nOn two cores it takes about half an hour."
        );
    }

    let required = |part: &Part| options.require_all || options.only.contains(part);
    let unavailable: Vec<_> = parts.iter().map(|part| part.unavailable()).collect();
    for (part, reason) in parts.iter().zip(&unavailable) {
        if let Some(reason) = reason
            && required(part)
        {
            bail!("the part `{}` cannot run: {reason}", part.name());
        }
    }
    let can_run = parts.iter().zip(&unavailable).filter(|(_, reason)| reason.is_none());
    let needs: Vec<_> = can_run.flat_map(|(part, _)| part.needs()).collect();
    setup::provide(&needs, options.setup)?;
    if parts.iter().any(|part| part.compiles_the_agent()) {
        build_ebpf::ensure()?;
    }

    let mut report = Report::default();
    for (part, reason) in parts.iter().zip(unavailable) {
        println!("\n── {} ──", part.name());
        let start = Instant::now();
        let tally = match reason {
            Some(reason) => Tally::skipped(reason),
            None => part.run(options).unwrap_or_else(|error| Tally::failed(format!("{error:#}"))),
        };
        let tally = if required(part) { tally.require() } else { tally };
        report.add(part.name(), tally, start.elapsed());
    }
    println!("\n{report}");
    if report.has_failed() {
        std::process::exit(1);
    }
    Ok(())
}

fn clippy() -> Result<Tally> {
    let mut kernel_programs = lb_build::toolchain::find()?.cargo();
    kernel_programs
        .current_dir(crate::workspace())
        // The profile of the real build, so that its compiled crates are used again.
        .args(["clippy", "-p", "lb-ebpf", "--no-deps", "--profile", "ebpf", "--target", lb_build::TARGET])
        .args(["-Z", "build-std=core", "--target-dir"])
        .arg(crate::target().join("ebpf"))
        .args(["--", "-D", "warnings"]);
    let mut others = cargo();
    others.args(["clippy", "--workspace", "--exclude", "lb-ebpf", "--all-targets", "--", "-D", "warnings"]);
    let mut tally = Tally::default();
    for command in [&mut others, &mut kernel_programs] {
        tally.count(try_compile(command)?);
    }
    Ok(tally)
}

/// Runs commands that each pass or fail as a whole.
fn check(commands: &mut [&mut Command]) -> Result<Tally> {
    let mut tally = Tally::default();
    for command in commands {
        let program = command.get_program().to_string_lossy().into_owned();
        let status = command.status().with_context(|| format!("cannot run {program}"))?;
        tally.count(status.success());
    }
    Ok(tally)
}

/// Builds and runs tests: `cargo test` with these arguments.
fn tests(mut cargo: Command, arguments: &[&str], options: &Options) -> Result<Tally> {
    let mut build = self::cargo();
    build.arg("test").args(arguments).arg("--no-run");
    if !try_compile(&mut build)? {
        return Ok(Tally::failed("the tests do not compile, see above"));
    }
    cargo.arg("test").args(arguments).arg("--").args(&options.filter).args(&options.test_args);
    count_tests(&mut cargo, options)
}

/// Runs a command that prints the results of test programs, and counts them.
fn count_tests(command: &mut Command, options: &Options) -> Result<Tally> {
    let mut tally = Tally::default();
    let succeeded = run_and_read(command, |line| tally.read(line))?;
    if !succeeded && tally.has_no_failure() {
        // A test program died before it printed its results.
        return Ok(tally + Tally::failed("a test program ended without results, see above"));
    }
    if tally.is_empty() && options.filter.is_none() {
        return Ok(Tally::failed("no test ran"));
    }
    Ok(tally)
}
