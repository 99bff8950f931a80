//! `cargo xtask test`: everything that must hold, in parts that can be selected, and a summary that says what was run.

use std::{
    ops::Add,
    process::Command,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};
use clap::ValueEnum;

use crate::{
    build_ebpf,
    k8s::{self, Program},
    process::{cargo, is_root, run_and_read},
};

#[derive(clap::Args)]
pub struct Options {
    /// Run these parts only
    #[arg(long, value_enum, value_delimiter = ',', value_name = "PART")]
    only: Vec<Part>,
    /// Run all but these parts
    #[arg(long, value_enum, value_delimiter = ',', value_name = "PART", conflicts_with = "only")]
    skip: Vec<Part>,
    /// Run the tests whose name contains this, in the parts that have named tests
    filter: Option<String>,
    /// Passed on to the test programs (such as `--nocapture`)
    #[arg(last = true)]
    test_args: Vec<String>,
}

impl Options {
    /// Those of `cargo xtask tidy`.
    pub fn tidy() -> Self {
        Self { only: vec![Part::Tidy], skip: Vec::new(), filter: None, test_args: Vec::new() }
    }
}

/// In the order in which they run: the quick ones first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Part {
    /// Formatting
    Fmt,
    /// Lints of the compiler and clippy, warnings denied; the kernel programs with their own toolchain
    Clippy,
    /// Rules of this repository: links, documentation of maps, manifests
    Tidy,
    /// Unit and property tests
    Unit,
    /// Packets through the loaded kernel programs (needs root)
    Packets,
    /// Real connections in network namespaces (needs root)
    E2e,
    /// The agent against a real Kubernetes API server (needs root, and Go and etcd to build and run it)
    Cluster,
}

impl Part {
    fn name(self) -> String {
        self.to_possible_value().map(|value| value.get_name().to_owned()).unwrap_or_default()
    }

    fn needs_root(self) -> bool {
        matches!(self, Self::Packets | Self::E2e | Self::Cluster)
    }

    fn compiles_the_agent(self) -> bool {
        self != Self::Fmt
    }

    /// Formatting and clippy pass or fail as a whole.
    fn is_one_check(self) -> bool {
        matches!(self, Self::Fmt | Self::Clippy)
    }
}

/// What a part came to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Tally {
    passed: u64,
    failed: u64,
    /// Why it failed, when that is not in the tests' own output.
    note: Option<String>,
}

impl Tally {
    fn failed(note: impl ToString) -> Self {
        Self { passed: 0, failed: 1, note: Some(note.to_string()) }
    }

    /// Adds what a test program says at its end: `test result: ok. 6 passed; 0 failed; 0 ignored; …`.
    fn read(&mut self, line: &str) {
        let Some(result) = line.strip_prefix("test result: ") else { return };
        for item in result.split(['.', ';']) {
            let mut words = item.split_whitespace();
            if let (Some(Ok(count)), Some(what)) = (words.next().map(str::parse::<u64>), words.next()) {
                match what {
                    "passed" => self.passed += count,
                    "failed" => self.failed += count,
                    _ => {}
                }
            }
        }
    }
}

impl Add for Tally {
    type Output = Self;

    fn add(self, other: Self) -> Self {
        Self {
            passed: self.passed + other.passed,
            failed: self.failed + other.failed,
            note: self.note.or(other.note),
        }
    }
}

pub fn run(options: &Options) -> Result<()> {
    let parts: Vec<Part> = Part::value_variants()
        .iter()
        .copied()
        .filter(|part| options.only.is_empty() || options.only.contains(part))
        .filter(|part| !options.skip.contains(part))
        // With a filter, what has no named tests is not asked for unless it is named.
        .filter(|part| options.filter.is_none() || !part.is_one_check() || options.only.contains(part))
        .collect();

    if parts.iter().any(|part| part.compiles_the_agent()) {
        build_ebpf::ensure()?;
    }
    let mut results = Vec::new();
    for part in parts {
        println!("\n── {} ──", part.name());
        let start = Instant::now();
        let tally = run_part(part, options).unwrap_or_else(|error| Tally::failed(format!("{error:#}")));
        results.push((part.name(), tally, start.elapsed()));
    }
    println!("\n{}", summary(&results));
    if results.iter().any(|(_, tally, _)| tally.failed > 0) {
        std::process::exit(1);
    }
    Ok(())
}

