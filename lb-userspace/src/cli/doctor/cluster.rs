//! Checks whether the API server is reachable.

use std::path::Path;
use std::time::Duration;

use http::Uri;
use lb_objects::kubernetes::{self, WatchAges};

use crate::view::doctor::ApiServer;

/// The time limit of the request.
const LIMIT: Duration = Duration::from_secs(5);
/// The environment variable that the kubelet sets in each pod.
const IN_CLUSTER: &str = "KUBERNETES_SERVICE_HOST";

/// Requests the version of the API server.
pub async fn api_server(kubeconfig: Option<&Path>, servers: &[Uri]) -> ApiServer {
    if kubeconfig.is_none() && std::env::var_os(IN_CLUSTER).is_none() {
        return ApiServer::NotConfigured;
    }
    let client = match kubernetes::connect(kubeconfig, servers, WatchAges::default()).await {
        Ok(access) => access.client,
        Err(error) => return ApiServer::Unreachable(error.to_string()),
    };
    match tokio::time::timeout(LIMIT, client.apiserver_version()).await {
        Ok(Ok(version)) => ApiServer::Reachable(version.git_version),
        Ok(Err(error)) => ApiServer::Unreachable(kubernetes::with_causes(&error)),
        Err(_) => ApiServer::Unreachable(format!("no answer within {} s", LIMIT.as_secs())),
    }
}
