//! The cases that a test program is limited to, by a list in a file.

use std::collections::HashSet;
use std::fs;

use anyhow::{Context, Result};

/// The environment variable with the path of a file that has names of cases, one on each line.
const VARIABLE: &str = "SLUICE_CASES";

/// Returns the names of the cases that may run. Returns `None` if all cases may run.
pub fn cases() -> Result<Option<HashSet<String>>> {
    let Some(path) = std::env::var_os(VARIABLE) else { return Ok(None) };
    let text =
        fs::read_to_string(&path).with_context(|| format!("{VARIABLE}: cannot read {}", path.display()))?;
    Ok(Some(text.lines().map(str::to_owned).collect()))
}
