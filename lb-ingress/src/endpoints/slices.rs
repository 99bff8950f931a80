//! Which endpoints serve a backend: the rules of `lb-plan` for the policy Cluster.

use std::collections::{BTreeSet, HashMap};
use std::net::SocketAddr;
use std::sync::Arc;

use lb_model::{
    Balancing, DrainingNodes, Endpoint, EndpointSlice, NodeDrain, NodeHint, ObjectName, PlaceHash, PodRef,
    PodWeight, PodWeights,
};
use lb_plan::ClusterState;

use crate::routes::BackendRef;

/// The EndpointSlices of all Services.
#[derive(Debug, Default)]
pub struct Slices {
    /// Nearly all Services have one slice.
    by_service: HashMap<ObjectName, Vec<(ObjectName, Arc<EndpointSlice>)>>,
    /// The Service of each slice. It can change, because a label names it.
    service_of: HashMap<ObjectName, ObjectName>,
    draining: DrainingNodes,
    pods: PodWeights,
    /// The slices of each Pod. `None` if Pods have no weights.
    slices_of_pod: Option<BTreeSet<(PodRef, ObjectName)>>,
    /// The entries of `slices_of_pod` that were read.
    #[cfg(test)]
    steps: std::cell::Cell<usize>,
}

impl Slices {
    /// Returns no slices. Without `pod_weights`, weights of Pods have no effect.
    pub fn new(pod_weights: bool) -> Self {
        Self { slices_of_pod: pod_weights.then(BTreeSet::new), ..Self::default() }
    }

    /// Sets or removes a slice. Returns the Services whose endpoints may change.
    pub fn set(
        &mut self,
        name: ObjectName,
        slice: Option<Arc<EndpointSlice>>,
    ) -> impl Iterator<Item = ObjectName> + use<> {
        let old = self.service_of.remove(&name);
        if let Some(service) = &old
            && let Some(slices) = self.by_service.get_mut(service)
        {
            if let Some(index) = slices.iter().position(|(other, _)| *other == name) {
                let (_, old) = slices.swap_remove(index);
                if let Some(slices_of_pod) = &mut self.slices_of_pod {
                    for pod in pods_of(&old) {
                        slices_of_pod.remove(&(pod, name.clone()));
                    }
                }
            }
            if slices.is_empty() {
                self.by_service.remove(service);
            }
        }
        let new = slice.map(|slice| {
            if let Some(slices_of_pod) = &mut self.slices_of_pod {
                slices_of_pod.extend(pods_of(&slice).map(|pod| (pod, name.clone())));
            }
            let service = slice.service.clone();
            self.service_of.insert(name.clone(), service.clone());
            // Most Services have one slice.
            let slices = self.by_service.entry(service.clone()).or_insert_with(|| Vec::with_capacity(1));
            slices.push((name, slice));
            service
        });
        let moved = old.filter(|old| new.as_ref() != Some(old));
        moved.into_iter().chain(new)
    }

    /// Sets whether a node drains. Returns the Services whose endpoints may change.
    pub fn set_drain(&mut self, node: &ObjectName, drain: Option<NodeDrain>) -> Vec<ObjectName> {
        // A Node changes often, its drain seldom.
        if !self.draining.set(node.name(), drain) {
            return Vec::new();
        }
        let place = Some(PlaceHash::of(node.name()));
        let is_there = |endpoint: &Endpoint| endpoint.node == place;
        let services = self.by_service.iter();
        let services = services
            .filter(|(_, slices)| slices.iter().any(|(_, slice)| slice.endpoints.iter().any(is_there)));
        services.map(|(service, _)| service.clone()).collect()
    }

    /// Sets the weight of a Pod. Returns the Services whose endpoints may change.
    pub fn set_pod_weight(&mut self, name: &ObjectName, weight: Option<PodWeight>) -> Vec<ObjectName> {
        // A Pod changes often, its weight seldom.
        let Some(slices_of_pod) = &self.slices_of_pod else { return Vec::new() };
        if self.pods.get(name) == weight {
            return Vec::new();
        }
        self.pods.set(name, weight);
        let pod = PodRef::new(name, None);
        let slices = slices_of_pod.range((pod, ObjectName::default())..);
        #[cfg(test)]
        let slices = slices.inspect(|_| self.steps.set(self.steps.get() + 1));
        let slices = slices.take_while(|(other, _)| *other == pod);
        slices.filter_map(|(_, slice)| self.service_of.get(slice).cloned()).collect()
    }

    /// Returns whether endpoints of a Service have topology hints.
    pub fn have_hints(&self, service: &ObjectName) -> bool {
        let has_hint = |it: &Endpoint| it.node_hint != NodeHint::None || it.zone_hints.is_some();
        let mut slices = self.by_service.get(service).into_iter().flatten();
        slices.any(|(_, slice)| slice.endpoints.iter().any(has_hint))
    }

    /// Returns the endpoints of a backend, sorted. `zone` is the zone of this node.
    pub fn addresses(
        &self,
        backend: &BackendRef,
        balancing: &Balancing,
        zone: Option<&str>,
    ) -> Vec<SocketAddr> {
        let slices = self.by_service.get(&backend.service).into_iter().flatten();
        let state = ClusterState { zone, draining: &self.draining, pods: &self.pods };
        lb_plan::eligible_addresses(slices.map(|(_, slice)| &**slice), (&backend.port, balancing), state)
    }
}

