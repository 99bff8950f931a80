//! The planner: holds the objects and computes the desired content of the maps.

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;
use lb_model::{
    Algorithm, DrainingNodes, EndpointSlice, IpFamily, Node, NodeDrain, ObjectName, PerFamily, PlaceHash,
    PodRef, PodWeight, PodWeights, Problem, ProblemSource, Protocol, ResourceSet, Service, ServicePort,
    SourceEvent, TrafficPolicy, Trigger, WatchedResource,
};

use super::claims::{Claim, Claimant, Claims};
use super::desired::{DesiredServicePort, FrontendKind, ServicePortId};
use super::endpoints::{self, ClusterState, SelectedEndpoints, UsedLists};
use super::frontends::{self, RequestedAddress};
use super::problems;

/// The settings of the operator.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PlannerSettings {
    /// The external IPs that Services may claim. Others are refused and reported. An empty list
    /// refuses all.
    pub allowed_external_ips: Vec<IpNet>,
    /// The algorithm of Services that do not choose one.
    pub algorithm: Algorithm,
    /// Whether Pods have weights. The source must send [`WatchedResource::Pods`] then.
    pub pod_weights: bool,
}

impl Default for PlannerSettings {
    /// Allows all external IPs, as kube-proxy does.
    fn default() -> Self {
        let everything = |net: &str| net.parse().ok();
        Self {
            allowed_external_ips: ["0.0.0.0/0", "::/0"].into_iter().filter_map(everything).collect(),
            algorithm: Algorithm::default(),
            pod_weights: false,
        }
    }
}

/// The changes that a batch of events caused. Every list is sorted unless stated otherwise.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Changes {
    /// True in the first result after every resource has synced: `changed` contains all Service
    /// ports. Everything else in the maps is left over from an earlier process.
    pub complete: bool,
    /// New and changed Service ports.
    pub changed: Vec<DesiredServicePort>,
    pub removed: Vec<ServicePortId>,
    /// The new or changed health check of a Service. `None` means that its port is to be closed.
    pub health_checks: Vec<(ObjectName, Option<HealthCheck>)>,
    /// [`Planner::node`] returns a different value.
    pub node_changed: bool,
    /// [`Planner::service_cidrs`] returns a different value.
    pub service_cidrs_changed: bool,
    /// [`Planner::addresses_of_other_proxies`] returns a different value.
    pub other_proxies_changed: bool,
    /// The triggers of the changed EndpointSlices, in the order of the events.
    pub triggers: Vec<Trigger>,
    /// New problems.
    pub raised: Vec<Problem>,
    /// Problems that no longer exist.
    pub resolved: Vec<Problem>,
}

impl Changes {
    /// Returns whether the batch changed nothing.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

/// The health check of a Service of type LoadBalancer with a Local policy.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct HealthCheck {
    /// `spec.healthCheckNodePort`.
    pub port: u16,
    /// The number of distinct IPv4 addresses of ready endpoints on this node. `None` if the Service
    /// does not have the family; its port is not opened for the family then.
    pub local_v4: Option<u32>,
    /// The same for IPv6.
    pub local_v6: Option<u32>,
}

impl HealthCheck {
    /// Returns `local_v4` or `local_v6`.
    pub fn local_endpoints(&self, family: IpFamily) -> Option<u32> {
        match family {
            IpFamily::V4 => self.local_v4,
            IpFamily::V6 => self.local_v6,
        }
    }
}

/// Holds the objects and computes the desired content of the maps. See [`Planner::update`].
#[derive(Debug)]
pub struct Planner {
    settings: PlannerSettings,
    services: HashMap<ObjectName, Arc<Service>>,
    /// The slices of each Service, sorted by name. The Service need not exist.
    slices: HashMap<ObjectName, Vec<(ObjectName, Arc<EndpointSlice>)>>,
    /// The Service of each slice. It can change, because a label names it.
    service_of_slice: HashMap<ObjectName, ObjectName>,
    node: Option<Arc<Node>>,
    draining: DrainingNodes,
    pods: PodWeights,
    /// The slices with an endpoint of each Pod (without uid). Empty if Pods have no weights.
    slices_of_pod: BTreeSet<(PodRef, ObjectName)>,
    service_cidrs: BTreeMap<ObjectName, Arc<[IpNet]>>,
    /// The Services that other proxies serve.
    other_proxies: BTreeSet<ObjectName>,
    claims: Claims,
    reports: BTreeMap<ProblemSource, Vec<Problem>>,
    /// The resources that have synced.
    synced: ResourceSet,
    /// The complete result has been returned.
    started: bool,
}

