//! A finding, and its output formats.

use serde::Serialize;

use crate::view::OutputError;

/// Option `-o` of `lb doctor`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, clap::ValueEnum)]
pub enum DoctorFormat {
    /// Text for people
    #[default]
    Table,
    /// A JSON list of findings
    Json,
    /// The same list as YAML
    Yaml,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum FindingSeverity {
    Ok,
    /// Something works with a restriction, or could not be checked.
    Note,
    /// Some traffic may fail, or will fail later.
    Warning,
    /// Some traffic fails.
    Error,
}

impl FindingSeverity {
    fn label(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Note => "note",
            Self::Warning => "warning",
            Self::Error => "error",
        }
    }
}

/// The result of one check.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Finding {
    pub severity: FindingSeverity,
    /// The subject of the check.
    pub check: &'static str,
    /// The observation.
    pub evidence: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub remedy: Option<String>,
}

impl Finding {
    pub fn ok(check: &'static str, evidence: impl Into<String>) -> Self {
        Self { severity: FindingSeverity::Ok, check, evidence: evidence.into(), remedy: None }
    }

    pub fn note(check: &'static str, evidence: impl Into<String>) -> Self {
        Self { severity: FindingSeverity::Note, ..Self::ok(check, evidence) }
    }

    pub fn warning(check: &'static str, evidence: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self { severity: FindingSeverity::Warning, remedy: Some(remedy.into()), ..Self::ok(check, evidence) }
    }

    pub fn error(check: &'static str, evidence: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self { severity: FindingSeverity::Error, ..Self::warning(check, evidence, remedy) }
    }

    /// Reports that a check was not possible.
    pub fn unchecked(check: &'static str, reason: &str) -> Self {
        Self::note(check, format!("not checked: {reason}"))
    }
}

/// Returns whether a finding is an error. `lb doctor` exits with status 1 then.
pub fn has_error(findings: &[Finding]) -> bool {
    findings.iter().any(|finding| finding.severity == FindingSeverity::Error)
}

/// Renders the findings in the given format.
pub fn render_findings(findings: &[Finding], format: DoctorFormat) -> Result<String, OutputError> {
    Ok(match format {
        DoctorFormat::Json => serde_json::to_string_pretty(findings)? + "\n",
        DoctorFormat::Yaml => serde_saphyr::to_string(&findings)?,
        DoctorFormat::Table => text(findings),
    })
}

fn text(findings: &[Finding]) -> String {
    let width = findings.iter().map(|finding| finding.check.len()).max().unwrap_or(0);
    let mut text = String::new();
    for Finding { severity, check, evidence, remedy } in findings {
        text.push_str(&format!("{:<9}{check:<width$}  {evidence}\n", severity.label()));
        if let Some(remedy) = remedy {
            text.push_str(&format!("{:<9}{:<width$}  remedy: {remedy}\n", "", ""));
        }
    }
    let count = |severity| findings.iter().filter(|finding| finding.severity == severity).count();
    let plural = |count: usize, noun: &str| format!("{count} {noun}{}", if count == 1 { "" } else { "s" });
    text.push_str(&format!(
        "\n{}, {}, {}, {} ok\n",
        plural(count(FindingSeverity::Error), "error"),
        plural(count(FindingSeverity::Warning), "warning"),
        plural(count(FindingSeverity::Note), "note"),
        plural(count(FindingSeverity::Ok), "check"),
    ));
    text
}
