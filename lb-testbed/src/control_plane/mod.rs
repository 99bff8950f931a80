//! A real Kubernetes API server and its etcd as child processes on a host of the testbed. No
//! controllers run, so the tests write the EndpointSlices themselves. [`KubeProxy`] can run on the
//! nodes.
//!
//! `cargo xtask k8s` builds `kube-apiserver` and prints its path. The tests read the folder of the
//! program from the environment variable `SLUICE_K8S_BIN`. etcd comes from the distribution's
//! package.

mod api;
mod compared;
mod kube_proxy;
mod programs;
mod server;

pub use api::Api;
pub use compared::{RunningProxy, ServiceProxy};
pub use kube_proxy::{KubeProxy, KubeProxyMode};
pub use programs::program;
pub use server::{ACCOUNT, ControlPlane, Deployment, deploy, documents};
