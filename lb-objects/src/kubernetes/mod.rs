//! The API server as the source: one watch for each kind of object. Objects become [model](lb_model) types as they
//! come from the stream and are dropped at once.

pub mod events;
mod watch;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use ipnet::IpNet;
use k8s_openapi::api::core::v1::{Node as ApiNode, Service as ApiService};
use k8s_openapi::api::discovery::v1::EndpointSlice as ApiEndpointSlice;
use k8s_openapi::api::networking::v1::ServiceCIDR;
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::runtime::{WatchStreamExt, watcher};
use kube::{Api, Client, Config};
use lb_model::{EndpointSlice, Node, ObjectName, Service, SourceEvent, WatchedResource};
use tokio::sync::mpsc;

use self::watch::{WatchBackoff, WatchSpec, follow};
use crate::convert::{self, Converted};

#[derive(Debug, thiserror::Error)]
pub enum KubernetesError {
    #[error("kubeconfig {}: {source}: give --kubeconfig a file that kubectl works with", path.display())]
    Kubeconfig { path: PathBuf, source: Box<kube::config::KubeconfigError> },
    #[error(
        "not in a cluster ({source}): run as a pod with a service account, or give --kubeconfig FILE or --manifests DIR"
    )]
    InCluster { source: Box<kube::config::InClusterError> },
    #[error(
        "the client for {url} cannot be made: {source}: check certificates and credentials of the kubeconfig"
    )]
    Client { url: String, source: Box<kube::Error> },
}

/// A client for the cluster of a kubeconfig file, or for the one this process runs in.
pub async fn connect(kubeconfig: Option<&Path>) -> Result<Client, KubernetesError> {
    let mut config = match kubeconfig {
        Some(path) => {
            let broken =
                |source| KubernetesError::Kubeconfig { path: path.to_owned(), source: Box::new(source) };
            let file = Kubeconfig::read_from(path).map_err(broken)?;
            Config::from_custom_kubeconfig(file, &KubeConfigOptions::default()).await.map_err(broken)?
        }
        None => {
            Config::incluster().map_err(|source| KubernetesError::InCluster { source: Box::new(source) })?
        }
    };
    // A watch is silent for minutes. The watcher has time-outs of its own; this one would break it off each time.
    config.read_timeout = None;
    let url = config.cluster_url.to_string();
    Client::try_from(config).map_err(|source| KubernetesError::Client { url, source: Box::new(source) })
}

/// A directive for the log filter. The client library logs each failed attempt, several times a second; what is wrong is
/// reported as a [`Problem`](lb_model::Problem), once.
pub const LOG_FILTER: &str = "kube_client=off,kube_runtime=off";

/// Neither for other proxies (KEP-2447; the EndpointSlice controller copies the label of the Service) nor of headless Services.
/// The Services of other proxies are followed all the same: their addresses must not be taken for unassigned ones.
const SLICES_OF_THIS_PROXY: &str =
    "!service.kubernetes.io/service-proxy-name,!service.kubernetes.io/headless";

/// Sends what the cluster holds and then every change of it, until nobody listens any more.
pub async fn watch(client: Client, this_node: Arc<str>, events: mpsc::Sender<SourceEvent>) {
    let services = follow(
        watcher(
            Api::<ApiService>::all(client.clone()),
            watcher::Config::default().fields("spec.clusterIP!=None"),
        )
        .backoff(WatchBackoff::default()),
        services(),
        &events,
    );
    let slices = follow(
        watcher(
            Api::<ApiEndpointSlice>::all(client.clone()),
            watcher::Config::default().labels(SLICES_OF_THIS_PROXY),
        )
        .backoff(WatchBackoff::default()),
        slices(this_node.clone()),
        &events,
    );
    let node = follow(
        watcher(
            Api::<ApiNode>::all(client.clone()),
            watcher::Config::default().fields(&format!("metadata.name={this_node}")),
        )
        .backoff(WatchBackoff::default()),
        node(),
        &events,
    );
    let service_cidrs = follow(
        watcher(Api::<ServiceCIDR>::all(client), watcher::Config::default()).backoff(WatchBackoff::default()),
        service_cidrs(),
        &events,
    );
    tokio::join!(services, slices, node, service_cidrs);
}

