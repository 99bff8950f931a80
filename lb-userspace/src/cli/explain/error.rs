//! Errors of `lb explain`.

use std::io;

use lb_datapath::{AttachError, LoadError};
use lb_ingress::proxy::QuestionError;

use crate::agent::AgentError;
use crate::cli::objects::ObjectsError;
use crate::config::SettingsError;
use crate::node::NodeError;
use crate::preflight::PreflightError;
use crate::probe::origin::OriginError;
use crate::probe::packet::PacketError;
use crate::view::OutputError;

/// The arguments describe no packet, or no request.
#[derive(Debug, thiserror::Error)]
pub enum ExplainUsageError {
    #[error(transparent)]
    Packet(#[from] PacketError),
    #[error(transparent)]
    Request(#[from] QuestionError),
}

/// An error of `lb explain`.
#[derive(Debug, thiserror::Error)]
pub enum ExplainError {
    #[error(transparent)]
    Packet(#[from] PacketError),
    #[error(transparent)]
    Question(#[from] QuestionError),
    #[error(transparent)]
    Objects(#[from] ObjectsError),
    #[error("`{0}` is no address: --client needs the address that the client connects to")]
    NoAddress(String),
    #[error(transparent)]
    Preflight(#[from] PreflightError),
    #[error(transparent)]
    Load(#[from] LoadError),
    #[error(transparent)]
    Devices(#[from] AttachError),
    #[error(transparent)]
    Origin(#[from] OriginError),
    #[error(transparent)]
    Node(#[from] NodeError),
    #[error(transparent)]
    Manifests(#[from] AgentError),
    #[error("invalid settings in the environment: {0}")]
    Settings(#[source] Box<SettingsError>),
    #[error("the agent runs in another network namespace, with other devices and routes")]
    OtherNamespace,
    #[error("cannot read the maps")]
    Maps(#[source] io::Error),
    #[error("the kernel cannot run the recording program (BPF_PROG_TEST_RUN)")]
    Run(#[source] io::Error),
    #[error(transparent)]
    Output(#[from] OutputError),
    #[error("cannot write JSON")]
    Json(#[from] serde_json::Error),
}

impl ExplainError {
    /// Returns the remedy, if there is one.
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::Preflight(error) => Some(error.hint()),
            Self::Load(LoadError::NoMaps(_)) => Some(
                "start `lb agent` of this version, or give its --bpffs; --manifests needs no agent".into(),
            ),
            Self::NoAddress(_) => Some("give it with --address, or in the URL with -H 'Host: …'".into()),
            Self::OtherNamespace => Some(
                "run it there: `nsenter --net --target PID lb explain …`, with the PID of the agent".into(),
            ),
            Self::Manifests(error) => error.hint(),
            _ => None,
        }
    }
}