/// The desired state of one Service, and its problems.
#[derive(Debug, Default, PartialEq, Eq)]
struct ServicePlan {
    ports: BTreeMap<ServicePortId, DesiredServicePort>,
    health_check: Option<HealthCheck>,
    problems: BTreeSet<Problem>,
}

/// The state before a batch of everything that the batch affects.
struct Snapshot {
    services: BTreeMap<ObjectName, ServicePlan>,
    reports: BTreeMap<ProblemSource, Vec<Problem>>,
    node: Option<Arc<Node>>,
    service_cidrs: Option<Vec<IpNet>>,
    other_proxies: Option<BTreeSet<IpAddr>>,
    triggers: Vec<Trigger>,
}

impl Planner {
    /// Creates a planner without objects.
    pub fn new(settings: PlannerSettings) -> Self {
        Self {
            settings,
            services: HashMap::new(),
            slices: HashMap::new(),
            service_of_slice: HashMap::new(),
            node: None,
            draining: DrainingNodes::default(),
            pods: PodWeights::default(),
            slices_of_pod: BTreeSet::new(),
            service_cidrs: BTreeMap::new(),
            other_proxies: BTreeSet::new(),
            claims: Claims::default(),
            reports: BTreeMap::new(),
            synced: ResourceSet::default(),
            started: false,
        }
    }

    /// Applies a batch of events and returns the changes that they cause.
    ///
    /// Until every [`WatchedResource`] has synced, the changes contain only problems, triggers and
    /// the changes of the node and its networks. The first result after that contains everything.
    ///
    /// The cost is proportional to the number of Services that the events affect. (A new zone of
    /// the node affects all of them.)
    pub fn update(&mut self, events: impl IntoIterator<Item = SourceEvent>) -> Changes {
        let mut before = Snapshot {
            services: BTreeMap::new(),
            reports: BTreeMap::new(),
            node: self.node.clone(),
            service_cidrs: None,
            other_proxies: None,
            triggers: Vec::new(),
        };
        for event in events {
            self.apply_event(event, &mut before);
        }
        let mut changes = Changes {
            node_changed: self.node != before.node,
            service_cidrs_changed: before
                .service_cidrs
                .as_ref()
                .is_some_and(|cidrs| *cidrs != self.service_cidrs()),
            other_proxies_changed: before
                .other_proxies
                .as_ref()
                .is_some_and(|addresses| *addresses != self.addresses_of_other_proxies()),
            triggers: std::mem::take(&mut before.triggers),
            ..Changes::default()
        };
        let mut raised = BTreeSet::new();
        let mut resolved = BTreeSet::new();
        for (source, old) in &before.reports {
            let old: BTreeSet<_> = old.iter().collect();
            let new: BTreeSet<_> = self.reports.get(source).into_iter().flatten().collect();
            raised.extend(new.difference(&old).map(|problem| (*problem).clone()));
            resolved.extend(old.difference(&new).map(|problem| (*problem).clone()));
        }
        self.compare_services(before, &mut changes, &mut raised, &mut resolved);
        changes.raised = raised.into_iter().collect();
        changes.resolved = resolved.into_iter().collect();
        changes
    }

    fn compare_services(
        &mut self,
        mut before: Snapshot,
        changes: &mut Changes,
        raised: &mut BTreeSet<Problem>,
        resolved: &mut BTreeSet<Problem>,
    ) {
        let old_zone = zone_of(before.node.as_deref());
        let new_zone = zone_of(self.node.as_deref());
        let first = !self.started && self.is_synced();
        let affected: Vec<ObjectName> = if first || (self.started && old_zone != new_zone) {
            // Slices of missing Services are problems: include the names of their Services.
            let names = self.services.keys().chain(self.slices.keys()).chain(before.services.keys());
            names.collect::<BTreeSet<_>>().into_iter().cloned().collect()
        } else {
            before.services.keys().cloned().collect()
        };
        for name in affected {
            let old = match before.services.remove(&name) {
                Some(old) => old,
                None if first => ServicePlan::default(),
                None => self.plan(&name, old_zone),
            };
            let mut new = self.plan(&name, new_zone);
            raised.extend(new.problems.difference(&old.problems).cloned());
            resolved.extend(old.problems.difference(&new.problems).cloned());
            if new.health_check != old.health_check {
                changes.health_checks.push((name, new.health_check));
            }
            for (id, old) in old.ports {
                match new.ports.entry(id) {
                    Entry::Occupied(new) if *new.get() == old => drop(new.remove()),
                    Entry::Occupied(_) => {}
                    Entry::Vacant(removed) => changes.removed.push(removed.into_key()),
                }
            }
            changes.changed.extend(new.ports.into_values());
        }
        changes.complete = first;
        self.started |= first;
    }

