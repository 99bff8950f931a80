//! The table of all hosts.

use std::collections::HashMap;
use std::hash::{BuildHasher, Hasher as _};
use std::iter;
use std::sync::Arc;

use lb_model::ObjectName;

use super::backend::BackendRef;
use super::canary::RequestFacts;
use super::host::HostPattern;
use super::matcher::PathMatcher;
use super::path::NormalPath;
use super::policy::ClientCertificates;
use super::route::{Origin, Route};

/// All routes. Immutable: a request keeps the table that it was looked up in, and a change makes a
/// new table ([`RouteTable::with`]) that shares the hosts that did not change.
///
/// The hosts are in shards, so that a change copies the pointers of one shard, and not those of ten
/// thousand hosts.
#[derive(Debug, Clone, Default)]
pub struct RouteTable {
    shards: Box<[Arc<Shard>]>,
    hasher: std::hash::RandomState,
    /// For requests that no host matches.
    default: Option<Arc<Route>>,
}

type Shard = HashMap<HostPattern, Arc<HostRoutes>>;

const SHARDS: usize = 256;

/// The routes and the settings of one host.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct HostRoutes {
    pub settings: HostSettings,
    routes: RoutesOfHost,
}

/// The settings of a whole host.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct HostSettings {
    /// The Secret of the certificate.
    pub tls: Option<ObjectName>,
    /// The host is in `spec.tls` of an Ingress without the name of a Secret: the default
    /// certificate is meant.
    pub default_certificate: bool,
    pub passthrough: Option<Passthrough>,
    /// Certificates that clients must show (annotations `auth-tls-*`).
    pub client_certificates: Option<ClientCertificates>,
    /// All requests are redirected to this host (annotation `from-to-www-redirect`).
    pub redirect_to: Option<Box<str>>,
}

/// The backend that receives the TLS connections of a host undecrypted (annotation
/// `ssl-passthrough`).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Passthrough {
    /// The path of the Ingress that names the backend.
    pub origin: Origin,
    pub backend: BackendRef,
}

/// The routes of one host, by path.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct RoutesOfHost {
    exact: HashMap<Box<str>, Arc<Route>>,
    prefix: HashMap<Box<str>, Arc<Route>>,
    /// The longest expression first.
    regex: Vec<Arc<Route>>,
    /// For paths that no route matches: `spec.defaultBackend` of an Ingress with rules for this
    /// host.
    default: Option<Arc<Route>>,
}

/// The route of a request.
#[derive(Debug, Clone, Copy)]
pub struct Found<'a> {
    /// The host that matched. `None` if the route is the default backend of the table.
    pub host: Option<&'a HostRoutes>,
    pub route: &'a Arc<Route>,
    /// `None` if the Service or its port does not exist: the answer is 503.
    pub backend: Option<&'a BackendRef>,
}

impl<'a> Found<'a> {
    /// Returns the backend that receives the request, with its endpoints: the one of the route, or
    /// the one for errors (annotation `default-backend`). `endpoints` returns `None` for a backend
    /// without endpoints. If both have none, the answer is 503.
    pub fn with_endpoints<E>(
        &self,
        endpoints: impl Fn(&BackendRef) -> Option<E>,
    ) -> Option<(&'a BackendRef, E)> {
        let mut candidates = self.backend.into_iter().chain(&self.route.policy.errors.backend);
        candidates.find_map(|backend| Some((backend, endpoints(backend)?)))
    }
}

impl RouteTable {
    /// Returns a table with these changes. A host with `None` is removed.
    pub fn with(
        &self,
        hosts: impl IntoIterator<Item = (HostPattern, Option<Arc<HostRoutes>>)>,
        default: Option<Arc<Route>>,
    ) -> Self {
        let mut table = Self { default, ..self.clone() };
        if table.shards.is_empty() {
            table.shards = iter::repeat_with(Arc::default).take(SHARDS).collect();
        }
        for (host, routes) in hosts {
            let number = table.shard_of(host.key());
            let shard = Arc::make_mut(&mut table.shards[number]);
            match routes {
                Some(routes) => drop(shard.insert(host, routes)),
                None => drop(shard.remove(&host)),
            }
        }
        table
    }

