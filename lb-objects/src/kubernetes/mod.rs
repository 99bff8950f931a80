//! Reads objects from the API server, with one watch for each resource. Each object is converted to
//! its [model](lb_model) type when it arrives, and dropped.

mod contact;
mod event_limit;
pub mod events;
mod secrets;
mod watch;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use futures::{Stream, StreamExt as _};
use ipnet::IpNet;
use k8s_openapi::api::core::v1::{Node as ApiNode, Secret as ApiSecret, Service as ApiService};
use k8s_openapi::api::discovery::v1::EndpointSlice as ApiEndpointSlice;
use k8s_openapi::api::networking::v1::{Ingress as ApiIngress, IngressClass as ApiIngressClass, ServiceCIDR};
use kube::client::ClientBuilder;
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::runtime::{WatchStreamExt, watcher};
use kube::{Api, Client, Config};
use lb_model::{
    EndpointSlice, Ingress, IngressClass, Node, ObjectName, Service, SourceEvent, WatchedResource,
};
use tokio::sync::mpsc;
use tracing::info;

pub use self::contact::WatchAges;
use self::contact::{ContactLayer, Limits};
pub use self::secrets::watch_named_secrets;
pub use self::watch::with_causes;
use self::watch::{WatchBackoff, WatchSpec, is_bad_request, run_watch};
use crate::convert::{self, Converted};
use crate::selection::{ObjectSelection, ServiceSelection};

/// The reasons why no client for the API server can be created.
#[derive(Debug, thiserror::Error)]
pub enum KubernetesError {
    #[error(
        "kubeconfig {}: {source}: set --kubeconfig to a file that kubectl accepts",
        path.display()
    )]
    Kubeconfig { path: PathBuf, source: Box<kube::config::KubeconfigError> },
    #[error(
        "not in a cluster ({source}): run as a pod with a service account, or set --kubeconfig \
         FILE or --manifests DIR"
    )]
    InCluster { source: Box<kube::config::InClusterError> },
    #[error(
        "cannot create a client for {url}: {source}: check the certificates and credentials of the \
         kubeconfig"
    )]
    Client { url: String, source: Box<kube::Error> },
}

/// Creates a client for the cluster of a kubeconfig file. Without a file, creates a client for the
/// cluster that this process runs in. Sends no request. `ages` gets the times at which the API
/// server sends something.
pub async fn connect(kubeconfig: Option<&Path>, ages: WatchAges) -> Result<Client, KubernetesError> {
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
    // It would also count the time in which a connection waits for the next request.
    config.read_timeout = None;
    let url = config.cluster_url.to_string();
    client(config, Limits::default(), ages)
        .map_err(|source| KubernetesError::Client { url, source: Box::new(source) })
}

fn client(config: Config, limits: Limits, ages: WatchAges) -> kube::Result<Client> {
    Ok(ClientBuilder::try_from(config)?.with_layer(&ContactLayer { limits, ages }).build())
}

/// Directives for the log filter that silence the client library. It logs each failed request,
/// several per second. The watches report each failure once, as a [`Problem`](lb_model::Problem).
pub const LOG_FILTER: &str = "kube_client=off,kube_runtime=off";

/// Selects the EndpointSlices that belong neither to other proxies (KEP-2447; the EndpointSlice
/// controller copies the label of the Service) nor to headless Services.
///
/// The Services of other proxies are watched nevertheless: their ClusterIPs must not count as
/// unassigned addresses.
const SLICES_OF_THIS_PROXY: &str =
    "!service.kubernetes.io/service-proxy-name,!service.kubernetes.io/headless";