    /// Returns whether every [`WatchedResource`] has synced.
    pub fn is_synced(&self) -> bool {
        self.synced.contains_all(self.needed())
    }

    /// Returns the resources that decide what the planner returns.
    fn needed(&self) -> ResourceSet {
        ResourceSet::OF_SERVICES.with_pods(self.settings.pod_weights)
    }

    /// Returns the resources that have not synced yet.
    pub fn unsynced(&self) -> impl Iterator<Item = WatchedResource> {
        self.needed().iter().filter(|resource| !self.synced.contains(*resource))
    }

    /// Returns the number of Services, including those without map entries.
    pub fn service_count(&self) -> usize {
        self.services.len()
    }

    /// Returns the Service to which a slice belongs. The Service need not exist.
    pub fn service_of(&self, slice: &ObjectName) -> Option<&ObjectName> {
        self.service_of_slice.get(slice)
    }

    /// Returns the Service that has this ClusterIP. Looks at all Services.
    pub fn service_with_cluster_ip(&self, address: IpAddr) -> Option<&ObjectName> {
        self.services.iter().find(|(_, service)| service.cluster_ips.contains(&address)).map(|(name, _)| name)
    }

    /// Returns the Node of this process. `None` if it does not exist.
    pub fn node(&self) -> Option<&Node> {
        self.node.as_deref()
    }

    /// Returns the drain of the node of this name.
    pub fn drain_of(&self, node: &str) -> Option<NodeDrain> {
        self.draining.get(node)
    }

    /// Returns the ClusterIPs that other proxies serve.
    pub fn addresses_of_other_proxies(&self) -> BTreeSet<IpAddr> {
        let services = self.other_proxies.iter().filter_map(|name| self.services.get(name));
        services.flat_map(|service| service.cluster_ips.iter().copied()).collect()
    }

    /// Returns the ranges of all ServiceCIDRs, sorted.
    pub fn service_cidrs(&self) -> Vec<IpNet> {
        let all: BTreeSet<_> = self.service_cidrs.values().flat_map(|cidrs| cidrs.iter().copied()).collect();
        all.into_iter().collect()
    }

    fn apply_event(&mut self, event: SourceEvent, before: &mut Snapshot) {
        match event {
            SourceEvent::Service(name, service) => self.set_service(name, service, before),
            SourceEvent::EndpointSlice(name, slice) => self.set_slice(name, slice, before),
            SourceEvent::Node(node) => self.node = node,
            SourceEvent::NodeDrain(name, drain) => self.set_drain(&name, drain, before),
            SourceEvent::PodWeight(name, weight) => self.set_pod_weight(&name, weight, before),
            SourceEvent::ServiceCidr(name, cidrs) => {
                if before.service_cidrs.is_none() {
                    before.service_cidrs = Some(self.service_cidrs());
                }
                match cidrs {
                    Some(cidrs) => self.service_cidrs.insert(name, cidrs),
                    None => self.service_cidrs.remove(&name),
                };
            }
            SourceEvent::Report(source, problems) => {
                let old = if problems.is_empty() {
                    self.reports.remove(&source)
                } else {
                    self.reports.insert(source.clone(), problems)
                };
                before.reports.entry(source).or_insert(old.unwrap_or_default());
            }
            SourceEvent::Synced(resource) => self.synced.insert(resource),
            // Not selected by an agent.
            SourceEvent::Ingress(..) | SourceEvent::IngressClass(..) | SourceEvent::Secret(..) => {}
        }
    }

