//! Plants one fault at a time into a copy of the sources, builds the programs, and runs the tests
//! that could notice the fault.

use std::{
    fs::{self, File},
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::{Mutex, PoisonError},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};
use lb_build::{Build, Programs};

use super::{built::Built, faults::Fault};
use crate::{
    process::{cargo, command, text_of},
    tree::Tree,
    workspace,
};

/// The package of the pure code, which has unit tests.
const PURE: &str = "lb-common";

/// Number of generated packets in each test that generates packets.
const GENERATED: &str = "5000";

/// Time limit of one run of a test program.
const LIMIT: Duration = Duration::from_secs(600);

/// End-to-end cases of two workers would share addresses of the machine.
static END_TO_END: Mutex<()> = Mutex::new(());

/// The outcome of the tests with a fault.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum FaultOutcome {
    /// This test failed.
    Noticed(String),
    /// All tests passed.
    Survived,
    /// The programs with the fault cannot be built or loaded, so no test shows anything.
    Invalid(String),
}

/// A copy of the sources with its builds.
pub struct Worker<'a> {
    tree: Tree,
    built: &'a Built,
}

impl<'a> Worker<'a> {
    /// Copies the sources into `folder`.
    pub fn new(folder: PathBuf, built: &'a Built) -> Result<Self> {
        let tree = Tree::copy_to(folder)?;
        // The crates that the programs depend on are built already.
        let (builds, copy) = (workspace::target().join("ebpf"), tree.target().join("ebpf"));
        if builds.exists() && !copy.exists() {
            fs::create_dir_all(tree.target())?;
            // Cargo compares the times of files, so the copy keeps them.
            text_of(command("cp").arg("--archive").args([&builds, &copy]))?;
        }
        Ok(Self { tree, built })
    }

    /// Runs all packet cases without a fault. Returns the name of a case that fails.
    pub fn without_fault(&self) -> Result<Option<String>> {
        let object = self.build().map_err(anyhow::Error::msg)?;
        Ok(match self.packets(&object, &[])? {
            FaultOutcome::Survived => None,
            FaultOutcome::Noticed(test) | FaultOutcome::Invalid(test) => Some(test),
        })
    }

    /// Plants a fault, runs the tests, and removes the fault again.
    pub fn run(&self, fault: &Fault) -> Result<FaultOutcome> {
        let source = self.tree.read(&fault.file)?;
        let mutated = fault.plant(&source).map_err(anyhow::Error::msg)?;
        self.tree.write(&fault.file, &mutated)?;
        let outcome = self.notice(fault);
        self.tree.write(&fault.file, &source)?;
        outcome
    }

    fn notice(&self, fault: &Fault) -> Result<FaultOutcome> {
        if fault.file.starts_with(PURE) {
            let outcome = self.unit()?;
            if outcome != FaultOutcome::Survived {
                return Ok(outcome);
            }
        }
        let object = match self.build() {
            Ok(object) => object,
            Err(error) => return Ok(FaultOutcome::Invalid(error)),
        };
        if let Some(filter) = &fault.end_to_end {
            return self.end_to_end(&object, filter);
        }
        let first = fault.cases.as_ref().map(|cases| vec![cases.as_str()]);
        for filter in first.into_iter().chain([vec![], vec!["fuzz"]]) {
            let outcome = self.packets(&object, &filter)?;
            if outcome != FaultOutcome::Survived {
                return Ok(outcome);
            }
        }
        Ok(FaultOutcome::Survived)
    }

    /// Builds the programs of the copy. Returns their object file, or the reason as text.
    fn build(&self) -> Result<PathBuf, String> {
        let build = Build {
            workspace: self.tree.root().to_owned(),
            arch: std::env::consts::ARCH.to_owned(),
            programs: Programs::Agent,
        };
        let linkers = workspace::root().join("target/bpf-linker");
        build
            .run_in(&self.tree.target(), &linkers)
            .map(|programs| programs.object)
            .map_err(|error| error.to_string())
    }

    /// Runs the unit tests of the pure code in the copy.
    fn unit(&self) -> Result<FaultOutcome> {
        let mut command = cargo();
        command.current_dir(self.tree.root()).env("CARGO_TARGET_DIR", self.tree.target()).args([
            "test",
            "--quiet",
            "--package",
            PURE,
            "--lib",
        ]);
        self.observed(&mut command, "unit")
    }

