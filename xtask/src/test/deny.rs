//! `cargo deny`: checks the crates that this workspace depends on. `deny.toml` has the rules.

use std::{
    path::Path,
    process::{Command, Stdio},
};

use anyhow::{Context as _, Result};
use lb_build::progress::report;

use crate::{
    cargo_tools::Tool,
    process::{cargo, command, text_of},
    tally::Tally,
    task, workspace,
};

const TOOL: Tool = Tool { task: task::DENY, name: "cargo-deny", version: "0.20.2" };

/// Checks that need no network. The order of this list is the order of the messages.
const OFFLINE_CHECKS: [&str; 3] = ["bans", "licenses", "sources"];

pub fn run() -> Result<Tally> {
    let Some(program) = TOOL.provide()? else {
        return Ok(Tally::skipped(format!(
            "cargo-deny could not be built, see above\nremedy: {}",
            TOOL.remedy()
        )));
    };
    report(task::DENY, "fetching the crates of the lock file");
    // cargo-deny reads the manifests of all crates of the lock file, also of those for other
    // systems. A build does not download these.
    text_of(cargo().args(["fetch", "--locked"]))?;
    let mut tally = Tally::default();
    for check in OFFLINE_CHECKS {
        let mut deny = deny(&program);
        // These checks do not need the database of advisories.
        deny.arg("--offline").args(["check", check]);
        tally.count(deny.status().context("cannot run cargo-deny")?.success());
    }
    report(task::DENY, "fetching the database of advisories");
    let fetched = deny(&program).args(["fetch", "db"]).stderr(Stdio::null()).status();
    if fetched.is_ok_and(|status| status.success()) {
        let mut advisories = deny(&program);
        advisories.args(["check", "--disable-fetch", "advisories"]);
        tally.count(advisories.status().context("cannot run cargo-deny")?.success());
        Ok(tally)
    } else {
        Ok(tally.with_note("advisories not checked: github.com/RustSec/advisory-db cannot be fetched"))
    }
}

fn deny(program: &Path) -> Command {
    let mut command = command(program);
    command.current_dir(workspace::root()).args(["--workspace", "--all-features"]);
    command
}