    fn set_service(&mut self, name: ObjectName, service: Option<Arc<Service>>, before: &mut Snapshot) {
        self.take_snapshot(&name, before);
        let claims_of = |service: Option<&Arc<Service>>| {
            service.map(|service| self.claims_of(&name, service)).unwrap_or_default()
        };
        let old_claims = claims_of(self.services.get(&name));
        let new_claims = claims_of(service.as_ref());
        // The Services that request an address that this Service gains or loses.
        for (claim, _) in old_claims.iter().chain(&new_claims) {
            for rival in self.claims.claimants(claim) {
                self.take_snapshot(&rival.service, before);
            }
        }
        for (claim, claimant) in &old_claims {
            self.claims.remove(claim, claimant);
        }
        for (claim, claimant) in new_claims {
            self.claims.insert(claim, claimant);
        }
        let of_other_proxy = service.as_ref().is_some_and(|service| service.other_proxy);
        if of_other_proxy || self.other_proxies.contains(&name) {
            if before.other_proxies.is_none() {
                before.other_proxies = Some(self.addresses_of_other_proxies());
            }
            if of_other_proxy {
                self.other_proxies.insert(name.clone());
            } else {
                self.other_proxies.remove(&name);
            }
        }
        match service {
            Some(service) => self.services.insert(name, service),
            None => self.services.remove(&name),
        };
    }

    fn set_slice(&mut self, name: ObjectName, slice: Option<Arc<EndpointSlice>>, before: &mut Snapshot) {
        let old_service = self.service_of_slice.remove(&name);
        for service in old_service.iter().chain(slice.as_ref().map(|slice| &slice.service)) {
            self.take_snapshot(service, before);
        }
        let mut old_trigger = None;
        if let Some(service) = old_service
            && let Some(slices) = self.slices.get_mut(&service)
        {
            if let Some(index) = slices.iter().position(|(existing, _)| *existing == name) {
                let (_, old) = slices.remove(index);
                old_trigger = old.trigger;
                if self.settings.pod_weights {
                    for pod in pods_of(&old) {
                        self.slices_of_pod.remove(&(pod, name.clone()));
                    }
                }
            }
            if slices.is_empty() {
                self.slices.remove(&service);
            }
        }
        if let Some(slice) = slice {
            if self.settings.pod_weights {
                self.slices_of_pod.extend(pods_of(&slice).map(|pod| (pod, name.clone())));
            }
            // A new list contains unchanged slices too.
            before.triggers.extend(slice.trigger.filter(|trigger| old_trigger != Some(*trigger)));
            let service = slice.service.clone();
            let slices = self.slices.entry(service.clone()).or_insert_with(|| Vec::with_capacity(1));
            let index = slices.partition_point(|(existing, _)| *existing < name);
            slices.insert(index, (name.clone(), slice));
            self.service_of_slice.insert(name, service);
        }
    }

    fn set_drain(&mut self, node: &ObjectName, drain: Option<NodeDrain>, before: &mut Snapshot) {
        // A Node changes often, its drain seldom.
        if self.drain_of(node.name()) == drain {
            return;
        }
        let place = Some(PlaceHash::of(node.name()));
        for (service, slices) in &self.slices {
            let mut endpoints = slices.iter().flat_map(|(_, slice)| slice.endpoints.iter());
            if endpoints.any(|endpoint| endpoint.node == place) {
                self.take_snapshot(service, before);
            }
        }
        self.draining.set(node.name(), drain);
    }

    fn set_pod_weight(&mut self, name: &ObjectName, weight: Option<PodWeight>, before: &mut Snapshot) {
        // A Pod changes often, its weight seldom.
        if self.pods.get(name) == weight {
            return;
        }
        let pod = PodRef::new(name, None);
        let slices = self.slices_of_pod.range((pod, ObjectName::default())..);
        let slices = slices.take_while(|(other, _)| *other == pod).map(|(_, slice)| slice);
        for service in slices.filter_map(|slice| self.service_of_slice.get(slice)) {
            self.take_snapshot(service, before);
        }
        self.pods.set(name, weight);
    }

    /// Stores the plan of a Service before its first change in a batch.
    fn take_snapshot(&self, name: &ObjectName, before: &mut Snapshot) {
        if self.started && !before.services.contains_key(name) {
            let plan = self.plan(name, zone_of(before.node.as_deref()));
            before.services.insert(name.clone(), plan);
        }
    }