    /// Runs packet cases, without generated packets unless the filter names them.
    fn packets(&self, object: &Path, filter: &[&str]) -> Result<FaultOutcome> {
        let mut command = Command::new(&self.built.packets);
        command.args(filter);
        if filter == ["fuzz"] {
            command.env("SLUICE_FUZZ_PACKETS", GENERATED);
        } else {
            command.args(["--skip", "fuzz"]);
        }
        command.current_dir(workspace::root()).env("SLUICE_OBJECT", object);
        self.observed(&mut command, "packets")
    }

    fn end_to_end(&self, object: &Path, filter: &str) -> Result<FaultOutcome> {
        let _turn = END_TO_END.lock().unwrap_or_else(PoisonError::into_inner);
        let mut command = Command::new(&self.built.end_to_end);
        command.arg(filter).current_dir(workspace::root());
        command.env("SLUICE_LB", &self.built.lb).env("SLUICE_OBJECT", object);
        self.observed(&mut command, "e2e")
    }

    /// Runs a test program or cargo and judges its output.
    fn observed(&self, command: &mut Command, part: &str) -> Result<FaultOutcome> {
        let log = self.tree.target().join(format!("{part}.log"));
        fs::create_dir_all(self.tree.target())?;
        let output = File::create(&log)?;
        command.stdin(Stdio::null()).stdout(output.try_clone()?).stderr(output);
        let mut child = command
            .spawn()
            .with_context(|| format!("cannot run {}", command.get_program().to_string_lossy()))?;
        let deadline = Instant::now() + LIMIT;
        let status = loop {
            if let Some(status) = child.try_wait()? {
                break Some(status);
            }
            if Instant::now() > deadline {
                child.kill()?;
                child.wait()?;
                break None;
            }
            thread::sleep(Duration::from_millis(20));
        };
        let text = String::from_utf8_lossy(&fs::read(&log)?).into_owned();
        Ok(match status {
            Some(status) if status.success() => FaultOutcome::Survived,
            Some(_) => judge(&text, part),
            None => FaultOutcome::Noticed(format!("{part}: no end after {} s", LIMIT.as_secs())),
        })
    }
}

/// Returns the outcome of a failed run, from what it printed.
fn judge(output: &str, part: &str) -> FaultOutcome {
    let refused = ["could not compile", "cannot load the programs", "no program lb_"];
    if let Some(line) = output.lines().find(|line| refused.iter().any(|text| line.contains(text))) {
        return FaultOutcome::Invalid(line.trim().to_owned());
    }
    let failed = output.lines().find_map(|line| {
        let name = line.strip_prefix("test ").and_then(|line| line.split_once(" ... ")).map(|(name, _)| name);
        // `cargo test --quiet` names the tests only in the list of failures.
        let listed =
            line.strip_prefix("---- ").and_then(|line| line.split_once(" stdout")).map(|(name, _)| name);
        let name = if line.ends_with("FAILED") { name } else { listed };
        name.map(|name| name.trim().to_owned())
    });
    match failed {
        Some(test) => FaultOutcome::Noticed(format!("{part}: {test}")),
        // A program that cannot read its cases has tested nothing.
        None => FaultOutcome::Invalid(format!("{part}: {}", output.lines().last().unwrap_or_default())),
    }
}

#[cfg(test)]
mod tests {
    use super::{FaultOutcome, judge};

    #[test]
    fn the_first_failed_test_is_named() {
        let output =
            "test flows/local: a ... ok\ntest flows/local: b (IPv4, XDP)   ... FAILED\ntest c ... FAILED\n";
        assert_eq!(
            judge(output, "packets"),
            FaultOutcome::Noticed("packets: flows/local: b (IPv4, XDP)".to_owned())
        );
        let quiet = "running 2 tests\n.F\n---- checksum::tests::rfc1071_example stdout ----\n";
        assert_eq!(
            judge(quiet, "unit"),
            FaultOutcome::Noticed("unit: checksum::tests::rfc1071_example".to_owned())
        );
    }

    #[test]
    fn programs_that_cannot_be_loaded_show_nothing() {
        let output = "error: could not compile `lb-common` (lib test)\n";
        assert!(matches!(judge(output, "unit"), FaultOutcome::Invalid(_)));
        assert!(matches!(judge("error: a case has an unknown field\n", "packets"), FaultOutcome::Invalid(_)));
        let output = "test a ... FAILED\nstep 1: BPF_PROG_TEST_RUN of lb_xdp: no program lb_xdp\n";
        assert!(matches!(judge(output, "packets"), FaultOutcome::Invalid(_)));
    }
}
