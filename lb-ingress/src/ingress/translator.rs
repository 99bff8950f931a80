//! Keeps the routes equal to the objects.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use lb_model::{
    Ingress, IngressClass, ObjectName, Problem, ProblemKind, Problems, ResourceSet, Service, SourceEvent,
    WatchedResource,
};

use super::class::ClassRules;
use super::compile::{Compiled, Compiler};
use super::few::Few;
use super::host;
use super::objects::{DefaultBackend, NamedSecrets, Objects, SecretKeys};
use super::problems::{OpenProblems, Place};
use crate::routes::{Backend, HostPattern, HostRoutes, Origin, PathMatcher, Policy, Route};

/// The settings of a translator.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Settings {
    pub classes: ClassRules,
    /// Receives what no route matches, unless an Ingress without rules has a default backend.
    pub default_backend: Option<DefaultBackend>,
    pub named_secrets: NamedSecrets,
    /// Whether Pods have weights. The source must send [`WatchedResource::Pods`] then.
    pub pod_weights: bool,
}

/// Keeps the routes equal to the Ingresses and to the objects that these refer to.
#[derive(Debug)]
pub struct Translator {
    settings: Settings,
    synced: ResourceSet,
    /// All sources have synced: routes exist.
    complete: bool,
    objects: Objects,
    classes: BTreeMap<Box<str>, Arc<IngressClass>>,
    ingresses: BTreeMap<ObjectName, Arc<Ingress>>,
    /// The Ingresses that are served.
    compiled: BTreeMap<ObjectName, Compiled>,
    /// The Ingresses with a part in each host.
    by_host: BTreeMap<HostPattern, Few<ObjectName>>,
    /// The Ingresses that refer to a Service or Secret. One of the two may be meant: that costs one
    /// compilation too many.
    by_reference: BTreeMap<ObjectName, Few<ObjectName>>,
    /// The Ingresses with annotations that name a Secret.
    by_named_secret: BTreeMap<ObjectName, Few<ObjectName>>,
    /// The Ingresses without rules that have a default backend.
    with_default: BTreeSet<ObjectName>,
    built: HashMap<HostPattern, Arc<HostRoutes>>,
    default: Option<Arc<Route>>,
    default_policy: Arc<Policy>,
    problems: OpenProblems,
}

/// The changes of an update.
#[derive(Debug, Default)]
pub struct Update {
    /// For [`RouteTable::with`](crate::routes::RouteTable::with).
    pub hosts: Vec<(HostPattern, Option<Arc<HostRoutes>>)>,
    /// The default backend of the table, changed or not.
    pub default: Option<Arc<Route>>,
    /// The Ingresses that changed. `None` for those that are not served, or no longer.
    pub served: Vec<(ObjectName, Option<Arc<Ingress>>)>,
    pub raised: Vec<Problem>,
    pub resolved: Vec<Problem>,
    /// All objects have been read once. Before that there are no routes.
    pub complete: bool,
}

/// The resources without which routes would be wrong.
pub const NEEDED: [WatchedResource; 4] = [
    WatchedResource::Services,
    WatchedResource::Ingresses,
    WatchedResource::IngressClasses,
    WatchedResource::Secrets,
];

impl Translator {
    /// Returns a translator without objects.
    pub fn new(settings: Settings) -> Self {
        let objects = Objects { named_secrets: settings.named_secrets, ..Objects::default() };
        Self {
            settings,
            synced: ResourceSet::default(),
            complete: false,
            objects,
            classes: BTreeMap::new(),
            ingresses: BTreeMap::new(),
            compiled: BTreeMap::new(),
            by_host: BTreeMap::new(),
            by_reference: BTreeMap::new(),
            by_named_secret: BTreeMap::new(),
            with_default: BTreeSet::new(),
            built: HashMap::new(),
            default: None,
            default_policy: Arc::new(Policy::default()),
            problems: OpenProblems::default(),
        }
    }

