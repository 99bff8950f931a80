//! A copy of the sources, for faults and for programs that write beside manifests. The sources of
//! the workspace are never changed.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result};

use crate::workspace;

/// Entries of the root that are not copied.
const LEFT_OUT: [&str; 2] = ["target", ".git"];

/// A copy of the workspace.
pub struct Tree {
    root: PathBuf,
}

impl Tree {
    /// Makes `root` a copy of the workspace. Files that are equal already are not written, so that
    /// cargo does not compile them again.
    pub fn copy_to(root: PathBuf) -> Result<Self> {
        let mut paths = BTreeSet::new();
        list(workspace::root(), Path::new(""), &mut paths)?;
        let mut old = BTreeSet::new();
        if root.exists() {
            list(&root, Path::new(""), &mut old)?;
        }
        for gone in old.difference(&paths) {
            fs::remove_file(root.join(gone))?;
        }
        for path in &paths {
            let content = fs::read(workspace::root().join(path))?;
            write_if_changed(&root.join(path), &content)?;
        }
        Ok(Self { root })
    }

    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Returns the target folder of builds in this copy.
    pub fn target(&self) -> PathBuf {
        self.root.join("target")
    }

    /// Returns the content of a file.
    pub fn read(&self, file: &str) -> Result<String> {
        fs::read_to_string(self.root.join(file)).with_context(|| format!("cannot read {file}"))
    }

    /// Replaces the content of a file.
    pub fn write(&self, file: &str, content: &str) -> Result<()> {
        write_if_changed(&self.root.join(file), content.as_bytes())
    }
}

fn write_if_changed(path: &Path, content: &[u8]) -> Result<()> {
    if fs::read(path).is_ok_and(|old| old == content) {
        return Ok(());
    }
    if let Some(folder) = path.parent() {
        fs::create_dir_all(folder).with_context(|| format!("cannot create {}", folder.display()))?;
    }
    fs::write(path, content).with_context(|| format!("cannot write {}", path.display()))
}

/// Adds the files below `root/folder` by their paths from `root`.
fn list(root: &Path, folder: &Path, paths: &mut BTreeSet<PathBuf>) -> Result<()> {
    for entry in fs::read_dir(root.join(folder))? {
        let entry = entry?;
        let path = folder.join(entry.file_name());
        if LEFT_OUT.iter().any(|name| path == Path::new(name)) {
            continue;
        }
        if entry.file_type()?.is_dir() {
            list(root, &path, paths)?;
        } else if entry.file_type()?.is_file() {
            paths.insert(path);
        }
    }
    Ok(())
}
