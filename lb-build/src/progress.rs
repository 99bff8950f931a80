//! Progress of long commands, on standard error.

use std::{
    fmt,
    io::{self, BufRead as _, BufReader, IsTerminal as _, stderr},
    process::{Command, ExitStatus, Stdio},
    time::{Duration, Instant},
};

/// While a command runs, one line of progress appears this often.
const REPORT_EVERY: Duration = Duration::from_secs(10);

/// The same on a terminal, where one line is rewritten in place and so may change faster.
const REPORT_ON_TERMINAL_EVERY: Duration = Duration::from_millis(200);

/// The number of lines that are shown of the end of a failed command's output.
const TAIL: usize = 30;

/// First words of the lines by which cargo reports its progress.
const CARGO_STATUS: [&str; 14] = [
    "Adding",
    "Blocking",
    "Building",
    "Checking",
    "Compiling",
    "Downloaded",
    "Downloading",
    "Executable",
    "Finished",
    "Fresh",
    "Locking",
    "Preparing",
    "Running",
    "Updating",
];

/// Writes one line about `task`.
pub fn report(task: &str, text: &str) {
    eprintln!("{task}: {text}");
}

/// Runs `work` and reports its duration if that is a second or more.
///
/// # Errors
/// Those of `work`.
pub fn timed<T, E>(task: &str, done: &str, work: impl FnOnce() -> Result<T, E>) -> Result<T, E> {
    let start = Instant::now();
    let result = work()?;
    let seconds = start.elapsed().as_secs();
    if seconds >= 1 {
        report(task, &format!("{done} in {seconds} s"));
    }
    Ok(result)
}

/// A watched command that failed.
#[derive(Debug)]
pub struct CommandFailure {
    /// Exit code or signal.
    pub status: ExitStatus,
    /// The last lines of its standard error.
    pub tail: String,
}

impl fmt::Display for CommandFailure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}\n{}", self.status, self.tail)
    }
}

/// Runs a command and hides its output: every few seconds the line of standard error that came last
/// is shown. The end of the output is returned if the command fails.
///
/// # Errors
/// The outer error: the command could not be started. The inner error: the command failed.
pub fn watched(task: &str, command: &mut Command) -> io::Result<Result<(), CommandFailure>> {
    let mut lines = Vec::new();
    let status = watch(task, command, |line| {
        lines.push(line.to_owned());
        true
    })?;
    if status.success() {
        return Ok(Ok(()));
    }
    let tail = lines.split_off(lines.len().saturating_sub(TAIL)).join("\n");
    Ok(Err(CommandFailure { status, tail }))
}

/// Runs a cargo command that compiles. Warnings and errors are shown as they come; the lines about
/// single crates are progress, of which one is shown every few seconds.
///
/// # Errors
/// The command could not be started.
pub fn watched_cargo(task: &str, command: &mut Command) -> io::Result<ExitStatus> {
    if stderr().is_terminal() {
        // Cargo sees a pipe and would leave the colours out.
        command.env("CARGO_TERM_COLOR", "always");
    }
    watch(task, command, |line| {
        let text = without_escapes(line);
        // Cargo aligns its status to the right; the lines of a diagnostic begin at the left or with
        // a line number.
        text.starts_with(' ')
            && text.split_whitespace().next().is_some_and(|word| CARGO_STATUS.contains(&word))
    })
}

/// Runs a command. Lines of standard error for which `is_progress` is true are shown now and then,
/// all others at once.
fn watch(
    task: &str,
    command: &mut Command,
    mut is_progress: impl FnMut(&str) -> bool,
) -> io::Result<ExitStatus> {
    let mut progress = Line::new(task);
    let mut child = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped()).spawn()?;
    if let Some(stderr) = child.stderr.take() {
        let mut stderr = BufReader::new(stderr);
        let mut bytes = Vec::new();
        while stderr.read_until(b'\n', &mut bytes)? > 0 {
            let line = String::from_utf8_lossy(&bytes);
            let line = line.trim_end();
            if is_progress(line) {
                progress.show(&without_escapes(line));
            } else {
                progress.clear();
                eprintln!("{line}");
            }
            bytes.clear();
        }
    }
    progress.clear();
    child.wait()
}

/// The line of progress of one command.
struct Line<'a> {
    task: &'a str,
    start: Instant,
    shown: Instant,
    /// Whether the line is rewritten in place, instead of being followed by the next one.
    in_place: bool,
}

impl<'a> Line<'a> {
    fn new(task: &'a str) -> Self {
        let now = Instant::now();
        Self { task, start: now, shown: now, in_place: stderr().is_terminal() }
    }

    fn show(&mut self, text: &str) {
        let every = if self.in_place { REPORT_ON_TERMINAL_EVERY } else { REPORT_EVERY };
        if self.shown.elapsed() < every || text.is_empty() {
            return;
        }
        self.shown = Instant::now();
        let text = format!("{:4} s  {}", self.start.elapsed().as_secs(), text.trim());
        if self.in_place {
            // Short enough for a terminal of 80 columns: a line that wraps could not be rewritten.
            let room = 78usize.saturating_sub(self.task.len());
            eprint!("\r\x1b[K{}: {}", self.task, text.chars().take(room).collect::<String>());
        } else {
            report(self.task, &text);
        }
    }

    fn clear(&self) {
        if self.in_place {
            eprint!("\r\x1b[K");
        }
    }
}

/// Returns the text without the escape sequences that set colours.
fn without_escapes(text: &str) -> String {
    let mut parts = text.split("\x1b[");
    let first = parts.next().unwrap_or_default().to_owned();
    parts.fold(first, |plain, part| plain + part.split_once('m').map_or("", |(_, rest)| rest))
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::{watch, watched, without_escapes};

    #[test]
    fn the_end_of_a_failed_commands_output_is_returned() {
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
    fn every_line_is_classified_once_and_without_its_end() {
        let mut command = Command::new("sh");
        command.args(["-c", "echo '   Compiling a v1'; echo '   Compiling b v1' >&2; printf end >&2"]);
        let mut lines = Vec::new();
        let status = watch("test", &mut command, |line| {
            lines.push(line.to_owned());
            true
        });
        assert!(status.expect("sh starts").success());
        assert_eq!(lines, ["   Compiling b v1", "end"]);
    }

    #[test]
    fn colours_are_removed() {
        assert_eq!(without_escapes("\x1b[1m\x1b[92m   Compiling\x1b[0m a"), "   Compiling a");
        assert_eq!(without_escapes("no colour"), "no colour");
    }

    #[test]
    fn a_program_that_does_not_exist_cannot_be_started() {
        assert!(watched("test", &mut Command::new("/nonexistent/program")).is_err());
    }
}