    /// Applies events of a source. Events of other resources, such as EndpointSlices, are ignored.
    pub fn update(&mut self, events: impl IntoIterator<Item = SourceEvent>) -> Update {
        let (mut changed, mut same_routes) = (BTreeSet::new(), BTreeSet::new());
        let mut all = false;
        for event in events {
            match event {
                SourceEvent::Ingress(name, ingress) => {
                    let before = match ingress.clone() {
                        Some(ingress) => self.ingresses.insert(name.clone(), ingress),
                        None => self.ingresses.remove(&name),
                    };
                    match before.zip(ingress) {
                        // The controller that wrote the status causes a change of every Ingress.
                        Some((before, now)) if before.has_routes_of(&now) => same_routes.insert(name),
                        _ => changed.insert(name),
                    };
                }
                SourceEvent::IngressClass(name, class) => {
                    all = true;
                    match class {
                        Some(class) => drop(self.classes.insert(name.name().into(), class)),
                        None => drop(self.classes.remove(name.name())),
                    }
                }
                SourceEvent::Service(name, service) => {
                    let before = match service.clone() {
                        Some(service) => self.objects.services.insert(name.clone(), service),
                        None => self.objects.services.remove(&name),
                    };
                    if before != service {
                        self.mark_referrers(&name, &mut changed);
                    }
                }
                SourceEvent::Secret(name, secret) => {
                    let keys = secret.as_deref().map(SecretKeys::of);
                    let before = match keys {
                        Some(keys) => self.objects.secrets.insert(name.clone(), keys),
                        None => self.objects.secrets.remove(&name),
                    };
                    let was_absent = match keys {
                        Some(_) => self.objects.absent.remove(&name),
                        None => !self.objects.absent.insert(name.clone()),
                    };
                    if before != keys || was_absent == keys.is_some() {
                        self.mark_referrers(&name, &mut changed);
                    }
                }
                SourceEvent::Report(source, problems) => self.problems.set(Place::Source(source), problems),
                SourceEvent::Synced(resource) => self.synced.insert(resource),
                SourceEvent::EndpointSlice(..)
                | SourceEvent::Node(_)
                | SourceEvent::NodeDrain(..)
                | SourceEvent::PodWeight(..)
                | SourceEvent::ServiceCidr(..) => {}
            }
        }
        if !self.complete && NEEDED.iter().all(|resource| self.synced.contains(*resource)) {
            (self.complete, all) = (true, true);
        }
        if all {
            changed.extend(self.ingresses.keys().cloned());
        }
        let hosts = if self.complete { self.rebuild(&changed) } else { Vec::new() };
        let (raised, resolved) = self.problems.take_changes();
        let mut served = Vec::new();
        if self.complete {
            same_routes.append(&mut changed);
            served.extend(same_routes.into_iter().map(|name| (name.clone(), self.served_ingress(&name))));
        }
        Update { hosts, default: self.default.clone(), served, raised, resolved, complete: self.complete }
    }

    fn served_ingress(&self, name: &ObjectName) -> Option<Arc<Ingress>> {
        self.compiled.contains_key(name).then(|| self.ingresses.get(name).cloned())?
    }

    fn mark_referrers(&self, name: &ObjectName, changed: &mut BTreeSet<ObjectName>) {
        changed.extend(self.by_reference.get(name).into_iter().flatten().cloned());
        changed.extend(self.by_named_secret.get(name).into_iter().flatten().cloned());
        if self.settings.default_backend.as_ref().is_some_and(|backend| backend.service == *name) {
            // Any name leads to a new choice of the default backend.
            changed.insert(name.clone());
        }
    }

    /// Compiles these Ingresses again, and builds the hosts that they have or had a part in.
    fn rebuild(&mut self, changed: &BTreeSet<ObjectName>) -> Vec<(HostPattern, Option<Arc<HostRoutes>>)> {
        let mut hosts = BTreeSet::new();
        for name in changed {
            if let Some(before) = self.compiled.remove(name) {
                self.forget(name, &before);
                hosts.extend(before.hosts.into_keys());
            }
            let (compiled, problems) = self.compile(name);
            self.problems.set(Place::Ingress(name.clone()), problems);
            if let Some(compiled) = compiled {
                self.remember(name, &compiled);
                hosts.extend(compiled.hosts.keys().cloned());
                self.compiled.insert(name.clone(), compiled);
            }
        }
        self.objects.absent.retain(|name| self.by_named_secret.contains_key(name));
        if !changed.is_empty() {
            self.choose_default();
        }
        hosts.into_iter().filter_map(|host| self.build(host)).collect()
    }

    fn compile(&self, name: &ObjectName) -> (Option<Compiled>, Vec<Problem>) {
        let Some(ingress) = self.ingresses.get(name) else { return (None, Vec::new()) };
        let mut problems = Problems::of("Ingress", name).at(ingress.location.clone());
        if !self.settings.classes.serve(ingress, &self.classes, &mut problems) {
            return (None, problems.into_vec());
        }
        let compiler = Compiler { objects: &self.objects, default_policy: &self.default_policy };
        let mut compiled = compiler.compile(name, ingress, problems);
        let problems = std::mem::take(&mut compiled.problems);
        (Some(compiled), problems)
    }

    fn remember(&mut self, name: &ObjectName, compiled: &Compiled) {
        if compiled.default.is_some() {
            self.with_default.insert(name.clone());
        }
        for host in compiled.hosts.keys() {
            self.by_host.entry(host.clone()).or_default().insert(name.clone());
        }
        for secret in &compiled.named_secrets {
            self.by_named_secret.entry(secret.clone()).or_default().insert(name.clone());
        }
        for reference in compiled.services.iter().chain(&compiled.secrets) {
            self.by_reference.entry(reference.clone()).or_default().insert(name.clone());
        }
    }

