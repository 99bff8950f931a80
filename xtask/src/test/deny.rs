//! `cargo deny`: checks the crates that this workspace depends on. `deny.toml` has the rules.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use anyhow::{Context as _, Result};
use lb_build::progress::{report, timed, watched};

use crate::{
    process::{cargo, command},
    tally::Tally,
    task, workspace,
};

/// The version that is built if the machine has none.
const VERSION: &str = "0.20.2";

/// Checks that need no network. The order of this list is the order of the messages.
const OFFLINE_CHECKS: [&str; 3] = ["bans", "licenses", "sources"];

pub fn run() -> Result<Tally> {
    let Some(program) = provide()? else {
        return Ok(Tally::skipped(format!(
            "cargo-deny could not be built, see above\nremedy: `cargo install cargo-deny --version {VERSION}`"
        )));
    };
    let mut tally = Tally::default();
    for check in OFFLINE_CHECKS {
        let mut deny = deny(&program);
        // The crates have been fetched, and these checks do not need the database of advisories.
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

/// Returns the path of cargo-deny: that of the machine, or one below the target folder, which is
/// built the first time. Returns `None` if it cannot be built.
fn provide() -> Result<Option<PathBuf>> {
    let installed = command("cargo-deny").arg("--version").output();
    if installed.is_ok_and(|output| output.status.success()) {
        return Ok(Some("cargo-deny".into()));
    }
    let folder = workspace::target().join("tools").join(format!("cargo-deny-{VERSION}"));
    let program = folder.join("bin/cargo-deny");
    if program.is_file() {
        return Ok(Some(program));
    }
    fs::create_dir_all(&folder).with_context(|| format!("cannot create {}", folder.display()))?;
    report(
        task::DENY,
        &format!("building cargo-deny {VERSION} into {} (once, some minutes)", folder.display()),
    );
    let mut install = cargo();
    install
        .args(["install", "cargo-deny", "--version", &format!("={VERSION}"), "--locked", "--root"])
        .arg(&folder)
        // The checks take a second even without optimization; the build takes half the time.
        .env("CARGO_PROFILE_RELEASE_OPT_LEVEL", "1")
        .env("CARGO_PROFILE_RELEASE_LTO", "false")
        .env("CARGO_PROFILE_RELEASE_CODEGEN_UNITS", "16");
    lb_build::without_cargo_environment(&mut install);
    let ended = timed(task::DENY, "built cargo-deny", || watched(task::DENY, &mut install))
        .context("cannot run cargo")?;
    if let Err(failure) = ended {
        eprintln!("{failure}");
        return Ok(None);
    }
    Ok(Some(program))
}
