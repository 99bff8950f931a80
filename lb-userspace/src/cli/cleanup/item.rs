//! The items that `lb cleanup` removes.

use std::fmt;
use std::path::PathBuf;

use super::filters::{Qdisc, SluiceFilter};

/// Something that an agent created.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Item {
    /// A pinned link, map or program.
    Pin(PathBuf),
    Folder(PathBuf),
    Filter(SluiceFilter),
    Qdisc(Qdisc),
}

impl fmt::Display for Item {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Pin(path) => write!(f, "pin    {}", path.display()),
            Self::Folder(path) => write!(f, "folder {}", path.display()),
            Self::Filter(filter) => write!(f, "filter {filter}"),
            Self::Qdisc(qdisc) => write!(f, "qdisc  {qdisc}"),
        }
    }
}
