//! The folder of the pins. They keep maps and links alive after an agent has ended.

use std::io;
use std::path::{Path, PathBuf};

use lb_common::layout::LAYOUT_VERSION;

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
}