    fn claims_of(&self, name: &ObjectName, service: &Service) -> Vec<(Claim, Claimant)> {
        let mut claims = Vec::new();
        for (index, port) in (0..).zip(&service.ports) {
            let allowed = &self.settings.allowed_external_ips;
            for request in frontends::requested_addresses(service, port, allowed) {
                let claimant = Claimant {
                    right: request.kind.into(),
                    created: service.created.into(),
                    service: name.clone(),
                    port: index,
                };
                claims.push((claim(&request, port), claimant));
            }
        }
        claims
    }

    fn plan(&self, name: &ObjectName, zone: Option<&str>) -> ServicePlan {
        let mut plan = ServicePlan::default();
        let slices = self.slices.get(name).map_or(&[][..], Vec::as_slice);
        let Some(service) = self.services.get(name) else {
            plan.problems.extend(
                slices.iter().map(|(slice_name, slice)| problems::slice_without_service(slice_name, slice)),
            );
            return plan;
        };
        for ip in &service.external_ips {
            if !frontends::is_allowed(ip, &self.settings.allowed_external_ips) {
                plan.problems.insert(problems::external_ip_refused((name, service), ip));
            }
        }
        for (index, port) in (0..).zip(&service.ports) {
            if let Some(desired) = self.plan_port(name, service, (index, port), zone, &mut plan.problems) {
                plan.ports.insert(desired.id.clone(), desired);
            }
        }
        plan.health_check = service.health_check_node_port.map(|port| {
            let local = |family| {
                let served = service.cluster_ips.iter().any(|ip| IpFamily::of(ip) == family);
                let slices = slices.iter().map(|(_, slice)| &**slice);
                served.then(|| local_ready_addresses(slices, &self.draining, family))
            };
            HealthCheck { port, local_v4: local(IpFamily::V4), local_v6: local(IpFamily::V6) }
        });
        plan
    }

    fn plan_port(
        &self,
        name: &ObjectName,
        service: &Service,
        (index, port): (u16, &ServicePort),
        zone: Option<&str>,
        reported: &mut BTreeSet<Problem>,
    ) -> Option<DesiredServicePort> {
        let allowed = &self.settings.allowed_external_ips;
        let requested = frontends::requested_addresses(service, port, allowed);
        let mut owned = Vec::with_capacity(requested.len());
        for request in &requested {
            match self.claims.owner(&claim(request, port)) {
                Some(owner) if owner.service != *name || owner.port != index => {
                    let problem = problems::address_taken((name, service), (index, port), request, owner);
                    reported.insert(problem);
                }
                _ => owned.push(request),
            }
        }
        if owned.is_empty() {
            return None;
        }
        let slices = self.slices.get(name).map_or(&[][..], Vec::as_slice);
        let select = |family| {
            if owned.iter().all(|request| request.address.family() != family) {
                return SelectedEndpoints::default();
            }
            let external = frontends::is_external(&requested, family);
            let used = UsedLists {
                cluster: service.internal_policy == TrafficPolicy::Cluster || external,
                local: service.internal_policy == TrafficPolicy::Local
                    || (external && service.external_policy == TrafficPolicy::Local),
            };
            let slices = slices.iter().map(|(_, slice)| &**slice);
            let state = ClusterState { zone, draining: &self.draining, pods: &self.pods };
            endpoints::select(slices, (port, &service.balancing), family, used, state)
        };
        let selected = PerFamily { v4: select(IpFamily::V4), v6: select(IpFamily::V6) };
        let mut frontends: Vec<_> = owned
            .into_iter()
            .map(|request| {
                let reachable = selected[request.address.family()].reachable;
                frontends::with_policies(request, service, reachable)
            })
            .collect();
        frontends.sort_unstable();
        let algorithm = service.balancing.algorithm.unwrap_or(self.settings.algorithm);
        let restricted = frontends.iter().any(|frontend| frontend.kind == FrontendKind::LoadBalancer);
        Some(DesiredServicePort {
            id: ServicePortId {
                namespace: name.namespace().to_owned(),
                name: name.name().to_owned(),
                port_name: port.name.to_string(),
                protocol: port.protocol,
            },
            port: port.port,
            algorithm,
            failover: service.balancing.failover,
            passive_health: service.balancing.passive_health,
            thresholds: service.balancing.thresholds,
            fallback: service.balancing.fallback
                && service.balancing.thresholds.is_some()
                && algorithm.is_by_hash(),
            max_connection_age: service
                .balancing
                .max_connection_age
                .filter(|_| port.protocol == Protocol::Tcp),
            hash: if algorithm.hashes_the_client() { service.balancing.hash } else { Default::default() },
            affinity_seconds: service.affinity_seconds,
            source_ranges: if restricted { service.source_ranges.clone() } else { Default::default() },
            frontends,
            v4: selected.v4.lists,
            v6: selected.v6.lists,
        })
    }
}