/// Sends the selected objects of the cluster and then every change, until the receiver is dropped.
/// Sends no request for resources that are not selected.
pub async fn watch(client: Client, selection: ObjectSelection, events: mpsc::Sender<SourceEvent>) {
    let ObjectSelection { resources, this_node, services: scope } = selection;
    let (service_objects, slice_objects) = match scope {
        ServiceSelection::OfThisProxy => (
            services_with_address(client.clone()).boxed(),
            watcher::Config::default().labels(SLICES_OF_THIS_PROXY),
        ),
        ServiceSelection::PortsOfAll => {
            (objects(&client, watcher::Config::default()).boxed(), watcher::Config::default())
        }
    };
    let services = run_watch(service_objects, services(scope), &events);
    let slices = run_watch(
        objects::<ApiEndpointSlice>(&client, slice_objects),
        slices(this_node.clone(), scope),
        &events,
    );
    let this_node = watcher::Config::default().fields(&format!("metadata.name={this_node}"));
    let node = run_watch(objects::<ApiNode>(&client, this_node), node(), &events);
    let service_cidrs =
        run_watch(objects::<ServiceCIDR>(&client, watcher::Config::default()), service_cidrs(), &events);
    let ingresses =
        run_watch(objects::<ApiIngress>(&client, watcher::Config::default()), ingresses(), &events);
    let classes = run_watch(
        objects::<ApiIngressClass>(&client, watcher::Config::default()),
        ingress_classes(),
        &events,
    );
    let tls = watcher::Config::default().fields(&format!("type={}", secrets::TLS));
    let secrets = run_watch(objects::<ApiSecret>(&client, tls), secrets::spec(), &events);
    let selected = |resource| resources.contains(resource);
    tokio::join!(
        run_if(selected(WatchedResource::Services), services),
        run_if(selected(WatchedResource::EndpointSlices), slices),
        run_if(selected(WatchedResource::Node), node),
        run_if(selected(WatchedResource::ServiceCidrs), service_cidrs),
        run_if(selected(WatchedResource::Ingresses), ingresses),
        run_if(selected(WatchedResource::IngressClasses), classes),
        run_if(selected(WatchedResource::Secrets), secrets),
    );
}

/// Watches the objects of a resource in all namespaces. After an error it pauses and begins again.
fn objects<K>(
    client: &Client,
    config: watcher::Config,
) -> impl Stream<Item = watcher::Result<watcher::Event<K>>> + use<K>
where
    K: kube::Resource<DynamicType = ()>
        + Clone
        + std::fmt::Debug
        + serde::de::DeserializeOwned
        + Send
        + 'static,
{
    watcher(Api::all(client.clone()), config).backoff(WatchBackoff::default())
}

/// Watches the Services, without headless ones where the API server can leave them out.
///
/// Kubernetes before 1.31 does not know the field selector and refuses the list. Then all Services
/// are listed. Headless ones do no harm: they have no cluster addresses.
fn services_with_address(client: Client) -> impl Stream<Item = watcher::Result<watcher::Event<ApiService>>> {
    let selected = watcher::Config::default().fields("spec.clusterIP!=None");
    let first = objects::<ApiService>(&client, selected).boxed();
    futures::stream::unfold((first, true), move |(mut stream, selected)| {
        let client = client.clone();
        async move {
            let item = stream.next().await?;
            if !selected || !item.as_ref().is_err_and(is_bad_request) {
                return Some((item, (stream, selected)));
            }
            info!("the API server does not select Services by spec.clusterIP: all of them are read");
            let mut all = objects(&client, watcher::Config::default()).boxed();
            let item = all.next().await?;
            Some((item, (all, false)))
        }
    })
}

/// Runs a watch if its resource is selected.
async fn run_if(selected: bool, watch: impl Future<Output = ()>) {
    if selected {
        watch.await;
    }
}

/// Converts an API object into the model type `T`.
type Convert<K, T> = fn(&K) -> Converted<T>;

/// Creates the event for a new or changed `T`, or for its deletion.
type MakeEvent<T> = fn(ObjectName, Option<T>) -> SourceEvent;

