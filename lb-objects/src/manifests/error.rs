//! The errors of a manifest folder.

use std::path::PathBuf;

/// The reasons why objects cannot be read from a manifest folder at all.
#[derive(Debug, thiserror::Error)]
pub enum ManifestError {
    #[error(
        "the manifest folder {} cannot be read: {source}: set --manifests to an existing folder",
        path.display()
    )]
    Folder { path: PathBuf, source: std::io::Error },
    #[error(
        "the manifest folder {} cannot be watched for changes: {source}: increase \
         fs.inotify.max_user_watches if the folder is large",
        path.display()
    )]
    Watch { path: PathBuf, source: notify::Error },
    #[error("reading the manifest folder was interrupted: {0}")]
    Interrupted(#[from] tokio::task::JoinError),
}
