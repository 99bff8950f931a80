//! The reasons why the agent cannot start or continue.

use std::io;

use lb_datapath::{AttachError, GrowError, LoadError};
use lb_objects::kubernetes::KubernetesError;
use lb_objects::manifests::ManifestError;

use super::lock::LockError;
use crate::node::NodeError;
use crate::preflight::PreflightError;
use crate::serve::BindError;

/// A reason why the agent cannot start or continue.
#[derive(Debug, thiserror::Error)]
pub enum AgentError {
    #[error(transparent)]
    Preflight(#[from] PreflightError),
    #[error(transparent)]
    Lock(#[from] LockError),
    #[error("cannot install handlers for SIGTERM and SIGINT")]
    Signals(#[source] io::Error),
    #[error(transparent)]
    Bind(#[from] BindError),
    #[error(transparent)]
    Node(#[from] NodeError),
    #[error(transparent)]
    Kubernetes(#[from] KubernetesError),
    #[error(transparent)]
    Manifests(#[from] ManifestError),
    #[error(transparent)]
    Load(#[from] LoadError),
    #[error(transparent)]
    Grow(#[from] GrowError),
    #[error(transparent)]
    Attach(#[from] AttachError),
    #[error("the kernel refuses the programs for packets, and no socket program can be attached")]
    NothingServes,
    #[error("cannot read the maps of an earlier agent")]
    Adopt(#[source] Box<dyn std::error::Error + Send + Sync>),
    #[error("cannot watch network namespaces")]
    Namespaces(#[source] io::Error),
    #[error("cannot start the thread that reads the flow table")]
    Sweeps(#[source] io::Error),
    #[error("the thread that reads the flow table has ended unexpectedly")]
    SweepsEnded,
    #[error("the source of Services ended unexpectedly")]
    SourceEnded,
}

impl AgentError {
    /// Returns the remedy, if the message does not contain it.
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::Preflight(error) => Some(error.hint()),
            Self::Lock(LockError::Held { .. }) => {
                Some("end that agent first, or use --wait-lock to wait until it has ended".into())
            }
            Self::NothingServes => {
                Some("the log has the kernel's reason and a remedy for each program".into())
            }
            Self::Grow(_) => Some("start the agent again: it continues with the maps of both sizes".into()),
            Self::Adopt(_) => Some("`lb cleanup` removes these maps; open connections break".into()),
            _ => None,
        }
    }
}
