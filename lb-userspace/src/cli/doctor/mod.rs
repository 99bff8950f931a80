//! `lb doctor`: reads facts about this node and prints findings. It changes nothing.
//! [`view::doctor`](crate::view::doctor) decides which facts are faults.

mod args;
mod cluster;
mod datapath;
pub mod devices;
mod host;
mod kernel;

use std::io;
use std::path::PathBuf;

pub use args::DoctorArgs;

use super::host_root;
use crate::config::Machine;
use crate::view::OutputError;
use crate::view::doctor::{self, ApiServer, Facts};

/// The output of `lb doctor`.
pub struct Diagnosis {
    pub text: String,
    /// Whether a finding is an error.
    pub has_error: bool,
}

/// The reason why nothing could be checked.
#[derive(Debug, thiserror::Error)]
pub enum DoctorError {
    #[error("cannot use {} as the root folder", path.display())]
    HostRoot { path: PathBuf, source: io::Error },
    #[error(transparent)]
    Output(#[from] OutputError),
}

impl DoctorArgs {
    /// Checks this node, and returns the text to print.
    pub async fn run(&self) -> Result<Diagnosis, DoctorError> {
        // The kubeconfig and the service account are files of the container.
        let api_server = cluster::api_server(self.kubeconfig.as_deref(), &self.api_server.0).await;
        if let Some(root) = &self.host_root {
            host_root::enter(root).map_err(|source| DoctorError::HostRoot { path: root.clone(), source })?;
        }
        let findings = doctor::findings(&self.facts(api_server).await);
        let text = doctor::render_findings(&findings, self.output)?;
        Ok(Diagnosis { text, has_error: doctor::has_error(&findings) })
    }

    async fn facts(&self, api_server: ApiServer) -> Facts {
        let cgroup = self.cgroup.clone().or_else(|| Machine::detect().cgroup_root);
        Facts {
            kernel: kernel::facts(),
            host: host::facts(self, cgroup.as_deref()),
            datapath: datapath::facts(self, cgroup.as_deref()).await,
            api_server,
        }
    }
}
