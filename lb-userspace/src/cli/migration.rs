//! `lb preflight`: what a move from ingress-nginx changes.

use std::path::PathBuf;

use clap::Args;
use lb_ingress::ingress::{NEEDED, NamedSecrets};
use lb_ingress::migration::{self, Report};

use super::objects::{self, ObjectsError};
use crate::view::{ReportFormat, render_report};

#[derive(Debug, Args)]
pub struct PreflightArgs {
    /// Folder of YAML and JSON files to check, instead of a cluster
    #[arg(long, value_name = "DIR", conflicts_with = "kubeconfig")]
    pub manifests: Option<PathBuf>,

    /// kubeconfig file of the cluster to check. In a pod, its service account is used by default
    #[arg(long, env = "SLUICE_KUBECONFIG", value_name = "FILE")]
    pub kubeconfig: Option<PathBuf>,

    /// Check the Ingresses of this class too. Those of the class nginx, of the controller
    /// k8s.io/ingress-nginx and without a class are always checked
    #[arg(long, value_name = "NAME")]
    pub class: Vec<Box<str>>,

    /// Output format
    #[arg(short, long, value_name = "FORMAT", value_enum, default_value = "table")]
    pub output: ReportFormat,
}

/// An error of `lb preflight`.
#[derive(Debug, thiserror::Error)]
pub enum MigrationError {
    #[error(transparent)]
    Objects(#[from] ObjectsError),
    #[error("cannot write JSON")]
    Json(#[from] serde_json::Error),
}

/// The result of `lb preflight`.
#[derive(Debug)]
pub struct Checked {
    pub text: String,
    /// Something would break.
    pub breaks: bool,
}

impl PreflightArgs {
    /// Reads the objects and reports about them.
    pub async fn run(&self) -> Result<Checked, MigrationError> {
        let (folder, kubeconfig) = (self.manifests.as_deref(), self.kubeconfig.as_deref());
        let events = objects::read(folder, kubeconfig, (&NEEDED, "")).await?;
        let mut classes = migration::rules();
        classes.names.extend(self.class.iter().cloned());
        let named_secrets = match &self.manifests {
            Some(_) => NamedSecrets::All,
            None => NamedSecrets::OnRequest,
        };
        let report: Report = migration::check(events, classes, named_secrets);
        Ok(Checked { text: render_report(&report, self.output)?, breaks: report.breaks() })
    }
}
