//! The location of the pinned maps: arguments of all commands that read or remove them.

use std::path::PathBuf;

use clap::Args;

#[derive(Debug, Clone, Args)]
pub struct PinArgs {
    /// BPF file system of the agent: the value of its --bpffs
    #[arg(long, env = "SLUICE_BPFFS", value_name = "DIR", default_value = "/sys/fs/bpf")]
    pub bpffs: PathBuf,
}

impl PinArgs {
    /// Returns the folder that holds one folder for each map layout version.
    pub fn root(&self) -> PathBuf {
        self.bpffs.join("sluice")
    }
}
