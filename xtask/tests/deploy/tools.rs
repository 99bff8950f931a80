//! The programs, and what they print.

use std::{env, path::PathBuf, process::Command};

use crate::root;

/// Runs a program in the root of the repository and returns its standard output.
///
/// # Errors
/// The program's standard error, if it failed.
pub fn run(program: &str, arguments: &[&str]) -> Result<String, String> {
    let bin = env::var_os("SLUICE_DEPLOY_BIN")
        .expect("SLUICE_DEPLOY_BIN is not set: run `cargo xtask test --only deploy`");
    let path = PathBuf::from(bin).join(program);
    let output = Command::new(&path)
        .args(arguments)
        .current_dir(root())
        // Helm reads settings and repositories of the user from these folders.
        .env("HELM_CACHE_HOME", "/nonexistent")
        .env("HELM_CONFIG_HOME", "/nonexistent")
        .env("HELM_DATA_HOME", "/nonexistent")
        .output()
        .unwrap_or_else(|error| panic!("cannot run {}: {error}", path.display()));
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).expect("UTF-8");
    match output.status.success() {
        true => Ok(text(output.stdout)),
        false => Err(text(output.stderr) + &text(output.stdout)),
    }
}

/// Like [`run`]. Fails if the program does.
pub fn output(program: &str, arguments: &[&str]) -> String {
    run(program, arguments).unwrap_or_else(|error| panic!("`{program} {}`: {error}", arguments.join(" ")))
}
