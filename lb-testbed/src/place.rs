//! The network namespace and the cgroup that a process runs in.

use std::ffi::OsStr;
use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::fd::AsFd;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::{fs, thread};

use anyhow::{Context, Result, bail};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use crate::command::{finish, run};
use crate::run::{NETNS_DIR, creating};

/// A network namespace (by its `ip netns` name) and a directory of the cgroup-v2 hierarchy.
#[derive(Debug, Clone)]
pub struct Place {
    netns: String,
    cgroup: PathBuf,
}

impl Place {
    /// Creates both. The caller is responsible for removing them, see [`crate::run`].
    pub fn create(netns: String, cgroup: PathBuf) -> Result<Self> {
        let _creating = creating();
        fs::create_dir_all(&cgroup).with_context(|| format!("create the cgroup {}", cgroup.display()))?;
        run(Command::new("ip").args(["netns", "add", &netns]))?;
        Ok(Self { netns, cgroup })
    }

    /// Returns the same network namespace with another cgroup, which this function creates.
    pub fn in_cgroup(&self, cgroup: PathBuf) -> Result<Self> {
        let _creating = creating();
        fs::create_dir_all(&cgroup).with_context(|| format!("create the cgroup {}", cgroup.display()))?;
        Ok(Self { netns: self.netns.clone(), cgroup })
    }

    /// Returns the `ip netns` name of the network namespace.
    pub fn netns(&self) -> &str {
        &self.netns
    }

    /// Returns the directory of the cgroup.
    pub fn cgroup(&self) -> &Path {
        &self.cgroup
    }

    /// Returns a command that will run in the namespace and the cgroup. `/sys` remains the
    /// machine's. (`ip netns exec` would mount a new `/sys`, which hides the cgroup file systems.)
    pub fn command(&self, program: impl AsRef<OsStr>) -> Result<Command> {
        let namespace = self.open_netns()?;
        let procs = self.cgroup.join("cgroup.procs");
        let mut procs = OpenOptions::new()
            .write(true)
            .open(&procs)
            .with_context(|| format!("open {}", procs.display()))?;
        let mut command = Command::new(program);
        // SAFETY: between fork and exec the closure makes two system calls on descriptors that were
        // opened before the fork. It allocates nothing. Writing "0" moves the writing process.
        unsafe {
            command.pre_exec(move || {
                move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::Network))?;
                procs.write_all(b"0")
            });
        }
        Ok(command)
    }

    /// Runs a command to its end in the namespace and the cgroup. Returns its standard output.
    pub fn run<S: AsRef<OsStr>>(
        &self,
        program: &str,
        arguments: impl IntoIterator<Item = S>,
    ) -> Result<String> {
        run(self.command(program)?.args(arguments)).with_context(|| format!("in {}", self.netns))
    }

    /// Runs the commands of `script` (one per line, without the leading `ip`) in one `ip` process.
    pub fn ip(&self, script: &str) -> Result<()> {
        let mut child = self
            .command("ip")?
            .args(["-batch", "-"])
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .context("start ip (is iproute2 installed?)")?;
        let mut input = child.stdin.take().context("ip has no standard input")?;
        input.write_all(script.as_bytes())?;
        drop(input);
        let output = finish(child)?;
        if !output.status.success() {
            bail!("ip in {}: {}\n{script}", self.netns, String::from_utf8_lossy(&output.stderr).trim());
        }
        Ok(())
    }

    /// Sets kernel parameters of the network namespace. Each has the form `net/ipv4/ip_forward=1`.
    /// Returns an error for a parameter that does not exist.
    pub fn sysctl(&self, settings: &[&str]) -> Result<()> {
        self.inside(|| {
            for setting in settings {
                let (name, value) =
                    setting.split_once('=').with_context(|| format!("{setting} has no value"))?;
                fs::write(Path::new("/proc/sys").join(name), value)
                    .with_context(|| format!("set {setting}"))?;
            }
            Ok(())
        })?
    }

    /// Returns the index of a device of the network namespace.
    pub fn ifindex(&self, device: &str) -> Result<u32> {
        let link = self.run("ip", ["-oneline", "link", "show", "dev", device])?;
        let index = link.split(':').next().with_context(|| format!("no index of {device}"))?;
        Ok(index.trim().parse()?)
    }

    /// Runs `work` on a thread of this process that has entered the network namespace, but not the
    /// cgroup.
    pub fn inside<T: Send>(&self, work: impl FnOnce() -> T + Send) -> Result<T> {
        let namespace = self.open_netns()?;
        thread::scope(|scope| {
            scope
                .spawn(|| {
                    move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::Network))
                        .map_err(io::Error::from)
                        .with_context(|| format!("enter the network namespace {}", self.netns))?;
                    Ok(work())
                })
                .join()
                .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    }

    fn open_netns(&self) -> Result<File> {
        let path = Path::new(NETNS_DIR).join(&self.netns);
        File::open(&path).with_context(|| format!("open the network namespace {}", path.display()))
    }
}
