//! `cargo xtask test kernels`: Sluice on kernels other than this machine's.
//!
//! For each kernel, the task fetches Debian's package ([`debian`]) and boots it in an emulated
//! machine ([`vm`]). There, this program ([`guest`]) runs test programs that were built here. A
//! table shows which programs load, how many instructions the verifier looked at, and which tests
//! pass. `--write` puts the table into `docs/kernels.md`. All files are kept below
//! `target/kernels/`.

mod arch;
mod boots;
mod debian;
mod guest;
mod image;
mod outcome;
mod table;
mod vm;

use std::{
    collections::HashSet,
    fs,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};
use lb_build::progress::report;

use self::{
    arch::Arch,
    boots::{Extent, Group},
    debian::NEWEST,
    guest::{GuestTask, Step, Without},
    image::Init,
    table::{LISTING, Row},
    vm::{Files, Guest, Machine, Qemu},
};
pub use self::{
    debian::{http_servers, testssl},
    guest::{is_guest, main as guest},
};
use crate::{
    aarch64,
    process::{cargo, is_installed, is_root},
    programs,
    setup::{self, Component, InstallOptions, Need},
    tally::Tally,
    task, workspace,
};

/// The step that runs a few cases of every kind.
const SMOKE: &str = "smoke";

/// The cases, and the steps, for kernels that a part was taken away from. The last ones hide cgroup
/// v2 from an agent.
const LACKING: [(Without, &str); 3] = [
    (Without::Jit, "no_jit"),
    (Without::TcFilters, "no_tc_filters"),
    (Without::UnifiedCgroups, "no_cgroup2"),
];

/// Series that are tested by default and in CI: the oldest kernel, the most common one, and the
/// newest.
const DEFAULT: [&str; 3] = ["5.10", "6.1", NEWEST];
/// The series that is tested by default on an emulated processor of another architecture, which is
/// slower.
const DEFAULT_AARCH64: [&str; 1] = ["6.1"];
/// Series that `--all-kernels` tests.
const ALL: [&str; 5] = ["5.10", "6.1", "6.12", "6.18", NEWEST];

/// Generated packets of each kind and mode. The 50,000 of a real processor would take an hour.
const GENERATED_PACKETS: &str = "900";

/// Modules of the tests that no kernel loads on demand.
const LATE_MODULES: [&str; 3] = ["tun", "sctp", "ip_vs"];

