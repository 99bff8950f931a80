//! Runs test programs and other checks, and counts their results.

use std::process::Command;

use anyhow::{Context as _, Result};

use super::options::Options;
use crate::{
    process::{self, run_and_read, try_compile},
    tally::Tally,
};

/// Runs commands that each pass or fail as a whole.
pub fn check(commands: &mut [&mut Command]) -> Result<Tally> {
    let mut tally = Tally::default();
    for command in commands {
        let program = command.get_program().to_string_lossy().into_owned();
        let status = command.status().with_context(|| format!("cannot run {program}"))?;
        tally.count(status.success());
    }
    Ok(tally)
}

/// Builds and runs tests: `cargo test` with these arguments.
pub fn tests(mut cargo: Command, arguments: &[&str], options: &Options) -> Result<Tally> {
    let mut build = process::cargo();
    build.arg("test").args(arguments).arg("--no-run");
    if !try_compile(&mut build)? {
        return Ok(Tally::failed("the tests do not compile, see above"));
    }
    cargo.arg("test").args(arguments).arg("--").args(&options.filter).args(&options.test_args);
    count_tests(&mut cargo, options)
}

/// Runs a command that prints the results of test programs, and counts them.
pub fn count_tests(command: &mut Command, options: &Options) -> Result<Tally> {
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
