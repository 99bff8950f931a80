//! Which endpoints serve a backend: the rules of `lb-plan` for the policy Cluster.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::Arc;

use lb_model::{
    Balancing, DrainingNodes, EndpointSlice, NodeDrain, ObjectName, PodRef, PodWeight, PodWeights,
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
}

impl Slices {
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
            slices.retain(|(other, _)| *other != name);
            if slices.is_empty() {
                self.by_service.remove(service);
            }
        }
        let new = slice.map(|slice| {
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

    /// Sets whether a node drains. Returns whether that changes anything.
    pub fn set_drain(&mut self, node: &ObjectName, drain: Option<NodeDrain>) -> bool {
        self.draining.set(node.name(), drain)
    }

    /// Sets the weight of a Pod. Returns the Services whose endpoints may change.
    pub fn set_pod_weight(&mut self, name: &ObjectName, weight: Option<PodWeight>) -> Vec<ObjectName> {
        // A Pod changes often, its weight seldom.
        if self.pods.get(name) == weight {
            return Vec::new();
        }
        self.pods.set(name, weight);
        let pod = PodRef::new(name, None);
        let has_pod = |slices: &[(ObjectName, Arc<EndpointSlice>)]| {
            let mut endpoints = slices.iter().flat_map(|(_, slice)| slice.endpoints.iter());
            endpoints.any(|endpoint| endpoint.pod.is_some_and(|other| other.without_uid() == pod))
        };
        let services = self.by_service.iter().filter(|(_, slices)| has_pod(slices));
        services.map(|(service, _)| service.clone()).collect()
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
