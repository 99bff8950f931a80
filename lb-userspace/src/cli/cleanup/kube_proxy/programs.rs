//! Runs the node's own programs. They fit the node's kernel, its variant of iptables and its lock
//! files.

use std::io::Write;
use std::process::{Command, ExitStatus, Stdio};

/// Folders in which distributions install administration programs. They are searched after those of
/// PATH, because the PATH of an ordinary user lacks some of them.
const FOLDERS: &str =
    "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin:/run/current-system/sw/bin";

/// A command line with the input of the program.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct NodeCommand {
    program: String,
    arguments: Vec<String>,
    /// The text for standard input.
    input: String,
}

#[derive(Debug, thiserror::Error)]
pub(crate) enum ProgramError {
    #[error("{0} is not installed")]
    Missing(String),
    #[error("cannot run {program}: {source}")]
    Start { program: String, source: std::io::Error },
    #[error("{program} ended with {status}: {stderr}")]
    Failed { program: String, status: ExitStatus, stderr: String },
}

impl NodeCommand {
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

    /// Runs the program and returns its standard output.
    pub fn run(&self) -> Result<String, ProgramError> {
        let program = self.program.clone();
        let path = std::env::var("PATH").map_or_else(|_| FOLDERS.into(), |own| format!("{own}:{FOLDERS}"));
        let child = Command::new(&self.program)
            .args(&self.arguments)
            .env("PATH", path)
            // Error messages become part of the report: they must be in English.
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
            // A program that ends before it has read everything reports the reason in its exit
            // status.
            let _ = input.write_all(self.input.as_bytes());
        }
        let output = match child.wait_with_output() {
            Err(source) => return Err(ProgramError::Start { program, source }),
            Ok(output) => output,
        };
        if !output.status.success() {
            let stderr = String::from_utf8_lossy(&output.stderr).trim().replace('\n', "; ");
            return Err(ProgramError::Failed { program, status: output.status, stderr });
        }
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn input_is_passed_and_output_is_returned() {
        let command = NodeCommand::new("sed", &["s/old/new/"]).with_input("old\nold\n".into());
        assert_eq!(command.run().unwrap(), "new\nnew\n");
    }

    #[test]
    fn a_failure_names_the_program_and_its_error_output() {
        let error = NodeCommand::new("sh", &["-c", "echo busy >&2; exit 4"]).run().unwrap_err();
        assert_eq!(error.to_string(), "sh ended with exit status: 4: busy");
    }

    #[test]
    fn a_missing_program_has_an_error_of_its_own() {
        let error = NodeCommand::new("sluice-no-such-program", &[]).run().unwrap_err();
        assert!(matches!(error, ProgramError::Missing(_)), "{error:?}");
    }
}
