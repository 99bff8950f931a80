//! What is being done, while it is done, on standard error.

use std::{
    fmt,
    io::{self, BufRead as _, BufReader},
    process::{Command, ExitStatus, Stdio},
    time::{Duration, Instant},
};

/// While something long runs, a line of progress appears this often.
const REPORT_EVERY: Duration = Duration::from_secs(5);

/// So many last lines of a failed command are shown.
const TAIL: usize = 30;

/// One line about `task`.
pub fn say(task: &str, text: &str) {
    eprintln!("{task}: {text}");
}

/// Runs `work` and says how long it took if that was more than a second.
///
/// # Errors
/// Those of `work`.
pub fn timed<T, E>(task: &str, done: &str, work: impl FnOnce() -> Result<T, E>) -> Result<T, E> {
    let start = Instant::now();
    let result = work()?;
    let seconds = start.elapsed().as_secs();
    if seconds >= 1 {
        say(task, &format!("{done} in {seconds} s"));
    }
    Ok(result)
}

/// A watched command that did not succeed.
#[derive(Debug)]
pub struct Failure {
    /// How it ended.
    pub status: ExitStatus,
    /// The last lines of its standard error.
    pub tail: String,
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}\n{}", self.status, self.tail)
    }
}

/// Runs a command that talks much and takes long: of its standard error a line is shown now and then, with the seconds
/// gone by, and the end of it only if the command fails.
///
/// # Errors
/// The outer error: the command could not be started. The inner one: it failed.
pub fn watched(task: &str, command: &mut Command) -> io::Result<Result<(), Failure>> {
    let start = Instant::now();
    let mut child = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped()).spawn()?;
    let mut lines = Vec::new();
    if let Some(stderr) = child.stderr.take() {
        let mut reported = start;
        for line in BufReader::new(stderr).lines().map_while(Result::ok) {
            if reported.elapsed() >= REPORT_EVERY {
                reported = Instant::now();
                say(task, &format!("{:4} s  {}", start.elapsed().as_secs(), line.trim()));
            }
            lines.push(line);
        }
    }
    let status = child.wait()?;
    if status.success() {
        return Ok(Ok(()));
    }
    let tail = lines.split_off(lines.len().saturating_sub(TAIL)).join("\n");
    Ok(Err(Failure { status, tail }))
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::watched;

    #[test]
    fn a_failed_command_leaves_the_end_of_what_it_said() {
        let mut command = Command::new("sh");
        command.args(["-c", "for i in $(seq 50); do echo line $i >&2; done; exit 3"]);
        let failure = watched("test", &mut command).expect("sh starts").expect_err("it exits with 3");
        assert_eq!(failure.status.code(), Some(3));
        assert!(
            failure.tail.starts_with("line 21\n") && failure.tail.ends_with("line 50"),
            "{}",
            failure.tail
        );
    }

    #[test]
    fn a_program_that_is_not_there_cannot_be_started() {
        assert!(watched("test", &mut Command::new("/nonexistent/program")).is_err());
    }
}
