//! The manifest folder that the agents watch.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use serde_json::Value;

/// A folder of YAML manifests. Files are created, replaced and removed atomically, as in a mounted
/// ConfigMap.
#[derive(Debug)]
pub struct ManifestDir {
    folder: PathBuf,
    /// A folder next to the watched one, on the same file system, so that renaming is atomic.
    staging: PathBuf,
}

impl ManifestDir {
    /// Creates the watched folder `manifests` and the folder `staging` in `parent`.
    pub fn create(parent: &Path) -> Result<Self> {
        let dir = Self { folder: parent.join("manifests"), staging: parent.join("staging") };
        fs::create_dir_all(&dir.folder)?;
        fs::create_dir_all(&dir.staging)?;
        Ok(dir)
    }

    /// Returns the watched folder.
    pub fn path(&self) -> &Path {
        &self.folder
    }

    /// Creates or replaces a file with these objects.
    pub fn write(&self, file: &str, objects: &[Value]) -> Result<()> {
        let mut text = String::new();
        for object in objects {
            text.push_str("---\n");
            text.push_str(&serde_saphyr::to_string(object).context("write an object as YAML")?);
        }
        self.write_text(file, &text)
    }

    /// Creates or replaces a file with this text.
    pub fn write_text(&self, file: &str, text: &str) -> Result<()> {
        let staged = self.staging.join(file);
        fs::write(&staged, text)?;
        fs::rename(&staged, self.folder.join(file))
            .with_context(|| format!("move the manifest {file} into the watched folder"))
    }

    /// Removes a file. Returns an error if it does not exist.
    pub fn remove(&self, file: &str) -> Result<()> {
        fs::remove_file(self.folder.join(file)).with_context(|| format!("remove the manifest {file}"))
    }
}
