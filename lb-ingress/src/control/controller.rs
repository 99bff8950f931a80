//! The controller: applies changes of objects to a proxy.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

use lb_model::{
    Balancing, Ingress, Node, ObjectName, Problem, ProblemKind, Problems, ResourceSet, Secret, SourceEvent,
};

use crate::endpoints::Slices;
use crate::ingress::{Few, Settings, Translator};
use crate::proxy::Gateway;
use crate::routes::{BackendRef, HostPattern, HostRoutes, Route};

/// Applies changes of objects to a proxy.
///
/// **Invariant:** no route is published before its endpoints and certificates are set.
/// **Invariant:** a change of one host swaps that host; a change of endpoints swaps no route.
#[derive(Debug)]
pub struct Controller {
    gateway: Arc<Gateway>,
    translator: Translator,
    slices: Slices,
    node: Option<Arc<Node>>,
    needed: ResourceSet,
    synced: ResourceSet,
    /// Hosts that wait until all sources have synced.
    waiting: HashMap<HostPattern, Option<Arc<HostRoutes>>>,
    /// The backends of the published hosts, and of the default backend (`None`).
    used: HashMap<Option<HostPattern>, Few<BackendRef>>,
    /// The number of hosts that use each backend.
    uses: HashMap<BackendRef, usize>,
    /// The backends of each Service that hosts use.
    by_service: HashMap<ObjectName, Few<BackendRef>>,
    bad_secrets: HashMap<ObjectName, Problem>,
    published: bool,
}

/// The result of a batch of changes.
#[derive(Debug, Default)]
pub struct Outcome {
    pub raised: Vec<Problem>,
    pub resolved: Vec<Problem>,
    /// The Ingresses that changed. `None` for those that are not served, or no longer.
    pub served: Vec<(ObjectName, Option<Arc<Ingress>>)>,
    /// The proxy serves what the sources have sent.
    pub ready: bool,
}

impl Controller {
    pub fn new(gateway: Arc<Gateway>, settings: Settings) -> Self {
        Self {
            gateway,
            needed: ResourceSet::OF_INGRESSES.with_pods(settings.pod_weights),
            slices: Slices::new(settings.pod_weights),
            translator: Translator::new(settings),
            node: None,
            synced: ResourceSet::default(),
            waiting: HashMap::new(),
            used: HashMap::new(),
            uses: HashMap::new(),
            by_service: HashMap::new(),
            bad_secrets: HashMap::new(),
            published: false,
        }
    }

    /// Returns the Ingresses and what is served of them.
    pub fn translator(&self) -> &Translator {
        &self.translator
    }

    /// Applies events of a source.
    pub fn apply(&mut self, events: Vec<SourceEvent>) -> Outcome {
        let mut outcome = Outcome::default();
        let mut services = BTreeSet::new();
        let mut all = false;
        for event in &events {
            match event {
                SourceEvent::Secret(name, secret) => {
                    self.set_secret(name, secret.as_ref(), &mut outcome);
                }
                SourceEvent::EndpointSlice(name, slice) => {
                    services.extend(self.slices.set(name.clone(), slice.clone()));
                }
                SourceEvent::Service(name, _) => drop(services.insert(name.clone())),
                SourceEvent::Node(node) => {
                    all |= zone(self.node.as_deref()) != zone(node.as_deref());
                    self.node = node.clone();
                }
                SourceEvent::NodeDrain(name, drain) => {
                    services.extend(self.slices.set_drain(name, *drain));
                }
                SourceEvent::PodWeight(name, weight) => {
                    services.extend(self.slices.set_pod_weight(name, *weight));
                }
                SourceEvent::Ingress(name, None) => self.gateway.observer.metrics.forget(name),
                SourceEvent::Synced(resource) => self.synced.insert(*resource),
                _ => {}
            }
        }
        let update = self.translator.update(events);
        outcome.raised.extend(update.raised);
        outcome.resolved.extend(update.resolved);
        outcome.served = update.served;
        self.waiting.extend(update.hosts);
        if self.synced.contains_all(self.needed) && update.complete {
            self.publish(update.default);
        }
        let changed: Vec<_> = match all {
            true => self.uses.keys().cloned().collect(),
            false => {
                services.iter().filter_map(|name| self.by_service.get(name)).flatten().cloned().collect()
            }
        };
        for backend in changed {
            self.set_endpoints(&backend);
        }
        outcome.ready = self.published;
        outcome
    }

    /// Publishes the hosts that wait: first the endpoints of new backends, then the table.
    fn publish(&mut self, default: Option<Arc<Route>>) {
        let hosts: Vec<_> = self.waiting.drain().collect();
        let table = self.gateway.table.load_full();
        if self.published && hosts.is_empty() && table.default_route() == default.as_ref() {
            return;
        }
        let mut replaced = Vec::new();
        let of_default = default.iter().flat_map(|route| route.all_backends()).cloned().collect();
        replaced.extend(self.use_backends(None, of_default));
        for (host, routes) in &hosts {
            let backends = routes.iter().flat_map(|routes| routes.backends()).cloned().collect();
            replaced.extend(self.use_backends(Some(host.clone()), backends));
        }
        self.gateway.table.store(Arc::new(table.with(hosts, default)));
        self.published = true;
        for backend in replaced {
            self.release(&backend);
        }
    }

    /// Counts the backends of a host, and sets the endpoints of those that are new. Returns those
    /// that the host had before.
    fn use_backends(&mut self, host: Option<HostPattern>, backends: Few<BackendRef>) -> Few<BackendRef> {
        for backend in &backends {
            let uses = self.uses.entry(backend.clone()).or_default();
            *uses += 1;
            if *uses == 1 {
                self.by_service.entry(backend.service.clone()).or_default().insert(backend.clone());
                self.set_endpoints(backend);
            }
        }
        self.used.insert(host, backends).unwrap_or_default()
    }

    fn release(&mut self, backend: &BackendRef) {
        let Some(uses) = self.uses.get_mut(backend) else { return };
        *uses -= 1;
        if *uses == 0 {
            self.uses.remove(backend);
            if let Some(backends) = self.by_service.get_mut(&backend.service) {
                backends.remove(backend);
                if backends.is_empty() {
                    self.by_service.remove(&backend.service);
                }
            }
            self.gateway.endpoints.remove(backend);
        }
    }

    fn set_endpoints(&self, backend: &BackendRef) {
        let default = Balancing::default();
        let service = self.translator.service(&backend.service);
        let balancing = service.map_or(&default, |service| &service.balancing);
        let addresses = self.slices.addresses(backend, balancing, zone(self.node.as_deref()));
        self.gateway.endpoints.set(backend, &addresses);
    }

    /// Sets a Secret. An invalid certificate leaves the earlier one in effect.
    fn set_secret(&mut self, name: &ObjectName, secret: Option<&Arc<Secret>>, outcome: &mut Outcome) {
        outcome.resolved.extend(self.bad_secrets.remove(name));
        let Err(error) = self.gateway.set_secret(name, secret) else { return };
        let location = secret.and_then(|secret| secret.location.clone());
        let mut problems = Problems::of("Secret", name).at(location);
        problems.error(
            ProblemKind::Contradiction,
            "data",
            format_args!("{error}"),
            "until then the earlier certificate is served, or the default one",
        );
        for problem in problems.into_vec() {
            self.bad_secrets.insert(name.clone(), problem.clone());
            outcome.raised.push(problem);
        }
    }
}

fn zone(node: Option<&Node>) -> Option<&str> {
    node?.zone.as_deref()
}
