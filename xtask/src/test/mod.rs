//! `cargo xtask test`: runs every check of this repository, in parts that can be selected, and
//! prints a summary.

mod cross;
mod deny;
mod image;
mod ingress_suites;
mod miri;
mod options;
mod part;
mod releases;
mod run_tests;
mod summary;
mod takeover;

use std::time::Instant;

use anyhow::{Result, bail};

pub use self::options::Options;
use self::{
    options::Separate,
    part::Part,
    run_tests::{check, tests},
    summary::TestSummary,
};
use crate::{
    aarch64, build_ebpf, deploy_tools,
    k8s::{self, KubernetesProgram},
    kernels,
    process::{cargo, is_root, try_compile},
    setup,
    tally::Tally,
    workspace,
};

/// Returns the reason and the remedy if the part cannot run on this machine and no package
/// changes that.
fn unavailable(part: Part) -> Option<String> {
    match part {
        Part::Miri => miri::unavailable(),
        Part::Cluster => k8s::unavailable(k8s::NEWEST, &[KubernetesProgram::KubeApiserver]),
        Part::Deploy => deploy_tools::unavailable(),
        Part::Kernels => kernels::unavailable(),
        Part::Cross => aarch64::unavailable(),
        _ => None,
    }
}

/// Runs one part.
fn run_part(part: Part, options: &Options) -> Result<Tally> {
    if part.needs_root() && !is_root() {
        bail!("loads kernel programs and creates network namespaces: run `sudo -E cargo xtask test`");
    }
    match part {
        Part::Fmt => check(&mut [cargo().args(["fmt", "--all", "--", "--check"])]),
        Part::Deny => deny::run(),
        Part::Clippy => clippy(),
        Part::Tidy => {
            let tidy = ["-p", "xtask", "--no-default-features", "--test", "tidy"];
            tests(cargo(), &tidy, options)
        }
        Part::Deploy => {
            let bin = deploy_tools::provide()?;
            let mut command = cargo();
            command.env("SLUICE_DEPLOY_BIN", bin);
            tests(command, &["-p", "xtask", "--no-default-features", "--test", "deploy"], options)
        }
        Part::Unit => {
            // The integration tests of these two packages are parts of their own.
            let have_own_parts = ["lb-testbed", "xtask"];
            let mut units = vec!["--no-fail-fast", "--workspace", "--tests", "--exclude", "lb-ebpf"];
            units.extend(have_own_parts.iter().flat_map(|package| ["--exclude", package]));
            let mut rest = vec!["--no-fail-fast", "--lib", "--bins"];
            rest.extend(have_own_parts.iter().flat_map(|package| ["-p", package]));
            Ok(tests(cargo(), &units, options)? + tests(cargo(), &rest, options)?)
        }
        Part::Miri => miri::run(options),
        Part::Packets => {
            let mut packets = vec!["-p", "lb-testbed", "--test", "packets"];
            if !options.parts().contains(&Part::E2e) {
                // Without a Kubernetes client, which takes minutes to build. The part `e2e` needs
                // one anyway, and two builds take longer than one.
                packets.extend(["--no-default-features", "--features=programs"]);
            }
            tests(cargo(), &packets, options)
        }
        Part::E2e => {
            // The tests of the testbed itself come first: a failure of them explains every other
            // failure.
            let mut arguments = vec!["-p", "lb-testbed", "--no-fail-fast"];
            arguments
                .extend(["testbed", "kube_proxy", "ingress", "e2e"].iter().flat_map(|test| ["--test", test]));
            tests(cargo(), &arguments, options)
        }
        Part::Cluster => {
            let bin = k8s::provide(k8s::NEWEST, &[KubernetesProgram::KubeApiserver])?;
            let mut command = cargo();
            command.env("SLUICE_K8S_BIN", bin);
            tests(command, &["-p", "lb-testbed", "--test", "cluster"], options)
        }
        Part::Cross => cross::run(),
        Part::Kernels => kernels::smoke(),
    }
}

pub fn run(options: &Options) -> Result<()> {
    match &options.separate {
        Some(Separate::Kernels(options)) => return kernels::run(options),
        Some(Separate::IngressSuites(options)) => return ingress_suites::run(options),
        Some(Separate::Image(options)) => return image::run(options),
        Some(Separate::Takeover(options)) => return takeover::run(options),
        Some(Separate::Releases(options)) => return releases::run(options),
        None => {}
    }
    let parts = options.parts();
    let names: Vec<_> = parts.iter().map(|part| part.name()).collect();
    println!("Parts: {}.", names.join(" "));
    if !workspace::target().join("debug/lb").exists() && parts.iter().any(|part| part.compiles_the_agent()) {
        println!(
            "This is the first run: it downloads and builds some 400 crates, and a Kubernetes API server for the part \
             `cluster`.\nOn two cores it takes about an hour."
        );
    }

    let required = |part: &Part| options.require_all || options.only.contains(part);
    let unavailable: Vec<_> = parts.iter().map(|part| unavailable(*part)).collect();
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

    let mut report = TestSummary::default();
    for (part, reason) in parts.iter().zip(unavailable) {
        println!("\n── {} ──", part.name());
        let start = Instant::now();
        let tally = match reason {
            Some(reason) => Tally::skipped(reason),
            None => run_part(*part, options).unwrap_or_else(|error| Tally::failed(format!("{error:#}"))),
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
        .current_dir(workspace::root())
        // The profile of the real build, so that its compiled crates are used again.
        .args(["clippy", "-p", "lb-ebpf", "--no-deps", "--profile", "ebpf", "--target", lb_build::TARGET])
        .args(["-Z", "build-std=core", "--target-dir"])
        .arg(workspace::target().join("ebpf"))
        .args(["--", "-D", "warnings"]);
    let mut others = cargo();
    others.args(["clippy", "--workspace", "--exclude", "lb-ebpf", "--all-targets", "--", "-D", "warnings"]);
    let mut tally = Tally::default();
    for command in [&mut others, &mut kernel_programs] {
        tally.count(try_compile(command)?);
    }
    Ok(tally)
}
