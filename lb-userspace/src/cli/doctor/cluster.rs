//! Reaches the API server.

use std::path::Path;
use std::time::Duration;

use lb_objects::kubernetes;

use crate::view::doctor::ApiServer;

/// The time limit of the request.
const LIMIT: Duration = Duration::from_secs(5);
/// The kubelet sets it in each pod.
const IN_CLUSTER: &str = "KUBERNETES_SERVICE_HOST";

/// Requests the version of the API server.
pub async fn api_server(kubeconfig: Option<&Path>) -> ApiServer {
    if kubeconfig.is_none() && std::env::var_os(IN_CLUSTER).is_none() {
        return ApiServer::NotConfigured;
    }
    let client = match kubernetes::connect(kubeconfig).await {
        Ok(client) => client,
        Err(error) => return ApiServer::Unreachable(error.to_string()),
    };
    match tokio::time::timeout(LIMIT, client.apiserver_version()).await {
        Ok(Ok(version)) => ApiServer::Reachable(version.git_version),
        Ok(Err(error)) => ApiServer::Unreachable(with_causes(&error)),
        Err(_) => ApiServer::Unreachable(format!("no answer within {} s", LIMIT.as_secs())),
    }
}

/// Returns the message of an error with those of its causes that it does not contain.
fn with_causes(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let message = error.to_string();
        if !text.contains(&message) {
            text = format!("{text}: {message}");
        }
        cause = error.source();
    }
    text
}
