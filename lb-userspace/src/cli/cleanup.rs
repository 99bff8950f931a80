//! `lb cleanup`.

use clap::Args;

use super::PinArgs;

#[derive(Debug, Args)]
pub struct CleanupArgs {
    /// Only say what would be removed
    #[arg(long)]
    pub dry_run: bool,

    #[command(flatten)]
    pub pins: PinArgs,
}
