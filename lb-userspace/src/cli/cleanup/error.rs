//! The errors of `lb cleanup`.

use std::io;
use std::path::PathBuf;

use crate::agent::LockError;
use crate::preflight::PreflightError;

#[derive(Debug, thiserror::Error)]
pub enum CleanupError {
    #[error(transparent)]
    Preflight(#[from] PreflightError),
    #[error(transparent)]
    Lock(#[from] LockError),
    #[error("cannot list {}", path.display())]
    List { path: PathBuf, source: io::Error },
    #[error("cannot list the filters of the network devices")]
    Filters(#[source] io::Error),
    #[error("kube-proxy runs on this node: {0}")]
    KubeProxyRuns(String),
    #[error("cannot use {} as the root folder", path.display())]
    HostRoot { path: PathBuf, source: io::Error },
    #[error("neither iptables-save nor nft is installed here; without them no rules can be listed")]
    NoPrograms,
    #[error("{failed} of {total} items could not be removed, see above; the first: {first}")]
    Incomplete { failed: usize, total: usize, first: String },
}

impl CleanupError {
    /// Returns the remedy, if there is one.
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::Preflight(error) => Some(error.hint()),
            Self::Lock(LockError::Held { .. }) => {
                Some("stop it first: it would create everything again".into())
            }
            Self::KubeProxyRuns(_) => {
                Some("stop it first: it would create its rules again; --dry-run works meanwhile".into())
            }
            Self::NoPrograms => Some(
                "in a container, give the node's root folder with --host-root; if the node has neither \
                 program, run `kube-proxy --cleanup` in the image of kube-proxy"
                    .into(),
            ),
            _ => None,
        }
    }
}