/// Returns the Pods of a slice, without their uids.
fn pods_of(slice: &EndpointSlice) -> impl Iterator<Item = PodRef> {
    slice.endpoints.iter().filter_map(|endpoint| endpoint.pod.map(PodRef::without_uid))
}

fn zone_of(node: Option<&Node>) -> Option<&str> {
    node.and_then(|node| node.zone.as_deref())
}

fn claim(request: &RequestedAddress, port: &ServicePort) -> Claim {
    Claim { address: request.address, port: request.port, protocol: port.protocol }
}

/// Returns the number of distinct addresses of ready endpoints on this node: the value of the
/// header `X-Load-Balancing-Endpoint-Weight` (KEP-3836, pkg/proxy/healthcheck). It is 0 while this
/// node drains.
fn local_ready_addresses<'a>(
    slices: impl Iterator<Item = &'a EndpointSlice>,
    draining: &DrainingNodes,
    family: IpFamily,
) -> u32 {
    let addresses: BTreeSet<_> = slices
        .filter(|slice| !slice.ports.is_empty())
        .flat_map(|slice| slice.endpoints.iter())
        .filter(|endpoint| endpoint.local && endpoint.ready && draining.of(endpoint).is_none())
        .map(|endpoint| endpoint.address)
        .filter(|address| IpFamily::of(address) == family)
        .collect();
    u32::try_from(addresses.len()).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use lb_objects::convert;

    use super::*;

    #[test]
    fn nothing_is_planned_before_every_resource_has_synced() {
        let name = ObjectName::new("default", "web");
        let port = ServicePort { name: "".into(), protocol: Protocol::Tcp, port: 80, node_port: None };
        let service = Service {
            cluster_ips: ["10.96.0.10".parse().unwrap()].into(),
            ports: [port].into(),
            ..Service::default()
        };
        let mut planner = Planner::new(PlannerSettings::default());
        assert!(planner.update([SourceEvent::Service(name, Some(service.into()))]).is_empty());
        let other = |resource: &WatchedResource| *resource != WatchedResource::ServiceCidrs;
        for resource in WatchedResource::OF_SERVICES.into_iter().filter(other) {
            assert!(planner.update([SourceEvent::Synced(resource)]).is_empty());
        }
        assert_eq!(planner.unsynced().collect::<Vec<_>>(), [WatchedResource::ServiceCidrs]);
        let first = planner.update([SourceEvent::Synced(WatchedResource::ServiceCidrs)]);
        assert!(first.complete);
        assert_eq!(first.changed.len(), 1);
        // A restarted source sends `Synced` again.
        assert!(planner.update(WatchedResource::OF_SERVICES.map(SourceEvent::Synced)).is_empty());
    }

    #[test]
    fn a_trigger_is_returned_once() {
        let event = |at: &str| {
            let slice = serde_json::from_value(serde_json::json!({
                "metadata": {
                    "namespace": "default", "name": "web-1",
                    "labels": { "kubernetes.io/service-name": "web" },
                    "annotations": { "endpoints.kubernetes.io/last-change-trigger-time": at },
                },
                "addressType": "IPv6", "endpoints": [],
            }))
            .unwrap();
            let converted = convert::endpoint_slice(&slice, "node-1");
            assert_eq!(converted.problems, []);
            SourceEvent::EndpointSlice(converted.name, converted.value.map(Arc::new))
        };
        let mut planner = Planner::new(PlannerSettings::default());
        let mut triggers = |at: &str| planner.update([event(at)]).triggers;
        let at = std::time::UNIX_EPOCH + std::time::Duration::from_nanos(1_700_000_000_250_000_000);
        let expected = Trigger { family: IpFamily::V6, at };
        assert_eq!(triggers("2023-11-14T22:13:20.25Z"), [expected]);
        assert_eq!(triggers("2023-11-14T22:13:20.25Z"), [], "a new list");
        assert_eq!(triggers("yesterday"), []);
        assert_eq!(triggers("2023-11-14T22:13:20.25Z"), [expected]);
    }
}
