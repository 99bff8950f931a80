//! `cargo xtask test kernels`: Sluice on kernels other than this machine's.
//!
//! For each kernel, the task fetches Debian's package ([`debian`]) and boots it in an emulated
//! machine ([`vm`]). There, this program ([`guest`]) runs test programs that were built here. A
//! table shows which programs load, how many instructions the verifier looked at, and which tests
//! pass. `--write` puts the table into `docs/kernels.md`. All files are kept below
//! `target/kernels/`.

mod debian;
mod guest;
mod image;
mod table;
mod vm;

use std::{
    fs,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context as _, Result, bail, ensure};
use lb_build::progress::report;

pub use self::guest::{is_guest, main as guest};
use self::{
    debian::NEWEST,
    guest::{GuestTask, Step},
    table::{LISTING, Row},
    vm::Qemu,
};
use crate::{
    process::{cargo, is_installed, is_root},
    programs,
    setup::{self, Component, InstallOptions, Need},
    tally::Tally,
    task, workspace,
};

/// The step that runs a few cases of every kind.
const SMOKE: &str = "smoke";

/// Series that are tested by default and in CI: the oldest kernel, the most common one, and the
/// newest.
const DEFAULT: [&str; 3] = ["5.10", "6.1", NEWEST];
/// Series that `--all-kernels` tests.
const ALL: [&str; 5] = ["5.10", "6.1", "6.12", "6.18", NEWEST];

/// Factor by which the time limits of the testbed are longer in a guest.
const PATIENCE: &str = "4";

/// Modules of the tests that no kernel loads on demand.
const LATE_MODULES: [&str; 2] = ["tun", "sctp"];

/// Programs that the tests need in addition to a toolchain.
pub const PROGRAMS: [setup::Program; 11] = [
    setup::Program::Compiler,
    setup::Program::Ip,
    setup::Program::Ethtool,
    setup::Program::Bpftool,
    setup::Program::Nft,
    setup::Program::Qemu,
    setup::Program::Depmod,
    setup::Program::Strip,
    setup::Program::Xz,
    setup::Program::Zstd,
    setup::Program::Lz4,
];

#[derive(clap::Args, Default)]
pub struct Options {
    /// Test these series only (`5.10`, `6.1`, …, `newest`)
    #[arg(long, value_delimiter = ',', value_name = "SERIES")]
    only: Vec<String>,
    /// Test all series that Debian has, not only those of CI
    #[arg(long, conflicts_with = "only")]
    all_kernels: bool,
    /// Load the programs only, and run no case
    #[arg(long, conflicts_with = "all_cases")]
    load_only: bool,
    /// Run all packet cases, all end-to-end cases on routed underlays, and those about VLAN
    /// devices, bonds and bridges, not only the smoke test
    #[arg(long)]
    all_cases: bool,
    /// Run these end-to-end cases in place of the smoke test: a part of their names, `devices` or
    /// `smoke`
    #[arg(long, value_name = "FILTER", conflicts_with_all = ["all_cases", "load_only"])]
    cases: Option<String>,
    /// Boot the kernels locked down (kernel_lockdown(7))
    #[arg(long, value_name = "LEVEL", value_parser = ["integrity", "confidentiality"])]
    lockdown: Option<String>,
    /// Fetch the newest kernel of each series, even if one is there
    #[arg(long)]
    refresh: bool,
    /// Write the table into docs/kernels.md
    #[arg(long)]
    write: bool,
    #[command(flatten)]
    setup: InstallOptions,
    /// Run this in the guests in place of the tests, with its arguments
    #[arg(last = true, value_name = "COMMAND")]
    command: Vec<String>,
}

/// Returns the reason and the remedy if this machine cannot boot other kernels, and no package
/// changes that.
pub fn unavailable() -> Option<String> {
    if !cfg!(target_arch = "x86_64") {
        return Some("only x86-64 is emulated".to_owned());
    }
    (!is_installed("apt-get")).then(|| "kernels are fetched with apt-get\nremedy: use Debian".to_owned())
}

/// Runs the test of CI on three kernels: the programs load within their limits, and the smoke test
/// passes.
pub fn smoke() -> Result<Tally> {
    test(&Options::default())
}

pub fn run(options: &Options) -> Result<()> {
    if let Some(reason) = unavailable() {
        bail!("{reason}");
    }
    setup::provide(&needs(), options.setup)?;
    let tally = test(options)?;
    if tally.failed > 0 {
        bail!("{} passed, {} failed", tally.passed, tally.failed);
    }
    println!("{} passed", tally.passed);
    Ok(())
}