/// Programs that the tests need in addition to a toolchain.
pub const PROGRAMS: [setup::Program; 12] = [
    setup::Program::Compiler,
    setup::Program::Ip,
    setup::Program::Ethtool,
    setup::Program::Bpftool,
    setup::Program::Nft,
    setup::Program::Ipvsadm,
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
    /// Architecture of the machines
    #[arg(long, value_enum, default_value_t)]
    arch: Arch,
    /// Test all series that Debian has, not only those of CI
    #[arg(long, conflicts_with = "only")]
    all_kernels: bool,
    /// Load the programs only, and run no case
    #[arg(long, conflicts_with = "all_cases")]
    load_only: bool,
    /// Run all packet cases, all end-to-end cases on routed underlays, and those about VLAN
    /// devices, bonds and bridges, not only the smoke test. Each kernel boots many times
    #[arg(long)]
    all_cases: bool,
    /// Run these end-to-end cases in place of the smoke test: a part of their names, `devices` or
    /// `smoke`; `packets` stands for all packet cases
    #[arg(long, value_name = "FILTER", conflicts_with_all = ["all_cases", "load_only"])]
    cases: Option<String>,
    /// Run only the cases that have not passed since the programs changed last
    #[arg(long)]
    resume: bool,
    /// Start no further boot after this time; `--resume` runs the rest
    #[arg(long, value_name = "MINUTES")]
    minutes: Option<u64>,
    /// Boot the kernels locked down (kernel_lockdown(7))
    #[arg(long, value_name = "LEVEL", value_parser = ["integrity", "confidentiality"])]
    lockdown: Option<String>,
    /// Take these away from the kernels. The cases about that run in place of the smoke test
    #[arg(long, value_enum, value_delimiter = ',', value_name = "PART")]
    without: Vec<Without>,
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
    if options.arch == Arch::Aarch64
        && let Some(reason) = aarch64::unavailable()
    {
        bail!("{reason}");
    }
    setup::provide(&needs(options.arch), options.setup)?;
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
    let qemu = Qemu::provide(&cache, options.arch)?;
    let built = Built::new(options, &cache)?;
    let machine = Machine { qemu, files: files(options.arch, &cache)?, init: built.init.clone() };
    let series: Vec<&str> = match (options.only.as_slice(), options.all_kernels) {
        ([], false) if options.arch == Arch::Aarch64 => DEFAULT_AARCH64.to_vec(),
        ([], false) => DEFAULT.to_vec(),
        ([], true) => ALL.to_vec(),
        (only, _) => {
            // Two machines of one series would use the same files.
            let mut seen = HashSet::new();
            only.iter().map(String::as_str).filter(|series| seen.insert(*series)).collect()
        }
    };
    let extent = Extent {
        resume: options.resume,
        end: options.minutes.map(|minutes| Instant::now() + Duration::from_secs(60 * minutes)),
    };
    let mut tally = Tally::default();
    let mut rows = Vec::new();
    for series in series {
        let kernel = debian::provide(&cache, options.arch, series, options.refresh)?;
        let on_kernel = || format!("Linux {}", kernel.release);
        report(task::KERNELS, &on_kernel());
        let guest = Guest {
            machine: &machine,
            kernel: &kernel,
            series,
            task: GuestTask {
                release: kernel.release.clone(),
                modules: kernel.modules(),
                early_modules: Vec::new(),
                late_modules: LATE_MODULES.map(str::to_owned).to_vec(),
                folder: workspace::root().to_owned(),
                lockdown: options.lockdown.clone(),
                without: options.without.clone(),
                steps: Vec::new(),
            },
            folder: cache.join(options.arch.folder("runs")).join(series),
        };
        if !options.command.is_empty() {
            let run = guest.boot(&guest.folder, &given(options)).with_context(on_kernel)?;
            let has_failed = run.steps.iter().any(|step| step.code != Some(0));
            tally.count(run.trouble.is_none() && !has_failed);
            continue;
        }
        let groups = groups(options, &built);
        let mut row = if groups.is_empty() {
            let run = guest.boot(&guest.folder, &steps(options, &built)).with_context(on_kernel)?;
            Row::read(&kernel.release, series, &run)
        } else {
            boots::run(&guest, &built.listing(), &groups, &built.folder, &extent).with_context(on_kernel)?
        };
        row.interprets = options.without.contains(&Without::Jit);
        tally = tally + row.tally();
        rows.push(row);
    }
    if options.command.is_empty() {
        let limits = table::limits()?;
        let mut problems = table::excesses(&rows, &limits);
        if options.without.is_empty() {
            problems.extend(table::shortfalls(&rows));
        }
        for problem in problems {
            println!("{problem}");
            tally.failed += 1;
        }
        let table = table::render(&rows);
        println!("{table}");
        if options.write {
            table::write(&table, options.arch)?;
        }
    }
    Ok(tally)
}

/// Returns the programs and components that the machine must have.
fn needs(arch: Arch) -> Vec<Need> {
    let cross: &[setup::Program] = match arch {
        Arch::X86_64 => &[],
        Arch::Aarch64 => &[setup::Program::Aarch64Compiler, setup::Program::Aarch64Strip],
    };
    let programs = PROGRAMS.iter().chain(cross).copied().map(Need::Program);
    programs.chain([Need::Component(Component::KernelRustSrc)]).collect()
}

/// Returns the files that guests see: those of this machine, or for another architecture its
/// programs with the workspace and the cache.
fn files(arch: Arch, cache: &Path) -> Result<Files> {
    if arch == Arch::X86_64 {
        return Ok(Files { root: "/".into(), folders: Vec::new() });
    }
    let root = debian::root(cache, arch)?;
    let mut folders = vec![workspace::root().to_owned()];
    if !cache.starts_with(workspace::root()) {
        folders.push(cache.to_owned());
    }
    for folder in &folders {
        fs::create_dir_all(root.join(folder.strip_prefix("/").unwrap_or(folder)))?;
    }
    Ok(Files { root, folders })
}

/// Returns the steps of a guest that boots once.
fn steps(options: &Options, built: &Built) -> Vec<Step> {
    let mut steps = vec![built.listing()];
    if !options.load_only {
        let about = LACKING.iter().filter(|(part, _)| options.without.contains(part));
        let mut cases: Vec<&str> = about.map(|(_, cases)| *cases).collect();
        if cases.is_empty() {
            cases.push(SMOKE);
        }
        steps.extend(cases.into_iter().map(|cases| built.e2e(cases, 1800)));
    }
    steps
}

/// Returns the cases for guests that boot many times, if there are such.
fn groups(options: &Options, built: &Built) -> Vec<Group> {
    let of_e2e = |name: &str| Group { step: built.e2e(name, 2400), cases: 30 };
    // The packet cases share loaded programs.
    let mut packets = Group { step: built.step(PACKETS, PACKETS, &[], 3600), cases: 1000 };
    packets.step.environment.push(("SLUICE_FUZZ_PACKETS".to_owned(), GENERATED_PACKETS.to_owned()));
    match &options.cases {
        Some(filter) if filter == PACKETS => vec![packets],
        Some(filter) => vec![of_e2e(filter)],
        None if options.all_cases => vec![packets, of_e2e("devices"), of_e2e("routed")],
        None => Vec::new(),
    }
}