fn run_part(part: Part, options: &Options) -> Result<Tally> {
    if part.needs_root() && !is_root() {
        bail!(
            "needs root to load kernel programs and make network namespaces: run `sudo -E cargo xtask test`"
        );
    }
    match part {
        Part::Fmt => check(&mut [cargo().args(["fmt", "--all", "--", "--check"])]),
        Part::Clippy => clippy(),
        Part::Tidy => tests(cargo().args(["test", "-p", "xtask", "--test", "tidy"]), options),
        Part::Unit => {
            // Of these two, the tests beside the units are parts of their own.
            let has_own_parts = ["lb-testbed", "xtask"];
            let mut units = cargo();
            units.args(["test", "--no-fail-fast", "--workspace", "--tests", "--exclude", "lb-ebpf"]);
            units.args(has_own_parts.iter().flat_map(|package| ["--exclude", package]));
            let mut rest = cargo();
            rest.args(["test", "--no-fail-fast", "--lib", "--bins"]);
            rest.args(has_own_parts.iter().flat_map(|package| ["-p", package]));
            Ok(tests(&mut units, options)? + tests(&mut rest, options)?)
        }
        Part::Packets => tests(cargo().args(["test", "-p", "lb-testbed", "--test", "packets"]), options),
        Part::E2e => {
            // The testbed's own tests first: what they find broken explains every other failure.
            let parts = ["testbed", "kube_proxy", "e2e"].map(|part| ["--test", part]);
            let mut command = cargo();
            command.args(["test", "-p", "lb-testbed", "--no-fail-fast"]).args(parts.as_flattened());
            tests(&mut command, options)
        }
        Part::Cluster => {
            let bin = k8s::provide(&[Program::KubeApiserver])?;
            let args = ["test", "-p", "lb-testbed", "--test", "cluster"];
            tests(cargo().args(args).env("SLUICE_K8S_BIN", bin), options)
        }
    }
}

fn clippy() -> Result<Tally> {
    let toolchain = lb_build::toolchain::find()?;
    if !toolchain.has_subcommand("clippy") {
        bail!("{0} has no clippy\nremedy: `rustup component add clippy --toolchain {0}`", toolchain.name);
    }
    let mut kernel_programs = toolchain.cargo();
    kernel_programs
        .current_dir(crate::workspace())
        // The profile of the real build, so that what was compiled for it is used again.
        .args([
            "clippy",
            "-p",
            "lb-ebpf",
            "--no-deps",
            "--profile",
            "ebpf",
            "--target",
            lb_build::TARGET,
            "-Z",
            "build-std=core",
        ])
        .arg("--target-dir")
        .arg(crate::target().join("ebpf"))
        .args(["--", "-D", "warnings"]);
    check(&mut [
        cargo().args([
            "clippy",
            "--workspace",
            "--exclude",
            "lb-ebpf",
            "--all-targets",
            "--",
            "-D",
            "warnings",
        ]),
        &mut kernel_programs,
    ])
}

/// Commands that pass or fail as a whole.
fn check(commands: &mut [&mut Command]) -> Result<Tally> {
    let mut tally = Tally::default();
    for command in commands {
        let program = command.get_program().to_string_lossy().into_owned();
        if command.status().with_context(|| format!("cannot run {program}"))?.success() {
            tally.passed += 1;
        } else {
            tally.failed += 1;
        }
    }
    Ok(tally)
}

fn tests(command: &mut Command, options: &Options) -> Result<Tally> {
    command.arg("--").args(&options.filter).args(&options.test_args);
    let mut tally = Tally::default();
    let succeeded = run_and_read(command, |line| tally.read(line))?;
    if !succeeded && tally.failed == 0 {
        // It did not compile, or a test program died before it could say so.
        tally.failed = 1;
        tally.note = Some("did not come to an end, see above".to_owned());
    } else if tally == Tally::default() && options.filter.is_none() {
        return Ok(Tally::failed("ran no test"));
    }
    Ok(tally)
}

fn summary(results: &[(String, Tally, Duration)]) -> String {
    let mut text = format!("{:<10}{:>8}{:>8}{:>10}\n", "part", "passed", "failed", "seconds");
    for (name, tally, time) in results {
        let note = tally.note.as_ref().map(|note| format!("  {note}")).unwrap_or_default();
        let seconds = time.as_secs_f64();
        text.push_str(&format!("{name:<10}{:>8}{:>8}{seconds:>10.1}{note}\n", tally.passed, tally.failed));
    }
    let sum = |count: fn(&Tally) -> u64| results.iter().map(|(_, tally, _)| count(tally)).sum::<u64>();
    text.push_str(&format!("\n{} passed, {} failed", sum(|tally| tally.passed), sum(|tally| tally.failed)));
    text
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::{Tally, summary};

    #[test]
    fn the_results_of_several_test_programs_add_up() {
        let mut tally = Tally::default();
        for line in [
            "running 6 tests",
            "test a ... ok",
            "test result: ok. 6 passed; 0 failed; 0 ignored; 0 measured; 2 filtered out; finished in 0.01s",
            "test result: FAILED. 3 passed; 2 failed; 0 ignored; 0 measured; 0 filtered out; finished in 1.51s",
        ] {
            tally.read(line);
        }
        assert_eq!(tally, Tally { passed: 9, failed: 2, note: None });
    }

    #[test]
    fn the_last_line_of_the_summary_counts_everything() {
        let results = [
            ("unit".to_owned(), Tally { passed: 9, failed: 2, note: None }, Duration::from_millis(1500)),
            ("e2e".to_owned(), Tally::failed("needs root"), Duration::ZERO),
        ];
        assert_eq!(
            summary(&results),
            "part        passed  failed   seconds\n\
             unit             9       2       1.5\n\
             e2e              0       1       0.0  needs root\n\
             \n\
             9 passed, 3 failed"
        );
    }
}