    fn forget(&mut self, name: &ObjectName, compiled: &Compiled) {
        self.with_default.remove(name);
        for secret in &compiled.named_secrets {
            remove_from(&mut self.by_named_secret, secret, name);
        }
        for host in compiled.hosts.keys() {
            remove_from(&mut self.by_host, host, name);
        }
        for reference in compiled.services.iter().chain(&compiled.secrets) {
            remove_from(&mut self.by_reference, reference, name);
        }
    }

    /// Builds a host again. Returns `None` if it is as before.
    fn build(&mut self, host: HostPattern) -> Option<(HostPattern, Option<Arc<HostRoutes>>)> {
        let names = self.by_host.get(&host).into_iter().flatten();
        let mut of_host: Vec<_> = names.filter_map(|name| self.compiled.get_key_value(name)).collect();
        of_host.sort_by_key(|(_, compiled)| &compiled.rank);
        let parts: Vec<_> = of_host
            .iter()
            .filter_map(|(name, compiled)| Some((*name, &**compiled.hosts.get(&host)?)))
            .collect();
        let (routes, mut problems) = host::build(&host, &parts);
        self.locate(&mut problems);
        self.problems.set(Place::Host(host.clone()), problems);
        if self.built.get(&host).map(|built| &**built) == routes.as_ref() {
            return None;
        }
        let routes = routes.map(Arc::new);
        match routes.clone() {
            Some(routes) => drop(self.built.insert(host.clone(), routes)),
            None => drop(self.built.remove(&host)),
        }
        Some((host, routes))
    }

    /// The oldest Ingress without rules that has a default backend, else the one of the settings.
    fn choose_default(&mut self) {
        let of_ingresses = self.with_default.iter().filter_map(|name| self.compiled.get(name));
        let mut defaults: Vec<_> =
            of_ingresses.filter_map(|it| Some((&it.rank, it.default.as_ref()?))).collect();
        defaults.sort_by_key(|(rank, _)| *rank);
        let mut problems = Vec::new();
        for (_, other) in defaults.iter().skip(1) {
            let mut of_ingress = Problems::of("Ingress", &other.origin.ingress);
            of_ingress.error(
                ProblemKind::RouteTaken,
                "spec.defaultBackend",
                format_args!("the default backend is that of Ingress {}", defaults[0].1.origin.ingress),
                "remove it, or add rules with a host; the older Ingress is served",
            );
            problems.extend(of_ingress.into_vec());
        }
        let of_ingress = defaults.first().map(|(_, route)| (*route).clone());
        self.locate(&mut problems);
        let (of_settings, problem) = self.default_of_settings();
        problems.extend(problem);
        self.default = of_ingress.or(of_settings);
        self.problems.set(Place::Default, problems);
    }

    fn default_of_settings(&self) -> (Option<Arc<Route>>, Vec<Problem>) {
        let Some(DefaultBackend { service, port }) = &self.settings.default_backend else {
            return (None, Vec::new());
        };
        let mut problems = Problems::of("Service", service);
        let found = self.objects.backend(service.clone(), port.as_ref(), &mut Few::default());
        let target = found.map_err(|reason| {
            let remedy = "correct the default backend; requests without a route are answered with 503";
            problems.error(ProblemKind::NoService, "", reason, remedy);
        });
        let route = Route {
            origin: Origin { ingress: service.clone(), path: None },
            matcher: PathMatcher::prefix("/"),
            policy: self.default_policy.clone(),
            backends: target.into_iter().map(|target| Backend { target, weight: 1 }).collect(),
            canary: None,
        };
        (Some(Arc::new(route)), problems.into_vec())
    }

    fn locate(&self, problems: &mut [Problem]) {
        for problem in problems {
            let name =
                problem.object_reference().map(|(_, namespace, name)| ObjectName::new(namespace, name));
            problem.location = name.and_then(|name| self.ingresses.get(&name)?.location.clone());
        }
    }

    /// Returns the Secrets that annotations name, sorted. They need not have the type
    /// `kubernetes.io/tls`.
    pub fn named_secrets(&self) -> impl Iterator<Item = &ObjectName> {
        self.by_named_secret.keys()
    }

    /// Returns the names of the Ingresses that are served.
    pub fn served(&self) -> impl Iterator<Item = &ObjectName> {
        self.compiled.keys()
    }

    /// Returns a Service, whether an Ingress refers to it or not.
    pub fn service(&self, name: &ObjectName) -> Option<&Arc<Service>> {
        self.objects.services.get(name)
    }

    /// Returns all Ingresses, served or not.
    pub fn ingresses(&self) -> impl Iterator<Item = (&ObjectName, &Arc<Ingress>)> {
        self.ingresses.iter()
    }

    /// Returns all current problems.
    pub fn problems(&self) -> &OpenProblems {
        &self.problems
    }
}

fn remove_from<K: Ord>(index: &mut BTreeMap<K, Few<ObjectName>>, key: &K, name: &ObjectName) {
    if let Some(names) = index.get_mut(key) {
        names.remove(name);
        if names.is_empty() {
            index.remove(key);
        }
    }
}