    /// Returns the route of a request. `host` is the result of
    /// [`request_host`](super::request_host). The host is chosen first (the name, then the
    /// wildcard, then rules without a host), then the path among its routes. Returns `None` if
    /// nothing matches and there is no default backend: the answer is 404.
    pub fn find<'a>(
        &'a self,
        host: &str,
        path: &NormalPath<'_>,
        facts: &dyn RequestFacts,
    ) -> Option<Found<'a>> {
        let host = HostPattern::keys_for(host)
            .filter_map(|key| self.get(key))
            .find(|host| !host.routes.is_empty() || host.settings.redirect_to.is_some());
        let route = host.and_then(|host| host.routes.find(path)).or(self.default.as_ref())?;
        let canary = route.canary.as_ref().filter(|canary| canary.takes(facts));
        let backends = canary.map_or(&route.backends, |canary| &canary.backends);
        let total = backends.iter().map(|backend| backend.weight).fold(0, u32::saturating_add);
        let mut random = if total > 0 && backends.len() > 1 { facts.random(total) } else { 0 };
        let chosen = backends.iter().find(|backend| {
            let chosen = random < backend.weight;
            random = random.saturating_sub(backend.weight);
            chosen
        });
        let backend = chosen.map(|backend| &backend.target);
        Some(Found { host: host.map(|host| &**host), route, backend })
    }

    /// Returns the most specific host that matches a name, whatever it has.
    pub fn host(&self, name: &str) -> Option<&Arc<HostRoutes>> {
        HostPattern::keys_for(name).find_map(|key| self.get(key))
    }

    /// Returns the backend that decrypts connections with this server name (SNI) by itself.
    pub fn passthrough(&self, name: &str) -> Option<&Passthrough> {
        self.host(name)?.settings.passthrough.as_ref()
    }

    /// Returns the backend whose answers replace those that a route's policy lists (annotation
    /// `custom-http-errors`): the one of the annotation `default-backend`, else the default backend
    /// of the table.
    pub fn error_backend<'a>(&'a self, route: &'a Route) -> Option<&'a BackendRef> {
        let default = || Some(&self.default_route()?.backends.first()?.target);
        route.policy.errors.backend.as_ref().or_else(default)
    }

    /// Returns the Secret with the certificate for a server name (SNI): that of the name, else
    /// that of the wildcard.
    pub fn certificate(&self, name: &str) -> Option<&ObjectName> {
        HostPattern::keys_for(name).find_map(|key| self.get(key)?.settings.tls.as_ref())
    }

    /// Returns all hosts in no order.
    pub fn hosts(&self) -> impl Iterator<Item = (&HostPattern, &Arc<HostRoutes>)> {
        self.shards.iter().flat_map(|shard| shard.iter())
    }

    /// Returns the default backend.
    pub fn default_route(&self) -> Option<&Arc<Route>> {
        self.default.as_ref()
    }

    fn get(&self, key: &str) -> Option<&Arc<HostRoutes>> {
        self.shards.get(self.shard_of(key))?.get(key)
    }

    fn shard_of(&self, key: &str) -> usize {
        let mut hasher = self.hasher.build_hasher();
        hasher.write(key.as_bytes());
        usize::try_from(hasher.finish() % SHARDS as u64).unwrap_or(0)
    }
}

impl HostRoutes {
    /// Of two routes with one matcher, the first counts.
    pub fn new(
        settings: HostSettings,
        routes: impl IntoIterator<Item = Arc<Route>>,
        default: Option<Arc<Route>>,
    ) -> Self {
        let mut by_path = RoutesOfHost { default, ..RoutesOfHost::default() };
        for route in routes {
            match &route.matcher {
                PathMatcher::Exact(path) => drop(by_path.exact.entry(path.clone()).or_insert(route)),
                PathMatcher::Prefix(path) => drop(by_path.prefix.entry(path.clone()).or_insert(route)),
                PathMatcher::Regex(_) => by_path.regex.push(route),
            }
        }
        // The sort is stable: of two expressions of one length, the first counts.
        by_path.regex.sort_by_key(|route| std::cmp::Reverse(route.matcher.text().len()));
        Self { settings, routes: by_path }
    }

    /// Returns the routes of the host in no order, its default backend included.
    pub fn routes(&self) -> impl Iterator<Item = &Arc<Route>> {
        let RoutesOfHost { exact, prefix, regex, default } = &self.routes;
        exact.values().chain(prefix.values()).chain(regex).chain(default)
    }

    /// Returns the backends of the host, some of them more than once.
    pub fn backends(&self) -> impl Iterator<Item = &BackendRef> {
        let passthrough = self.settings.passthrough.iter().map(|passthrough| &passthrough.backend);
        self.routes().flat_map(|route| route.all_backends()).chain(passthrough)
    }
}

impl RoutesOfHost {
    fn is_empty(&self) -> bool {
        let Self { exact, prefix, regex, default } = self;
        exact.is_empty() && prefix.is_empty() && regex.is_empty() && default.is_none()
    }

    /// An exact path comes first, then the longest path of the others. Of a prefix and an
    /// expression of one length, the prefix comes first.
    fn find(&self, path: &str) -> Option<&Arc<Route>> {
        if let Some(route) = self.exact.get(path) {
            return Some(route);
        }
        let prefix = self.longest_prefix(path);
        let length = prefix.map_or(0, |route| route.matcher.text().len());
        let longer = self.regex.iter().take_while(|route| route.matcher.text().len() > length);
        longer.into_iter().find(|route| route.matcher.matches(path)).or(prefix).or(self.default.as_ref())
    }

    fn longest_prefix(&self, path: &str) -> Option<&Arc<Route>> {
        if self.prefix.is_empty() {
            return None;
        }
        // The ends of the segments, the last first. `/foo/` matches what `/foo` matches.
        let ends = path.rmatch_indices('/').map(|(index, _)| index).filter(|index| *index > 0);
        let prefixes = iter::once(path).chain(ends.map(|end| &path[..end])).chain(["/"]);
        prefixes.into_iter().find_map(|prefix| self.prefix.get(prefix))
    }
}