/// Makes the model's `T` of an API object.
type Convert<K, T> = fn(&K) -> Converted<T>;

/// Makes the event that tells of a `T`, or that it is gone.
type MakeEvent<T> = fn(ObjectName, Option<T>) -> SourceEvent;

fn services() -> WatchSpec<Convert<ApiService, Service>, MakeEvent<Service>> {
    WatchSpec {
        resource: WatchedResource::Services,
        plural: "services",
        singular: "Service",
        optional: false,
        convert: convert::service,
        event: |name, service: Option<Service>| SourceEvent::Service(name, service.map(Arc::new)),
    }
}

fn slices(
    this_node: Arc<str>,
) -> WatchSpec<impl Fn(&ApiEndpointSlice) -> Converted<EndpointSlice>, MakeEvent<EndpointSlice>> {
    WatchSpec {
        resource: WatchedResource::EndpointSlices,
        plural: "endpointslices.discovery.k8s.io",
        singular: "EndpointSlice",
        optional: false,
        convert: move |slice: &ApiEndpointSlice| convert::endpoint_slice(slice, &this_node),
        event: |name, slice: Option<EndpointSlice>| SourceEvent::EndpointSlice(name, slice.map(Arc::new)),
    }
}

fn node() -> WatchSpec<Convert<ApiNode, Node>, MakeEvent<Node>> {
    WatchSpec {
        resource: WatchedResource::Node,
        plural: "nodes",
        singular: "Node",
        optional: false,
        convert: convert::node,
        event: |_, node: Option<Node>| SourceEvent::Node(node.map(Arc::new)),
    }
}

/// The ranges of one ServiceCIDR.
type Ranges = Box<[IpNet]>;

fn service_cidrs() -> WatchSpec<Convert<ServiceCIDR, Ranges>, MakeEvent<Ranges>> {
    WatchSpec {
        resource: WatchedResource::ServiceCidrs,
        plural: "servicecidrs.networking.k8s.io",
        singular: "ServiceCIDR",
        // Served by Kubernetes 1.33 and newer; without it addresses that belong to no Service are not known.
        optional: true,
        convert: convert::service_cidrs,
        event: |name, cidrs: Option<Ranges>| SourceEvent::ServiceCidr(name, cidrs.map(Arc::from)),
    }
}

/// The events that a first list of these objects would make. Fails for an object that an API server could not hold.
#[cfg(feature = "test-util")]
pub async fn list(
    objects: &[serde_json::Value],
    this_node: Arc<str>,
) -> Result<Vec<SourceEvent>, serde_json::Error> {
    use serde::de::DeserializeOwned;
    use watcher::Event::{InitApply, InitDone};

    fn stream<K: DeserializeOwned>(
        objects: &[serde_json::Value],
        kind: &str,
    ) -> Result<impl futures::Stream<Item = watcher::Result<watcher::Event<K>>>, serde_json::Error> {
        let of_kind = objects.iter().filter(|object| object["kind"] == kind);
        let items: Vec<K> =
            of_kind.map(|object| serde_json::from_value(object.clone())).collect::<Result<_, _>>()?;
        let items = items.into_iter().map(InitApply).chain([InitDone]);
        Ok(futures::stream::iter(items.map(Ok)))
    }

    let (sender, mut receiver) = mpsc::channel(1024);
    follow(stream(objects, "Service")?, services(), &sender).await;
    follow(stream(objects, "EndpointSlice")?, slices(this_node), &sender).await;
    follow(stream(objects, "Node")?, node(), &sender).await;
    follow(stream(objects, "ServiceCIDR")?, service_cidrs(), &sender).await;
    drop(sender);
    let mut events = Vec::new();
    while let Some(event) = receiver.recv().await {
        events.push(event);
    }
    Ok(events)
}
