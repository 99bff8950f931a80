//! Runs other programs, in particular cargo inside of cargo.

use std::{env, process::Command};

use crate::{error::BuildError, progress::watched_cargo};

/// Variables of cargo by which a person configures it (network, registries, colours). An inner
/// cargo must see them. Every other variable that begins with `CARGO` was set by the outer cargo
/// for its own build.
const KEPT: [&str; 8] = [
    "CARGO_HOME",
    "CARGO_HTTP_",
    "CARGO_MAKEFLAGS",
    "CARGO_NET_",
    "CARGO_REGISTR",
    "CARGO_SOURCE_",
    "CARGO_TERM_",
    "CARGO_UNSTABLE_",
];

/// Variables with other names that cargo and rustup set, or that would change the compiler's
/// output.
const DROPPED: [&str; 17] = [
    "DEBUG",
    "HOST",
    "LLVM_PREFIX",
    "NUM_JOBS",
    "OPT_LEVEL",
    "OUT_DIR",
    "PROFILE",
    "RUSTC",
    "RUSTC_BOOTSTRAP",
    "RUSTC_LINKER",
    "RUSTC_WORKSPACE_WRAPPER",
    "RUSTC_WRAPPER",
    "RUSTDOC",
    "RUSTDOCFLAGS",
    "RUSTFLAGS",
    "RUSTUP_TOOLCHAIN",
    "TARGET",
];

/// Removes the variables of an outer cargo from the environment of `command`: an inner cargo would
/// use the outer build's compiler, flags and target directory.
pub fn without_cargo_environment(command: &mut Command) -> &mut Command {
    for (name, _) in env::vars_os() {
        if name.to_str().is_some_and(is_of_outer_cargo) {
            command.env_remove(name);
        }
    }
    command
}

/// Removes the variables in which cargo names the package of a program or of a test. If one of them
/// changes, the build script of ring runs again, and cargo compiles again what depends on ring. So
/// without this, xtask, tests that build the agent, and a person's cargo undo each other's builds.
pub fn without_package(cargo: &mut Command) -> &mut Command {
    const PREFIXES: [&str; 5] =
        ["CARGO_BIN_", "CARGO_CRATE_NAME", "CARGO_MANIFEST_", "CARGO_PKG_", "CARGO_PRIMARY_PACKAGE"];
    for (name, _) in env::vars_os() {
        if name.to_str().is_some_and(|name| PREFIXES.iter().any(|prefix| name.starts_with(prefix))) {
            cargo.env_remove(name);
        }
    }
    cargo
}

fn is_of_outer_cargo(name: &str) -> bool {
    (name.starts_with("CARGO") && !KEPT.iter().any(|kept| name.starts_with(kept))) || DROPPED.contains(&name)
}

/// Runs a cargo command that compiles, and reports its progress for `task`.
pub(crate) fn compile(task: &str, command: &mut Command) -> Result<(), BuildError> {
    let status = watched_cargo(task, command).map_err(|source| spawn_error(command, source))?;
    if status.success() {
        Ok(())
    } else {
        Err(BuildError::Failed { command: text(command), status: status.to_string() })
    }
}

/// Returns the standard output of a command, or the reason of its failure as text.
pub(crate) fn output(command: &mut Command) -> Result<String, String> {
    let output = command.output().map_err(|error| format!("cannot run {}: {error}", program(command)))?;
    if output.status.success() {
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    } else {
        let reason = String::from_utf8_lossy(&output.stderr);
        let reason = reason.lines().find(|line| line.contains("error")).unwrap_or_default();
        Err(format!("{} failed ({}) {reason}", text(command), output.status))
    }
}

pub(crate) fn spawn_error(command: &Command, source: std::io::Error) -> BuildError {
    BuildError::Spawn { program: program(command), source }
}

fn program(command: &Command) -> String {
    command.get_program().to_string_lossy().into_owned()
}

fn text(command: &Command) -> String {
    let mut text = program(command);
    for arg in command.get_args() {
        text.push(' ');
        text.push_str(&arg.to_string_lossy());
    }
    text
}

#[cfg(test)]
mod tests {
    use super::is_of_outer_cargo;

    #[test]
    fn an_inner_cargo_sees_the_settings_of_the_person_and_not_those_of_the_outer_cargo() {
        for name in
            ["CARGO_HOME", "CARGO_NET_OFFLINE", "CARGO_TERM_COLOR", "CARGO_REGISTRIES_X_INDEX", "PATH"]
        {
            assert!(!is_of_outer_cargo(name), "{name} must be kept");
        }
        for name in [
            "CARGO",
            "CARGO_ENCODED_RUSTFLAGS",
            "CARGO_MANIFEST_DIR",
            "CARGO_TARGET_DIR",
            "RUSTFLAGS",
            "RUSTUP_TOOLCHAIN",
        ] {
            assert!(is_of_outer_cargo(name), "{name} must be removed");
        }
    }
}
