//! Where the maps are: arguments of all commands that read or remove them.

use std::path::PathBuf;

use clap::Args;

#[derive(Debug, Clone, Args)]
pub struct PinArgs {
    /// BPF file system that the agent uses (its --bpffs)
    #[arg(long, env = "SLUICE_BPFFS", value_name = "DIR", default_value = "/sys/fs/bpf")]
    pub bpffs: PathBuf,
}

impl PinArgs {
    /// The folder above those of all layout versions.
    pub fn root(&self) -> PathBuf {
        self.bpffs.join("sluice")
    }
}
