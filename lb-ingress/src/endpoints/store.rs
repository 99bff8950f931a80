//! The endpoints of all backends.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::{Arc, PoisonError, RwLock};

use super::endpoint::Endpoint;
use super::set::EndpointSet;
use crate::routes::BackendRef;

/// The endpoints of each backend. A change of one backend costs nothing for the others. `C` are the
/// connections of an endpoint.
#[derive(Debug)]
pub struct Endpoints<C> {
    sets: RwLock<HashMap<BackendRef, Arc<EndpointSet<C>>>>,
}

impl<C> Default for Endpoints<C> {
    fn default() -> Self {
        Self { sets: RwLock::default() }
    }
}

impl<C: Default> Endpoints<C> {
    /// Returns the endpoints of a backend. `None` if it is unknown.
    pub fn of(&self, backend: &BackendRef) -> Option<Arc<EndpointSet<C>>> {
        self.sets.read().unwrap_or_else(PoisonError::into_inner).get(backend).cloned()
    }

    /// Sets the endpoints of a backend. Endpoints that stay keep their connections and counts.
    pub fn set(&self, backend: &BackendRef, addresses: &[SocketAddr]) {
        let old = self.of(backend);
        let known = old.as_deref().map(EndpointSet::endpoints).unwrap_or_default();
        if old.is_some() && known.iter().map(|endpoint| &endpoint.address).eq(addresses) {
            return;
        }
        let known: HashMap<_, _> = known.iter().map(|endpoint| (endpoint.address, endpoint)).collect();
        let endpoints = addresses.iter().map(|address| {
            let known = known.get(address).copied();
            known.cloned().unwrap_or_else(|| Arc::new(Endpoint::new(*address)))
        });
        let position = old.as_deref().map_or(0, EndpointSet::position);
        let set = Arc::new(EndpointSet::new(endpoints, position));
        self.sets.write().unwrap_or_else(PoisonError::into_inner).insert(backend.clone(), set);
    }

    /// Calls a function for the connections of each endpoint.
    pub fn for_each(&self, act: impl Fn(&C)) {
        let sets: Vec<_> =
            self.sets.read().unwrap_or_else(PoisonError::into_inner).values().cloned().collect();
        sets.iter().flat_map(|set| set.endpoints()).for_each(|endpoint| act(&endpoint.connections));
    }

    /// Removes a backend that no route uses.
    pub fn remove(&self, backend: &BackendRef) {
        self.sets.write().unwrap_or_else(PoisonError::into_inner).remove(backend);
    }
}

#[cfg(test)]
mod tests {
    use lb_model::ObjectName;

    use super::*;

    #[test]
    fn endpoints_that_stay_keep_their_state() {
        let backend = BackendRef { service: ObjectName::new("a", "b"), port: "http".into() };
        let [one, two, three] = [1, 2, 3].map(|number| SocketAddr::from(([10, 0, 0, number], 80)));
        let store: Endpoints<()> = Endpoints::default();
        assert!(store.of(&backend).is_none());
        store.set(&backend, &[one, two]);
        let before = store.of(&backend).unwrap();
        store.set(&backend, &[one, two]);
        assert!(Arc::ptr_eq(&before, &store.of(&backend).unwrap()), "no change");
        store.set(&backend, &[two, three]);
        let after = store.of(&backend).unwrap();
        assert!(Arc::ptr_eq(&before.endpoints()[1], &after.endpoints()[0]));
        assert_eq!(after.endpoints()[1].address, three);
        store.set(&backend, &[]);
        assert!(store.of(&backend).unwrap().endpoints().is_empty());
        store.remove(&backend);
        assert!(store.of(&backend).is_none());
    }
}
