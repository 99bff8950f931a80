//! Reads objects from the API server, with one watch for each resource. Each object is converted to
//! its [model](lb_model) type when it arrives, and dropped.

mod contact;
mod event_limit;
pub mod events;
mod failover;
mod ingress_status;
mod lease;
mod listing;
mod node_drain;
mod secrets;
mod watch;

use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use http::Uri;
use ipnet::IpNet;
use k8s_openapi::api::core::v1::{
    Node as ApiNode, Pod as ApiPod, Secret as ApiSecret, Service as ApiService,
};
use k8s_openapi::api::discovery::v1::EndpointSlice as ApiEndpointSlice;
use k8s_openapi::api::networking::v1::{Ingress as ApiIngress, IngressClass as ApiIngressClass, ServiceCIDR};
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::core::PartialObjectMeta;
use kube::{Client, Config};
use lb_model::{
    EndpointSlice, Ingress, IngressClass, Node, NodeDrain, ObjectName, PodWeight, Secret, Service,
    SourceEvent, WatchedResource,
};
use tokio::sync::mpsc;
use tower::Layer as _;

pub use self::contact::WatchAges;
use self::contact::{ContactLayer, Limits};
use self::failover::{Failover, Servers};
pub use self::ingress_status::{PublishedService, StatusWrite, write_ingress_status};
pub use self::lease::{LeaseTimes, take_part};
use self::listing::{Reader, Selector};
pub use self::node_drain::{NodeDrainState, drain_annotation, set_node_drain};
pub use self::secrets::watch_named_secrets;
pub use self::watch::with_causes;
use self::watch::{RIGHTS_OF_ALL, WatchSpec, run_watch};
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

/// Access to the API server.
pub struct Access {
    pub client: Client,
    /// The addresses of the API servers. The client uses one of them at a time.
    pub servers: Vec<Uri>,
}

impl Access {
    /// Returns the IP addresses of the API servers. `None` if one of them has a host name.
    pub fn addresses(&self) -> Option<Vec<IpAddr>> {
        let host = |server: &Uri| server.host()?.trim_matches(['[', ']']).parse().ok();
        self.servers.iter().map(host).collect()
    }
}

/// The time limit of a connection to one of several API servers.
const CONNECT_LIMIT: Duration = Duration::from_secs(5);

/// Creates a client for the cluster of a kubeconfig file. Without a file, creates a client for the
/// cluster that this process runs in. Sends no request. `servers` replace the address that the
/// file or the environment contains, unless they are empty. `ages` gets the times at which the API
/// server sends something.
pub async fn connect(
    kubeconfig: Option<&Path>,
    servers: &[Uri],
    ages: WatchAges,
) -> Result<Access, KubernetesError> {
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
    if let [first, ..] = servers {
        config.cluster_url = first.clone();
    }
    let servers = if servers.is_empty() { vec![config.cluster_url.clone()] } else { servers.to_vec() };
    let url = config.cluster_url.to_string();
    let client = client(config, &servers, Limits::default(), ages)
        .map_err(|source| KubernetesError::Client { url, source: Box::new(source) })?;
    Ok(Access { client, servers })
}

