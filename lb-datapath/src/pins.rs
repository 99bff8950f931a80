//! The folders of the pins. They keep maps and links alive after an agent has ended.
//!
//! ```text
//! <bpffs>/sluice/v3/{maps,links}       the maps and links of this layout version
//! <bpffs>/sluice/v3-next/maps          the maps that replace them, while an agent converts
//! <bpffs>/sluice/v3-next/handover      the phase of the conversion, and the programs before it
//! ```

use std::io;
use std::path::{Path, PathBuf};

use lb_common::layout::LAYOUT_VERSION;

/// The end of the name of a folder whose maps are not in use yet.
const STAGING: &str = "-next"; // the file system refuses names with a dot

/// The folder of the pins: `<bpffs>/sluice/v<layout version>/{maps,links}`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pins {
    root: PathBuf,
}

impl Pins {
    pub fn new(bpffs: &Path) -> Self {
        Self { root: bpffs.join("sluice").join(format!("v{LAYOUT_VERSION}")) }
    }

    /// Returns the folder of this layout version.
    pub fn root(&self) -> &Path {
        &self.root
    }

    pub fn maps(&self) -> PathBuf {
        self.root.join("maps")
    }

    pub fn map(&self, name: &str) -> PathBuf {
        self.maps().join(name)
    }

    pub fn links(&self) -> PathBuf {
        self.root.join("links")
    }

    pub(crate) fn create(&self) -> io::Result<()> {
        std::fs::create_dir_all(self.maps())?;
        std::fs::create_dir_all(self.links())
    }

    /// Returns the name of the folder, for messages: `v3`.
    pub(crate) fn name(&self) -> String {
        self.root.file_name().unwrap_or_default().to_string_lossy().into_owned()
    }

    /// Returns the folder of the maps that will replace those of this folder.
    pub(crate) fn staging(&self) -> Self {
        Self { root: self.root.with_file_name(format!("{}{STAGING}", self.name())) }
    }

    /// Returns the folder that the maps of this staging folder will replace. Returns `None` if this
    /// is no staging folder.
    pub(crate) fn target(&self) -> Option<Self> {
        let name = self.name();
        Some(Self { root: self.root.with_file_name(name.strip_suffix(STAGING)?) })
    }

    /// Returns the path of a map that exists only while an agent converts.
    pub(crate) fn handover(&self, name: &str) -> PathBuf {
        self.root.join("handover").join(name)
    }

    /// Returns this folder and its siblings, which belong to other versions or are staging folders.
    /// Sorted by name.
    pub(crate) fn all(&self) -> io::Result<Vec<Self>> {
        let mut all = Vec::new();
        for entry in std::fs::read_dir(self.root.parent().unwrap_or(&self.root))? {
            let entry = entry?;
            if entry.file_type()?.is_dir() && is_version(&entry.file_name().to_string_lossy()) {
                all.push(Self { root: entry.path() });
            }
        }
        all.sort_by(|a, b| a.root.cmp(&b.root));
        Ok(all)
    }

    /// Returns whether there are pinned maps.
    pub(crate) fn has_maps(&self) -> bool {
        has_entries(&self.maps())
    }

    /// Returns whether there are pinned links: programs of this folder are attached.
    pub(crate) fn has_links(&self) -> bool {
        has_entries(&self.links())
    }
}

fn has_entries(folder: &Path) -> bool {
    std::fs::read_dir(folder).is_ok_and(|mut entries| entries.next().is_some())
}

fn is_version(name: &str) -> bool {
    let name = name.strip_suffix(STAGING).unwrap_or(name);
    name.strip_prefix('v').is_some_and(|number| number.parse::<u32>().is_ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn staging_folders_are_beside_those_that_they_replace() {
        let pins = Pins::new(Path::new("/sys/fs/bpf"));
        let staging = pins.staging();
        assert_eq!(staging.root().parent(), pins.root().parent());
        assert_eq!((staging.target(), pins.target()), (Some(pins), None));
    }

    #[test]
    fn folders_of_all_versions_are_found() {
        assert!(["v1", "v12", "v3-next"].into_iter().all(is_version));
        assert!(!["v", "vx", "v3-old", "next", "maps"].into_iter().any(is_version));
    }
}
