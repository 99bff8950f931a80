//! A program that serves until it is stopped, as a child process with a log file.

use std::fs::{self, OpenOptions};
use std::net::SocketAddr;
use std::os::unix::process::ExitStatusExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, ensure};
use rustix::process::Signal;

use crate::host::Process;
use crate::http;
use crate::patience::patient;
use crate::place::Place;

/// How long a program may take until it is ready. Loading kernel programs takes seconds on a busy
/// machine.
pub(crate) const START_LIMIT: Duration = Duration::from_secs(60);

/// Starts a command with its output at the end of the file `log`.
pub(crate) fn spawn(command: &mut Command, log: &Path) -> Result<Process> {
    let output = OpenOptions::new().create(true).append(true).open(log)?;
    command.stdin(Stdio::null()).stdout(output.try_clone()?).stderr(output);
    let child = command.spawn().with_context(|| format!("start {}", command.get_program().display()))?;
    Ok(Process(child))
}

/// Returns the last 40 lines of a log file, for a failure message.
pub fn tail(log: &Path) -> String {
    let text = fs::read_to_string(log).unwrap_or_else(|error| format!("{}: {error}", log.display()));
    let lines: Vec<_> = text.lines().collect();
    let from = lines.len().saturating_sub(40);
    format!("--- {}\n{}\n---", log.display(), lines[from..].join("\n"))
}

/// A running `lb agent` or `lb ingress`. Dropping it kills the process, as a crash would.
#[derive(Debug)]
pub(crate) struct Daemon {
    /// Names the program and its host in failure messages.
    name: String,
    process: Process,
    log: PathBuf,
    /// Bytes in the log file that earlier processes wrote.
    earlier_log: u64,
}

impl Daemon {
    /// Starts a program, and does not wait until it is ready.
    pub fn spawn(name: String, command: &mut Command, log: PathBuf) -> Result<Self> {
        let earlier_log = fs::metadata(&log).map_or(0, |log| log.len());
        let process = spawn(command, &log)?;
        Ok(Self { name, process, log, earlier_log })
    }

    /// Waits until the program returns 200 for `path`. `address` is in the network namespace of
    /// `place`.
    pub fn wait_until_ready(&mut self, place: &Place, address: SocketAddr, path: &str) -> Result<()> {
        let deadline = Instant::now() + patient(START_LIMIT);
        loop {
            if let Some(status) = self.process.0.try_wait()? {
                return Err(self.failed(&format!("exited early with {status}")));
            }
            match http::get(place, address, path) {
                Ok(answer) if answer.status == 200 => return Ok(()),
                Ok(answer) if Instant::now() > deadline => {
                    let problem = format!("still returns {} on {path} after a minute", answer.status);
                    return Err(self.failed(&problem));
                }
                Err(error) if Instant::now() > deadline => {
                    return Err(self.failed(&format!("does not answer {path}: {error:#}")));
                }
                _ => thread::sleep(Duration::from_millis(20)),
            }
        }
    }

    /// Waits until the program has killed itself.
    pub fn wait_until_killed(mut self) -> Result<()> {
        let deadline = Instant::now() + patient(START_LIMIT);
        loop {
            match self.process.0.try_wait()? {
                Some(status) if status.signal() == Some(libc::SIGKILL) => return Ok(()),
                Some(status) => return Err(self.failed(&format!("exited with {status}"))),
                None if Instant::now() > deadline => return Err(self.failed("does not reach the step")),
                None => thread::sleep(Duration::from_millis(5)),
            }
        }
    }

    pub fn terminate(&self) -> Result<()> {
        self.process.signal(Signal::TERM).with_context(|| format!("send SIGTERM to {}", self.name))
    }

    /// Sends SIGTERM, as the kubelet does, and waits for the exit. Returns an error if the exit
    /// status is not 0.
    pub fn stop(mut self) -> Result<()> {
        self.terminate()?;
        let status = self.process.wait()?;
        ensure!(status.success(), self.failed(&format!("exited with {status} on SIGTERM")));
        Ok(())
    }

    pub fn pid(&self) -> u32 {
        self.process.pid()
    }

    /// Returns the path of the log file.
    pub fn log_path(&self) -> &Path {
        &self.log
    }

    /// Returns what this process has logged, without the lines of earlier ones.
    pub fn log(&self) -> Result<String> {
        let log = fs::read(&self.log).with_context(|| format!("read {}", self.log.display()))?;
        let own = log.get(self.earlier_log as usize..).unwrap_or_default();
        Ok(String::from_utf8_lossy(own).into_owned())
    }

    fn failed(&self, what: &str) -> anyhow::Error {
        anyhow!("{} {what}\n{}", self.name, tail(&self.log))
    }
}