/// Creates a client that differs from `config` in its addresses.
fn client(config: Config, servers: &[Uri], limits: Limits, ages: WatchAges) -> kube::Result<Client> {
    let namespace = config.default_namespace.clone();
    let client = |server: &Uri| {
        let mut config = config.clone();
        config.cluster_url = server.clone();
        if servers.len() > 1 {
            config.connect_timeout = Some(CONNECT_LIMIT);
            // Another API server may answer at once.
            config.default_retry = false;
        }
        Client::try_from(config)
    };
    let clients = servers.iter().map(client).collect::<kube::Result<Vec<_>>>()?;
    let servers = Servers::new(servers.to_vec());
    let failover = Failover { clients: clients.into(), servers: servers.clone() };
    Ok(Client::new(ContactLayer { limits, ages, servers }.layer(failover), namespace))
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

/// Selects the Pods that can be endpoints. The Pods of Jobs stay after their end.
const UNFINISHED_PODS: &str = "status.phase!=Succeeded,status.phase!=Failed";

/// Sends the selected objects of the cluster and then every change, until the receiver is dropped.
/// Sends no request for resources that are not selected.
pub async fn watch(client: Client, selection: ObjectSelection, events: mpsc::Sender<SourceEvent>) {
    watch_with(client, selection, events, Limits::default()).await;
}

async fn watch_with(
    client: Client,
    selection: ObjectSelection,
    events: mpsc::Sender<SourceEvent>,
    limits: Limits,
) {
    let ObjectSelection { resources, this_node, services: scope } = selection;
    let (service_objects, slice_objects) = match scope {
        ServiceSelection::OfThisProxy => (
            // Headless Services have no cluster addresses. Without them there is less to read.
            Selector { optional_fields: Some("spec.clusterIP!=None"), ..Selector::default() },
            Selector { labels: Some(SLICES_OF_THIS_PROXY.to_owned()), ..Selector::default() },
        ),
        ServiceSelection::PortsOfAll => Default::default(),
    };
    let with_fields = |fields: String| Selector { fields: Some(fields), ..Selector::default() };
    let of_this_node = with_fields(format!("metadata.name={this_node}"));
    let cordoned = with_fields("spec.unschedulable=true".to_owned());
    let tls = with_fields(format!("type={}", Secret::TLS));
    let reader = Reader { client, patience: limits.listing };
    let services = run_watch(reader.objects::<ApiService>(service_objects), services(scope), &events);
    let slices =
        run_watch(reader.objects::<ApiEndpointSlice>(slice_objects), slices(this_node, scope), &events);
    let node = run_watch(reader.objects::<ApiNode>(of_this_node), node(), &events);
    let drains = run_watch(reader.objects::<ApiNode>(cordoned), node_drains(), &events);
    let service_cidrs =
        run_watch(reader.objects::<ServiceCIDR>(Selector::default()), service_cidrs(), &events);
    let ingresses = run_watch(reader.objects::<ApiIngress>(Selector::default()), ingresses(), &events);
    let classes =
        run_watch(reader.objects::<ApiIngressClass>(Selector::default()), ingress_classes(), &events);
    let unfinished = with_fields(UNFINISHED_PODS.to_owned());
    let pods =
        run_watch(reader.objects::<PartialObjectMeta<ApiPod>>(unfinished), pod_weights(scope), &events);
    let secrets = run_watch(reader.objects::<ApiSecret>(tls), secrets::spec(), &events);
    let selected = |resource| resources.contains(resource);
    tokio::join!(
        run_if(selected(WatchedResource::Services), services),
        run_if(selected(WatchedResource::EndpointSlices), slices),
        run_if(selected(WatchedResource::Node), node),
        run_if(selected(WatchedResource::ServiceCidrs), service_cidrs),
        run_if(selected(WatchedResource::Ingresses), ingresses),
        run_if(selected(WatchedResource::IngressClasses), classes),
        run_if(selected(WatchedResource::Secrets), secrets),
        run_if(selected(WatchedResource::CordonedNodes), drains),
        run_if(selected(WatchedResource::Pods), pods),
    );
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
        right: RIGHTS_OF_ALL,
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
        right: RIGHTS_OF_ALL,
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
        right: RIGHTS_OF_ALL,
        convert: convert::node,
        make_event: |_, node: Option<Node>| SourceEvent::Node(node.map(Arc::new)),
    }
}

fn node_drains() -> WatchSpec<Convert<ApiNode, NodeDrain>, MakeEvent<NodeDrain>> {
    WatchSpec {
        resource: WatchedResource::CordonedNodes,
        plural: "nodes",
        singular: "Node",
        optional: false,
        right: RIGHTS_OF_ALL,
        convert: convert::node_drain,
        make_event: SourceEvent::NodeDrain,
    }
}

/// `PartialObjectMeta` makes the API server send metadata only.
fn pod_weights(
    scope: ServiceSelection,
) -> WatchSpec<Convert<PartialObjectMeta<ApiPod>, PodWeight>, MakeEvent<PodWeight>> {
    WatchSpec {
        resource: WatchedResource::Pods,
        plural: "pods",
        singular: "Pod",
        // Without them, the other weights apply.
        optional: true,
        right: match scope {
            ServiceSelection::OfThisProxy => {
                "see deploy/pod-weights, or settings.podWeights in the Helm chart; until then, the \
                 weights of Pods have no effect"
            }
            ServiceSelection::PortsOfAll => {
                "see deploy/ingress-pod-weights, or ingress.podWeights in the Helm chart; until then, \
                 the weights of Pods have no effect"
            }
        },
        convert: convert::pod_weight,
        make_event: SourceEvent::PodWeight,
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
        right: RIGHTS_OF_ALL,
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
        right: RIGHTS_OF_ALL,
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
        right: RIGHTS_OF_ALL,
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
    use kube::runtime::watcher;
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
    let is_this = |object: &&serde_json::Value| object["metadata"]["name"] == *this_node;
    let this: Vec<_> =
        objects.iter().filter(|object| object["kind"] == "Node").filter(is_this).cloned().collect();
    run_watch(stream(&this, "Node")?, node(), &sender).await;
    run_watch(stream(objects, "EndpointSlice")?, slices(this_node, ServiceSelection::OfThisProxy), &sender)
        .await;
    run_watch(stream(objects, "Node")?, node_drains(), &sender).await;
    run_watch(stream(objects, "Pod")?, pod_weights(ServiceSelection::OfThisProxy), &sender).await;
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