/// Returns the Pods of a slice, as in [`Slices::slices_of_pod`].
fn pods_of(slice: &EndpointSlice) -> impl Iterator<Item = PodRef> {
    slice.endpoints.iter().filter_map(|endpoint| endpoint.pod.map(PodRef::without_uid))
}

#[cfg(test)]
mod tests {
    use lb_model::Weight;

    use super::*;

    fn name(name: &str) -> ObjectName {
        ObjectName::new("default", name)
    }

    /// Returns a slice with these Pods, all on one node.
    fn slice(service: &str, node: &str, pods: &[&str]) -> Option<Arc<EndpointSlice>> {
        let endpoint = |(number, pod): (u8, &&str)| Endpoint {
            address: [10, 0, 0, number].into(),
            ready: true,
            serving: true,
            terminating: false,
            local: false,
            node: Some(PlaceHash::of(node)),
            pod: Some(PodRef::new(&name(pod), Some("u-1"))),
            zone: None,
            node_hint: NodeHint::None,
            zone_hints: None,
        };
        Some(Arc::new(EndpointSlice {
            service: name(service),
            location: None,
            ports: Box::default(),
            endpoints: (1..).zip(pods).map(endpoint).collect(),
            zone_sets: Box::default(),
            weight: None,
            trigger: None,
        }))
    }

    /// Sets a weight that the Pod does not have. Returns the Services, sorted.
    fn services_of(slices: &mut Slices, pod: &str) -> Vec<String> {
        let weight = match slices.pods.get(&name(pod)) {
            Some(_) => None,
            None => Some(PodWeight { pod: PodRef::new(&name(pod), None), weight: Weight::new(0) }),
        };
        sorted(slices.set_pod_weight(&name(pod), weight))
    }

    fn sorted(services: Vec<ObjectName>) -> Vec<String> {
        let mut services: Vec<_> = services.iter().map(|service| service.name().to_owned()).collect();
        services.sort();
        services
    }

    #[test]
    fn a_weight_concerns_the_services_of_its_pod() {
        let mut slices = Slices::new(true);
        drop(slices.set(name("a-1"), slice("a", "n", &["one", "two"])));
        drop(slices.set(name("b-1"), slice("b", "n", &["one"])));
        assert_eq!(services_of(&mut slices, "one"), ["a", "b"]);
        assert_eq!(services_of(&mut slices, "two"), ["a"]);
        assert!(services_of(&mut slices, "three").is_empty());
        let weight = slices.pods.get(&name("one"));
        assert!(slices.set_pod_weight(&name("one"), weight).is_empty(), "no change");
        // The slice gets another Service and another Pod, another one is removed.
        drop(slices.set(name("a-1"), slice("c", "n", &["two", "three"])));
        drop(slices.set(name("b-1"), None));
        assert!(services_of(&mut slices, "one").is_empty());
        assert_eq!(services_of(&mut slices, "three"), ["c"]);
        drop(slices.set(name("a-1"), None));
        assert_eq!(slices.slices_of_pod, Some(BTreeSet::new()));
        let mut without = Slices::new(false);
        drop(without.set(name("a-1"), slice("a", "n", &["one"])));
        assert!(services_of(&mut without, "one").is_empty());
    }

    /// The work for a Pod does not grow with the number of other Pods and Services.
    #[test]
    fn the_work_for_a_pod_is_that_of_its_slices() {
        let mut slices = Slices::new(true);
        for number in 0..1_000 {
            let pods = [format!("pod-{number}"), format!("other-{number}")];
            let pods = pods.each_ref().map(String::as_str);
            drop(slices.set(name(&format!("s-{number}")), slice(&format!("s-{number}"), "n", &pods)));
        }
        drop(slices.set(name("more"), slice("more", "n", &["pod-7"])));
        for (pod, services) in [("pod-7", 2), ("pod-8", 1), ("of-no-service", 0)] {
            slices.steps.set(0);
            assert_eq!(services_of(&mut slices, pod).len(), services);
            // The entry that ends the search is read, too. There is none after the last Pod.
            let steps = slices.steps.get();
            assert!((services..=services + 1).contains(&steps), "{pod}: {steps} steps");
        }
    }

    #[test]
    fn a_drain_concerns_the_services_of_its_node() {
        let mut slices = Slices::new(false);
        drop(slices.set(name("a-1"), slice("a", "first", &["one"])));
        drop(slices.set(name("b-1"), slice("b", "second", &["two"])));
        let node = ObjectName::new("", "first");
        let drain = Some(NodeDrain::default());
        assert_eq!(sorted(slices.set_drain(&node, drain)), ["a"]);
        assert!(slices.set_drain(&node, drain).is_empty(), "no change");
        assert_eq!(sorted(slices.set_drain(&node, None)), ["a"]);
        assert!(slices.set_drain(&ObjectName::new("", "third"), drain).is_empty());
    }
}
