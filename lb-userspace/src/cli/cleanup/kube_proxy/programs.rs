//! The node's own programs: they know its kernel, its variants of iptables and its locks.

use std::io::Write;
use std::process::{Command, ExitStatus, Stdio};

/// Where distributions keep programs of the system's administration, also when PATH is that of an ordinary user.
const FOLDERS: &str =
    "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin:/run/current-system/sw/bin";

/// A run of a program.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Call {
    program: String,
    arguments: Vec<String>,
    /// Its standard input.
    input: String,
}

#[derive(Debug, thiserror::Error)]
pub(super) enum ProgramError {
    #[error("{0} is not installed")]
    Missing(String),
    #[error("cannot run {program}: {source}")]
    Start { program: String, source: std::io::Error },
    #[error("{program} ended with {status}: {said}")]
    Failed { program: String, status: ExitStatus, said: String },
}

impl Call {
    pub fn new(program: impl Into<String>, arguments: &[&str]) -> Self {
        let arguments = arguments.iter().map(ToString::to_string).collect();
        Self { program: program.into(), arguments, input: String::new() }
    }

    pub fn with_input(self, input: String) -> Self {
        Self { input, ..self }
    }

    pub fn program(&self) -> &str {
        &self.program
    }

    #[cfg(test)]
    pub fn input(&self) -> &str {
        &self.input
    }

    /// What it prints.
    pub fn run(&self) -> Result<String, ProgramError> {
        let program = self.program.clone();
        let path = std::env::var("PATH").map_or_else(|_| FOLDERS.into(), |own| format!("{own}:{FOLDERS}"));
        let child = Command::new(&self.program)
            .args(&self.arguments)
            .env("PATH", path)
            // Messages go into the report as they are.
            .env("LC_ALL", "C")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn();
        let mut child = match child {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                return Err(ProgramError::Missing(program));
            }
            Err(source) => return Err(ProgramError::Start { program, source }),
            Ok(child) => child,
        };
        if let Some(mut input) = child.stdin.take() {
            // A program that does not read to the end says why, and ends so.
            let _ = input.write_all(self.input.as_bytes());
        }
        let output = match child.wait_with_output() {
            Err(source) => return Err(ProgramError::Start { program, source }),
            Ok(output) => output,
        };
        if !output.status.success() {
            let said = String::from_utf8_lossy(&output.stderr).trim().replace('\n', "; ");
            return Err(ProgramError::Failed { program, status: output.status, said });
        }
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_given_arrives_and_what_is_printed_returns() {
        let call = Call::new("sed", &["s/old/new/"]).with_input("old\nold\n".into());
        assert_eq!(call.run().unwrap(), "new\nnew\n");
    }

    #[test]
    fn a_failure_names_the_program_and_what_it_said() {
        let error = Call::new("sh", &["-c", "echo busy >&2; exit 4"]).run().unwrap_err();
        assert_eq!(error.to_string(), "sh ended with exit status: 4: busy");
    }

    #[test]
    fn a_program_that_is_not_installed_is_told_from_one_that_fails() {
        let error = Call::new("sluice-no-such-program", &[]).run().unwrap_err();
        assert!(matches!(error, ProgramError::Missing(_)), "{error:?}");
    }
}
