//! The part `cross`: the agent and the kernel programs compile for aarch64.

use anyhow::Result;

use crate::{aarch64, process::try_compile, tally::Tally};

/// Checks the agent, whose build script compiles the kernel programs for the same architecture.
/// Nothing is linked.
pub fn run() -> Result<Tally> {
    aarch64::add_target(aarch64::TARGET)?;
    let mut check = aarch64::cargo_for_target("check");
    check.args(["-p", "lb-userspace", "--bin", "lb"]);
    let mut tally = Tally::default();
    tally.count(try_compile(&mut check)?);
    Ok(tally)
}