fn test(options: &Options) -> Result<Tally> {
    ensure!(
        is_root(),
        "needs root to share the file system with the guest: run `sudo -E cargo xtask test kernels`"
    );
    let cache = workspace::target().join("kernels");
    fs::create_dir_all(&cache).with_context(|| format!("cannot create {}", cache.display()))?;
    // The lock keeps two runs from using the same files.
    let lock = fs::File::create(cache.join("lock"))?;
    lock.lock()?;
    let qemu = Qemu::provide(&cache)?;
    let steps = if options.command.is_empty() { steps(options, &cache)? } else { given(&options.command) };
    let series: Vec<&str> = match (options.only.as_slice(), options.all_kernels) {
        ([], false) => DEFAULT.to_vec(),
        ([], true) => ALL.to_vec(),
        (only, _) => only.iter().map(String::as_str).collect(),
    };
    let mut tally = Tally::default();
    let mut rows = Vec::new();
    for series in series {
        let kernel = debian::provide(&cache, series, options.refresh)?;
        report(task::KERNELS, &format!("Linux {}", kernel.release));
        let task = GuestTask {
            release: kernel.release.clone(),
            modules: kernel.modules(),
            early_modules: Vec::new(),
            late_modules: LATE_MODULES.map(str::to_owned).to_vec(),
            folder: workspace::root().to_owned(),
            lockdown: options.lockdown.clone(),
            steps: steps.clone(),
        };
        let limit = Duration::from_secs(60 + steps.iter().map(|step| step.limit).sum::<u64>());
        let run = vm::run(&qemu, &kernel, &task, &cache.join("runs").join(series), limit)?;
        if let Some(trouble) = &run.trouble {
            println!("{trouble}");
            tally.failed += 1;
        }
        if options.command.is_empty() {
            let row = Row::read(&kernel.release, series, &run);
            tally = tally + row.tally();
            rows.push(row);
        } else if run.steps.iter().any(|step| step.code != Some(0)) {
            tally.failed += 1;
        }
    }
    if options.command.is_empty() {
        let limits = table::limits()?;
        for problem in table::excesses(&rows, &limits).into_iter().chain(table::shortfalls(&rows)) {
            println!("{problem}");
            tally.failed += 1;
        }
        let table = table::render(&rows);
        println!("{table}");
        if options.write {
            table::write(&table)?;
        }
    }
    Ok(tally)
}

/// Returns the programs and components that the machine must have.
fn needs() -> Vec<Need> {
    let programs = PROGRAMS.map(Need::Program);
    programs.into_iter().chain([Need::Component(Component::KernelRustSrc)]).collect()
}

/// Returns the steps that each guest runs.
fn steps(options: &Options, cache: &Path) -> Result<Vec<Step>> {
    let built = Built::new()?.copied(&cache.join("programs"))?;
    let mut steps = vec![step(LISTING, &built.tool, &["programs"], 300, &built)];
    if let Some(filter) = &options.cases {
        steps.push(step(filter, &built.e2e, &[filter], 2 * 3600, &built));
    } else if options.all_cases {
        steps.push(step("packets", &built.packets, &[], 3600, &built));
        steps.push(step("devices", &built.e2e, &["devices"], 3600, &built));
        steps.push(step("e2e", &built.e2e, &["routed"], 4 * 3600, &built));
    } else if !options.load_only {
        steps.push(step(SMOKE, &built.e2e, &["smoke"], 1800, &built));
    }
    Ok(steps)
}

fn step(name: &str, program: &Path, arguments: &[&str], limit: u64, built: &Built) -> Step {
    Step {
        name: name.to_owned(),
        program: program.to_owned(),
        arguments: arguments.iter().map(ToString::to_string).collect(),
        environment: vec![
            ("SLUICE_LB".to_owned(), built.lb.display().to_string()),
            ("SLUICE_TESTBED".to_owned(), built.tool.display().to_string()),
            ("SLUICE_PATIENCE".to_owned(), PATIENCE.to_owned()),
        ],
        limit,
    }
}

/// Returns the given command as the only step.
fn given(command: &[String]) -> Vec<Step> {
    let (program, arguments) = command.split_first().expect("the caller has looked");
    vec![Step {
        name: "command".to_owned(),
        program: program.into(),
        arguments: arguments.to_vec(),
        environment: vec![("SLUICE_PATIENCE".to_owned(), PATIENCE.to_owned())],
        limit: 3600,
    }]
}

/// The programs that guests run. They are built on the host, and the guest uses the same paths.
struct Built {
    lb: PathBuf,
    tool: PathBuf,
    packets: PathBuf,
    e2e: PathBuf,
}

impl Built {
    fn new() -> Result<Self> {
        let agent = programs::build(cargo().args(["build", "-p", "lb-userspace", "--bin", "lb"]))?;
        let mut tests = cargo();
        tests.args(["test", "--no-run", "-p", "lb-testbed", "--test", "packets", "--test", "e2e"]);
        let tests = programs::build(&mut tests)?;
        Ok(Self {
            lb: programs::path_of(&agent, "lb")?,
            tool: programs::path_of(&tests, "lb-testbed")?,
            packets: programs::path_of(&tests, "packets")?,
            e2e: programs::path_of(&tests, "e2e")?,
        })
    }

    /// Copies the programs to a folder: another build must not replace them while a guest runs.
    fn copied(self, folder: &Path) -> Result<Self> {
        fs::create_dir_all(folder)?;
        let copy = |path: PathBuf, name: &str| {
            let target = folder.join(name);
            fs::copy(&path, &target).with_context(|| format!("cannot copy {}", path.display()))?;
            Ok::<_, anyhow::Error>(target)
        };
        Ok(Self {
            lb: copy(self.lb, "lb")?,
            tool: copy(self.tool, "lb-testbed")?,
            packets: copy(self.packets, "packets")?,
            e2e: copy(self.e2e, "e2e")?,
        })
    }
}
