//! Applies changes of the configuration file while the agent runs.
//!
//! The agent reads the file again when it has changed. The kubelet replaces a link to the file of a
//! ConfigMap, so the file itself is looked at, not its folder. Settings of [`LIVE`] are applied at
//! once. All others need a restart, and the log lists those that differ.

use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use serde_json::{Map, Value};
use tokio::sync::watch;

use crate::config::AgentArgs;

/// The keys of settings that are applied without a restart.
const LIVE: [&str; 5] = ["devices", "logLevel", "mode", "nodeportAddresses", "podInterfaces"];

/// Reads the command line again, with the files that it names. An error is its message.
pub type ReadAgain = Box<dyn Fn() -> Result<AgentArgs, String> + Send>;

/// The configuration of a running agent.
pub struct Reload {
    /// The file of `--config`.
    path: PathBuf,
    /// Its state when it was read last.
    state: Option<FileState>,
    /// The settings in force by file key: those with which the agent started, and later changes of
    /// live ones.
    in_force: watch::Sender<Map<String, Value>>,
    read: ReadAgain,
}

/// Changes when a file is written or replaced: device, inode, size, and time of the last change in
/// seconds and nanoseconds.
type FileState = (u64, u64, u64, i64, i64);

fn state(path: &Path) -> Option<FileState> {
    let file = std::fs::metadata(path).ok()?;
    Some((file.dev(), file.ino(), file.size(), file.ctime(), file.ctime_nsec()))
}

/// A change of the file.
#[derive(Debug, PartialEq)]
pub enum Reloaded {
    /// The settings that differ from those in force.
    Changed {
        args: Box<AgentArgs>,
        /// The keys that are applied now.
        live: Vec<String>,
        /// The keys that need a restart.
        restart: Vec<String>,
    },
    /// The file cannot be used. The settings in force stay.
    Refused(String),
}

impl Reload {
    /// Returns `None` without a file: flags and environment do not change.
    pub fn new(
        config: Option<PathBuf>,
        in_force: watch::Sender<Map<String, Value>>,
        read: ReadAgain,
    ) -> Option<Self> {
        let path = config?;
        let state = state(&path);
        Some(Self { path, state, in_force, read })
    }

    /// Returns the change of the file since the last call, if there is one. It costs one system
    /// call if there is none.
    pub fn check(&mut self) -> Option<Reloaded> {
        let state = state(&self.path);
        if state == self.state {
            return None;
        }
        self.state = state;
        let args = match (self.read)() {
            Ok(args) => args,
            Err(reason) => return Some(Reloaded::Refused(reason)),
        };
        let (mut live, mut restart) = (Vec::new(), Vec::new());
        self.in_force.send_modify(|in_force| {
            for (key, value) in &args.effective {
                if in_force.get(key) == Some(value) {
                    continue;
                }
                if LIVE.contains(&key.as_str()) {
                    in_force.insert(key.clone(), value.clone());
                    live.push(key.clone());
                } else {
                    restart.push(key.clone());
                }
            }
        });
        Some(Reloaded::Changed { args: Box::new(args), live, restart })
    }
}

#[cfg(test)]
mod tests {
    use std::ffi::OsString;
    use std::fs;

    use super::*;
    use crate::cli::{self, Command, Invocation};
    use crate::config::Machine;

    fn read(path: &Path) -> Result<AgentArgs, String> {
        let config = format!("--config={}", path.display());
        let line = ["lb", "agent", "--node-name=here", &config].map(OsString::from);
        let machine = Machine { host_name: "here".into(), cgroup_root: None, memory: 1 << 30 };
        match cli::parse(line, &machine) {
            Ok(Invocation::Run(Command::Agent(args))) => Ok(*args),
            Ok(other) => panic!("{other:?}"),
            Err(error) => Err(error.to_string()),
        }
    }

    #[test]
    fn changes_of_the_file_are_live_or_need_a_restart() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("sluice.yaml");
        fs::write(&path, "mode: tc\nlogLevel: info\n").unwrap();
        let args = read(&path).unwrap();
        let read_again = {
            let path = path.clone();
            move || read(&path)
        };
        let (sender, in_force) = watch::channel(args.effective);
        let mut reload = Reload::new(args.config, sender, Box::new(read_again)).unwrap();
        assert_eq!(reload.check(), None);

        fs::write(&path, "# the same\nmode: tc\nlogLevel: info\n").unwrap();
        assert!(matches!(reload.check(), Some(Reloaded::Changed { live, restart, .. })
            if live.is_empty() && restart.is_empty()));

        fs::write(&path, "mode: tc\nlogLevel: debug\ndevices: eth9\nmaxFlows: 4096\n").unwrap();
        match reload.check() {
            Some(Reloaded::Changed { args, live, restart }) => {
                assert_eq!(
                    (live, restart),
                    (vec!["devices".to_owned(), "logLevel".to_owned()], vec!["maxFlows".to_owned()])
                );
                assert_eq!(args.effective["devices"], "eth9");
            }
            other => panic!("{other:?}"),
        }
        assert_eq!(in_force.borrow()["devices"], "eth9");
        assert_ne!(in_force.borrow()["maxFlows"], 4096, "it needs a restart");
        assert_eq!(reload.check(), None, "reported once");

        fs::write(&path, "mode: xpd\n").unwrap();
        assert!(
            matches!(reload.check(), Some(Reloaded::Refused(reason)) if reason.contains("invalid value 'xpd'"))
        );
        fs::remove_file(&path).unwrap();
        assert!(matches!(reload.check(), Some(Reloaded::Refused(reason)) if reason.contains("cannot read")));

        // What needs a restart is reported again as long as it differs.
        fs::write(&path, "mode: tc\nmaxFlows: 4096\n").unwrap();
        match reload.check() {
            Some(Reloaded::Changed { live, restart, .. }) => {
                assert_eq!(
                    (live, restart),
                    (vec!["devices".to_owned(), "logLevel".to_owned()], vec!["maxFlows".to_owned()])
                );
            }
            other => panic!("{other:?}"),
        }
    }
}
