//! Creates folders.

use std::fs;
use std::path::Path;

use crate::error::BuildError;

/// Creates a folder and those above it.
pub fn create_folder(path: &Path) -> Result<(), BuildError> {
    fs::create_dir_all(path).map_err(|source| BuildError::file("create the folder", path, source))
}
