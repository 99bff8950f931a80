//! Unit tests of the pure crates under Miri. It interprets them and reports undefined behaviour,
//! such as reads out of bounds and overflows that a release build would hide.

use anyhow::Result;
use lb_build::{
    progress::{report, timed},
    toolchain::{self, RustupComponent, Toolchain},
};

use super::{options::Options, run_tests::count_tests};
use crate::{process::try_compile, tally::Tally, task, workspace};

/// Crates without input and output: Miri cannot interpret most system calls.
const PACKAGES: [&str; 3] = ["lb-common", "lb-model", "lb-plan"];

/// Cases of each property test. Miri is some hundred times slower than a compiled test.
const PROPTEST_CASES: &str = "8";

/// Returns the reason and the remedy if no toolchain of this machine can have Miri.
pub fn unavailable() -> Option<String> {
    match toolchain::preferred() {
        Ok(toolchain) if toolchain.is_nightly() => None,
        _ => Some(
            "Miri needs a nightly toolchain\nremedy: `rustup toolchain install nightly --component miri,rust-src`"
                .to_owned(),
        ),
    }
}

pub fn run(options: &Options) -> Result<Tally> {
    let toolchain = toolchain::preferred()?;
    for component in [RustupComponent::RustSrc, RustupComponent::Miri] {
        if let Err(reason) = toolchain.add(component) {
            return Ok(Tally::skipped(format!("{}: {reason}", toolchain.name)));
        }
    }
    report(task::MIRI, &format!("preparing the standard library of {}", toolchain.name));
    if !timed(task::MIRI, "prepared the standard library", || try_compile(miri(&toolchain).arg("setup")))? {
        return Ok(Tally::failed("`cargo miri setup` failed, see above"));
    }
    // Only the unit tests: those in `tests/` read folders of manifests.
    let test = || {
        let mut test = miri(&toolchain);
        test.args(["test", "--lib"]).args(PACKAGES.iter().flat_map(|package| ["--package", package]));
        // Proptest reads environment variables and the working directory.
        test.env("MIRIFLAGS", "-Zmiri-disable-isolation").env("PROPTEST_CASES", PROPTEST_CASES);
        test
    };
    if !try_compile(test().arg("--no-run"))? {
        return Ok(Tally::failed("the tests do not compile, see above"));
    }
    let mut tests = test();
    tests.arg("--").args(&options.filter).args(&options.test_args);
    count_tests(&mut tests, options)
}

/// Returns `cargo miri` with its results below this workspace's target folder.
fn miri(toolchain: &Toolchain) -> std::process::Command {
    let mut command = toolchain.cargo();
    command.current_dir(workspace::root()).arg("miri");
    // Miri finds its driver beside cargo and warns about RUSTC.
    command.env_remove("RUSTC").env("CARGO_TARGET_DIR", workspace::target().join("miri"));
    command
}
