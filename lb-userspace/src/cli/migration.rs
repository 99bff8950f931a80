//! `lb preflight`: what a move from ingress-nginx changes.

use std::path::PathBuf;
use std::time::Duration;

use clap::Args;
use lb_ingress::ingress::{NEEDED, NamedSecrets};
use lb_ingress::migration::{self, Report};
use lb_model::{ProblemKind, ProblemSource, ResourceSet, SourceEvent};
use lb_objects::kubernetes::{self, KubernetesError, WatchAges};
use lb_objects::manifests::{self, ManifestError};
use lb_objects::{ObjectSelection, ServiceSelection};
use tokio::sync::mpsc;
use tokio::time::{Instant, timeout_at};

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
    Manifests(#[from] ManifestError),
    #[error(transparent)]
    Kubernetes(#[from] KubernetesError),
    /// The API server refuses a request or cannot be reached.
    #[error("{0}")]
    Api(String),
    #[error("the API server has not sent all objects within {} s", LIMIT.as_secs())]
    TimeOut,
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

/// A list of ten thousand Ingresses takes seconds.
const LIMIT: Duration = Duration::from_secs(60);

impl PreflightArgs {
    /// Reads the objects and reports about them.
    pub async fn run(&self) -> Result<Checked, MigrationError> {
        let selection = ObjectSelection {
            resources: ResourceSet::of(&NEEDED),
            this_node: "".into(),
            services: ServiceSelection::PortsOfAll,
        };
        let events = match &self.manifests {
            Some(folder) => manifests::load(folder, selection)?,
            None => self.list(selection).await?,
        };
        let mut classes = migration::rules();
        classes.names.extend(self.class.iter().cloned());
        let named_secrets = match &self.manifests {
            Some(_) => NamedSecrets::All,
            None => NamedSecrets::OnRequest,
        };
        let report: Report = migration::check(events, classes, named_secrets);
        Ok(Checked { text: render_report(&report, self.output)?, breaks: report.breaks() })
    }

    /// Reads all objects of a cluster once.
    async fn list(&self, selection: ObjectSelection) -> Result<Vec<SourceEvent>, MigrationError> {
        let client = kubernetes::connect(self.kubeconfig.as_deref(), &[], WatchAges::default()).await?.client;
        let (sender, mut receiver) = mpsc::channel(256);
        let watch = tokio::spawn(kubernetes::watch(client, selection, sender));
        let mut events = Vec::new();
        let mut missing = NEEDED.len();
        let end = Instant::now() + LIMIT;
        while missing > 0 {
            let event = timeout_at(end, receiver.recv()).await;
            let event = event.ok().flatten().ok_or(MigrationError::TimeOut)?;
            match &event {
                SourceEvent::Synced(_) => missing -= 1,
                SourceEvent::Report(ProblemSource::Watch(_), problems) => {
                    let refused = problems.iter().find(|problem| problem.kind == ProblemKind::Api);
                    if let Some(problem) = refused {
                        return Err(MigrationError::Api(problem.to_string()));
                    }
                }
                _ => {}
            }
            events.push(event);
        }
        watch.abort();
        Ok(events)
    }
}