fn services(scope: ServiceSelection) -> WatchSpec<Convert<ApiService, Service>, MakeEvent<Service>> {
    WatchSpec {
        resource: WatchedResource::Services,
        plural: "services",
        singular: "Service",
        optional: false,
        convert: match scope {
            ServiceSelection::OfThisProxy => convert::service,
            ServiceSelection::PortsOfAll => convert::service_ports,
        },
        make_event: |name, service: Option<Service>| SourceEvent::Service(name, service.map(Arc::new)),
    }
}

fn slices(
    this_node: Arc<str>,
    scope: ServiceSelection,
) -> WatchSpec<impl Fn(&ApiEndpointSlice) -> Converted<EndpointSlice>, MakeEvent<EndpointSlice>> {
    WatchSpec {
        resource: WatchedResource::EndpointSlices,
        plural: "endpointslices.discovery.k8s.io",
        singular: "EndpointSlice",
        optional: false,
        convert: move |slice: &ApiEndpointSlice| match scope {
            ServiceSelection::OfThisProxy => convert::endpoint_slice(slice, &this_node),
            ServiceSelection::PortsOfAll => convert::endpoint_slice_of_any_service(slice, &this_node),
        },
        make_event: |name, slice: Option<EndpointSlice>| {
            SourceEvent::EndpointSlice(name, slice.map(Arc::new))
        },
    }
}

fn node() -> WatchSpec<Convert<ApiNode, Node>, MakeEvent<Node>> {
    WatchSpec {
        resource: WatchedResource::Node,
        plural: "nodes",
        singular: "Node",
        optional: false,
        convert: convert::node,
        make_event: |_, node: Option<Node>| SourceEvent::Node(node.map(Arc::new)),
    }
}

/// The ranges of one ServiceCIDR.
type Ranges = Box<[IpNet]>;

fn service_cidrs() -> WatchSpec<Convert<ServiceCIDR, Ranges>, MakeEvent<Ranges>> {
    WatchSpec {
        resource: WatchedResource::ServiceCidrs,
        plural: "servicecidrs.networking.k8s.io",
        singular: "ServiceCIDR",
        // Kubernetes serves this resource since 1.33. Without it, unassigned ClusterIPs cannot be
        // distinguished from other addresses.
        optional: true,
        convert: convert::service_cidrs,
        make_event: |name, cidrs: Option<Ranges>| SourceEvent::ServiceCidr(name, cidrs.map(Arc::from)),
    }
}

fn ingresses() -> WatchSpec<Convert<ApiIngress, Ingress>, MakeEvent<Ingress>> {
    WatchSpec {
        resource: WatchedResource::Ingresses,
        plural: "ingresses.networking.k8s.io",
        singular: "Ingress",
        optional: false,
        convert: convert::ingress,
        make_event: |name, ingress: Option<Ingress>| SourceEvent::Ingress(name, ingress.map(Arc::new)),
    }
}

fn ingress_classes() -> WatchSpec<Convert<ApiIngressClass, IngressClass>, MakeEvent<IngressClass>> {
    WatchSpec {
        resource: WatchedResource::IngressClasses,
        plural: "ingressclasses.networking.k8s.io",
        singular: "IngressClass",
        optional: false,
        convert: convert::ingress_class,
        make_event: |name, class: Option<IngressClass>| SourceEvent::IngressClass(name, class.map(Arc::new)),
    }
}

/// Returns the events of a first list of these objects.
///
/// # Errors
/// Fails if an object does not have the type that an API server would accept.
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
    run_watch(stream(objects, "Service")?, services(ServiceSelection::OfThisProxy), &sender).await;
    run_watch(stream(objects, "EndpointSlice")?, slices(this_node, ServiceSelection::OfThisProxy), &sender)
        .await;
    run_watch(stream(objects, "Node")?, node(), &sender).await;
    run_watch(stream(objects, "ServiceCIDR")?, service_cidrs(), &sender).await;
    drop(sender);
    let mut events = Vec::new();
    while let Some(event) = receiver.recv().await {
        events.push(event);
    }
    Ok(events)
}

#[cfg(test)]
mod tests;