/// Returns the given command as the only step.
fn given(options: &Options) -> Vec<Step> {
    let (program, arguments) = options.command.split_first().expect("the caller has looked");
    vec![Step {
        name: "command".to_owned(),
        program: program.into(),
        arguments: arguments.to_vec(),
        environment: vec![("SLUICE_PATIENCE".to_owned(), options.arch.patience().to_owned())],
        limit: 3600,
    }]
}

/// Names of the programs that guests run.
const LB: &str = "lb";
const LB_OTHER_LAYOUT: &str = "lb-other-layout";
const TESTBED: &str = "lb-testbed";
const PACKETS: &str = "packets";
const E2E: &str = "e2e";

/// The programs that guests run. They are built on the host, and the guest uses the same paths.
struct Built {
    /// The folder with the programs. It has copies: another build must not replace a program while
    /// a guest runs.
    folder: PathBuf,
    arch: Arch,
    init: Init,
}

impl Built {
    fn new(options: &Options, cache: &Path) -> Result<Self> {
        let folder = cache.join(options.arch.folder("programs"));
        let init = match options.arch {
            Arch::X86_64 => Init::Own,
            Arch::Aarch64 => Init::Static(folder.join("xtask")),
        };
        let cargo = |subcommand: &str| match options.arch {
            Arch::X86_64 => {
                let mut cargo = cargo();
                cargo.arg(subcommand);
                cargo
            }
            Arch::Aarch64 => aarch64::cargo_for_target(subcommand),
        };
        let mut wanted = Vec::new();
        if options.command.is_empty() {
            let mut agent = cargo("build");
            agent.args(["-p", "lb-userspace", "--bin", LB]);
            wanted.push((agent, vec![LB]));
            let mut tests = cargo("test");
            tests.args(["--no-run", "-p", "lb-testbed", "--test", PACKETS, "--test", E2E]);
            if options.arch == Arch::Aarch64 {
                // Without a Kubernetes client, which takes minutes to build.
                tests.args(["--no-default-features", "--features=programs"]);
            }
            wanted.push((tests, vec![TESTBED, PACKETS, E2E]));
        }
        if options.all_cases || options.cases.is_some() {
            let mut other = cargo("build");
            other.args(["-p", "lb-userspace", "--bin", LB_OTHER_LAYOUT, "--features", "other-layout"]);
            wanted.push((other, vec![LB_OTHER_LAYOUT]));
        }
        if options.arch == Arch::Aarch64 {
            aarch64::add_target(aarch64::TARGET)?;
            let mut init = cargo("build");
            init.args(["-p", "xtask", "--bin", "xtask", "--no-default-features"]);
            wanted.push((init, vec!["xtask"]));
        }
        fs::create_dir_all(&folder)?;
        for (mut command, names) in wanted {
            let built = programs::build(&mut command)?;
            for name in names {
                let path = programs::path_of(&built, name)?;
                fs::copy(&path, folder.join(name))
                    .with_context(|| format!("cannot copy {}", path.display()))?;
            }
        }
        Ok(Self { folder, arch: options.arch, init })
    }

    /// Returns the step that runs these end-to-end cases, one after another: an emulated processor
    /// has no time to spare for a second cluster.
    fn e2e(&self, filter: &str, limit: u64) -> Step {
        self.step(filter, E2E, &["--test-threads=1", filter], limit)
    }

    fn step(&self, name: &str, program: &str, arguments: &[&str], limit: u64) -> Step {
        Step {
            name: name.to_owned(),
            program: self.folder.join(program),
            arguments: arguments.iter().map(ToString::to_string).collect(),
            environment: self.environment(),
            limit,
        }
    }

    /// Returns the step that prints which programs load.
    fn listing(&self) -> Step {
        self.step(LISTING, TESTBED, &["programs"], 300)
    }

    /// Returns the variables with which the programs find each other.
    fn environment(&self) -> Vec<(String, String)> {
        let program = |name: &str| self.folder.join(name).display().to_string();
        vec![
            ("SLUICE_LB".to_owned(), program(LB)),
            ("SLUICE_LB_OTHER_LAYOUT".to_owned(), program(LB_OTHER_LAYOUT)),
            ("SLUICE_TESTBED".to_owned(), program(TESTBED)),
            ("SLUICE_PATIENCE".to_owned(), self.arch.patience().to_owned()),
        ]
    }
}
