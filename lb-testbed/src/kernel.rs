//! Finds the features that the running kernel lacks, by trying them. The version of a kernel does
//! not show its features: vendors backport them.

use anyhow::{Error, Result};

/// A case cannot run here, because the kernel lacks something. This is no failure.
#[derive(Debug, thiserror::Error)]
#[error("this kernel has {0}")]
pub struct Lacking(pub String);

/// Returns an error if a feature is missing. `missing` names it, as in "no tcx (Linux 6.6)".
pub fn needs(is_present: bool, missing: &str) -> Result<()> {
    if is_present { Ok(()) } else { Err(Lacking(missing.to_owned()).into()) }
}

/// Messages of `ip` and `tc` if the kernel lacks a kind of device, classifier or action.
const UNKNOWN: [&str; 4] = [
    "Unknown device type",
    "TC classifier not found",
    "Failed to load TC action module",
    "Specified qdisc kind is unknown",
];

/// Turns the error of an `ip` or `tc` command into [`Lacking`] if the kernel has no `what`.
pub fn lacks(error: Error, what: &str) -> Error {
    let text = format!("{error:#}");
    if UNKNOWN.iter().any(|unknown| text.contains(unknown)) {
        Lacking(format!("no {what}")).into()
    } else {
        error
    }
}

#[cfg(test)]
mod tests {
    use anyhow::anyhow;

    use super::*;

    #[test]
    fn only_a_missing_kind_is_lacking() {
        let error = lacks(anyhow!("ip: Error: Unknown device type.").context("add"), "bonds");
        assert_eq!(
            error.downcast_ref::<Lacking>().map(ToString::to_string),
            Some("this kernel has no bonds".into())
        );
        assert!(lacks(anyhow!("Error: No such device"), "bonds").downcast_ref::<Lacking>().is_none());
        assert!(needs(true, "no tcx").is_ok());
        let error = needs(false, "no tcx").unwrap_err().context("the case");
        assert!(error.downcast_ref::<Lacking>().is_some());
    }
}
