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
    #[error("neither iptables-save nor nft is installed here, so nothing of kube-proxy can be found")]
    NoPrograms,
    #[error("{failed} of {total} could not be removed, see above; the first: {first}")]
    Incomplete { failed: usize, total: usize, first: String },
}

impl CleanupError {
    /// What a person can do.
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::Preflight(error) => Some(error.hint()),
            Self::Lock(LockError::Held { .. }) => Some("end it first: it would put everything back".into()),
            Self::KubeProxyRuns(_) => Some(
                "end it first: it would put everything back; --dry-run lists what it has here meanwhile".into(),
            ),
            Self::NoPrograms => Some(
                "in a container, name the folder where the node's root is with --host-root; where the node has \
                 neither, run `kube-proxy --cleanup` from kube-proxy's image"
                    .into(),
            ),
            _ => None,
        }
    }
}
