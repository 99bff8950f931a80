//! `lb doctor`: reads facts about this node and prints findings. It changes nothing.
//! [`view::doctor`](crate::view::doctor) decides which facts are faults.

mod args;
mod cluster;
mod datapath;
pub mod devices;
mod host;
mod kernel;

pub use args::DoctorArgs;

use crate::config::Machine;
use crate::view::OutputError;
use crate::view::doctor::{self, Facts};

/// The output of `lb doctor`.
pub struct Diagnosis {
    pub text: String,
    /// Whether a finding is an error.
    pub has_error: bool,
}

impl DoctorArgs {
    /// Checks this node, and returns the text to print.
    pub async fn run(&self) -> Result<Diagnosis, OutputError> {
        let findings = doctor::findings(&self.facts().await);
        let text = doctor::render_findings(&findings, self.output)?;
        Ok(Diagnosis { text, has_error: doctor::has_error(&findings) })
    }

    async fn facts(&self) -> Facts {
        let cgroup = self.cgroup.clone().or_else(|| Machine::detect().cgroup_root);
        Facts {
            kernel: kernel::facts(),
            host: host::facts(self, cgroup.as_deref()),
            datapath: datapath::facts(self, cgroup.as_deref()).await,
            api_server: cluster::api_server(self.kubeconfig.as_deref(), &self.api_server.0).await,
        }
    }
}
