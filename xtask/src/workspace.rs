//! Folders of this workspace.

use std::{
    env,
    path::{Path, PathBuf},
};

/// Returns the root folder of the workspace, independent of the working directory.
pub fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap_or(Path::new("."))
}

/// Returns the folder into which builds write.
pub fn target() -> PathBuf {
    env::var_os("CARGO_TARGET_DIR").map_or_else(|| root().join("target"), PathBuf::from)
}
