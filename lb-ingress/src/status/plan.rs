//! Compares the status of the served Ingresses with the addresses of the proxies.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use lb_model::{Ingress, ObjectName, PublishedAddress};

/// The served Ingresses, and those of them whose status has other addresses.
///
/// **Invariant:** no Ingress is written while the addresses are unknown, so none loses its status
/// because a Service is missing or an API server is slow.
#[derive(Debug, Default)]
pub struct StatusPlan {
    /// Sorted. `None` means unknown.
    addresses: Option<Box<[PublishedAddress]>>,
    served: BTreeMap<ObjectName, Arc<Ingress>>,
    differing: BTreeSet<ObjectName>,
}

impl StatusPlan {
    /// Sets an Ingress, or removes it. An Ingress that is no longer served keeps its status:
    /// another controller may have written it.
    pub fn set_served(&mut self, name: ObjectName, ingress: Option<Arc<Ingress>>) {
        let differs = ingress.as_deref().is_some_and(|ingress| self.differs(ingress));
        match ingress {
            Some(ingress) => drop(self.served.insert(name.clone(), ingress)),
            None => drop(self.served.remove(&name)),
        }
        match differs {
            true => self.differing.insert(name),
            false => self.differing.remove(&name),
        };
    }

    /// Sets the addresses of the proxies. Without any, or with `None`, nothing is written.
    pub fn set_addresses(&mut self, addresses: Option<Vec<PublishedAddress>>) {
        let addresses = addresses.filter(|addresses| !addresses.is_empty()).map(|mut addresses| {
            addresses.sort();
            addresses.dedup();
            addresses.into_boxed_slice()
        });
        if self.addresses != addresses {
            self.addresses = addresses;
            self.compare_all();
        }
    }

    /// Compares all Ingresses again. [`Self::take_differing`] then also returns those that it
    /// returned before and that have not changed.
    pub fn compare_all(&mut self) {
        let differing = self.served.iter().filter(|(_, ingress)| self.differs(ingress));
        self.differing = differing.map(|(name, _)| name.clone()).collect();
    }

    /// Returns whether an Ingress waits to be written.
    pub fn is_pending(&self) -> bool {
        !self.differing.is_empty()
    }

    /// Returns at most `count` Ingresses to write. Each is returned again only after it has
    /// changed, or after [`Self::retry`].
    pub fn take_differing(&mut self, count: usize) -> Vec<(ObjectName, Arc<Ingress>)> {
        let mut taken = Vec::new();
        while taken.len() < count
            && let Some(name) = self.differing.pop_first()
        {
            taken.extend(self.served.get(&name).map(|ingress| (name, ingress.clone())));
        }
        taken
    }

    /// Returns the addresses of the proxies, sorted. They are empty while they are unknown.
    pub fn addresses(&self) -> &[PublishedAddress] {
        self.addresses.as_deref().unwrap_or_default()
    }

    /// Writes an Ingress again, because its request failed.
    pub fn retry(&mut self, name: ObjectName) {
        if self.served.get(&name).is_some_and(|ingress| self.differs(ingress)) {
            self.differing.insert(name);
        }
    }

    /// Returns the Ingresses whose status has the addresses of the proxies and nothing else.
    pub fn published(&self) -> Vec<(ObjectName, Arc<Ingress>)> {
        let same =
            self.served.iter().filter(|(_, ingress)| self.addresses.is_some() && !self.differs(ingress));
        same.map(|(name, ingress)| (name.clone(), ingress.clone())).collect()
    }

    fn differs(&self, ingress: &Ingress) -> bool {
        let Some(addresses) = &self.addresses else { return false };
        let mut found = ingress.addresses.clone();
        found.sort();
        found != *addresses
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(name: &str) -> ObjectName {
        ObjectName::new("shop", name)
    }

    fn ingress(addresses: &[&str]) -> Option<Arc<Ingress>> {
        let addresses = addresses.iter().map(|text| (*text).into()).collect();
        Some(Arc::new(Ingress { addresses, ..Ingress::default() }))
    }

    fn addresses(texts: &[&str]) -> Option<Vec<PublishedAddress>> {
        Some(texts.iter().map(|text| (*text).into()).collect())
    }

    fn taken(plan: &mut StatusPlan) -> Vec<String> {
        plan.take_differing(10).into_iter().map(|(name, _)| name.name().to_owned()).collect()
    }

    #[test]
    fn only_ingresses_with_other_addresses_are_written() {
        let mut plan = StatusPlan::default();
        plan.set_served(name("new"), ingress(&[]));
        plan.set_served(name("old"), ingress(&["192.0.2.9"]));
        plan.set_served(name("same"), ingress(&["lb.example", "192.0.2.1"]));
        assert_eq!(taken(&mut plan), [""; 0], "the addresses are unknown");
        plan.set_addresses(addresses(&["192.0.2.1", "lb.example", "192.0.2.1"]));
        assert_eq!(taken(&mut plan), ["new", "old"]);
        assert_eq!(taken(&mut plan), [""; 0], "they are being written");
        assert_eq!(plan.published().len(), 1);
        // Another program writes the status of one of them, and one request fails.
        plan.set_served(name("same"), ingress(&[]));
        plan.retry(name("old"));
        assert_eq!(taken(&mut plan), ["old", "same"]);
        plan.set_served(name("old"), ingress(&["192.0.2.1", "lb.example"]));
        plan.retry(name("old"));
        assert!(!plan.is_pending());
    }

    #[test]
    fn unknown_addresses_empty_no_status() {
        let mut plan = StatusPlan::default();
        plan.set_served(name("web"), ingress(&["192.0.2.1"]));
        plan.set_addresses(addresses(&[]));
        assert!(!plan.is_pending() && plan.published().is_empty());
        plan.set_addresses(addresses(&["192.0.2.2"]));
        assert!(plan.is_pending());
        plan.set_addresses(None);
        assert!(!plan.is_pending(), "the Service of the addresses is gone");
    }

    #[test]
    fn an_ingress_of_another_class_is_left_alone() {
        let mut plan = StatusPlan::default();
        plan.set_addresses(addresses(&["192.0.2.1"]));
        plan.set_served(name("web"), ingress(&[]));
        plan.set_served(name("web"), None);
        plan.compare_all();
        plan.retry(name("web"));
        assert!(!plan.is_pending());
    }
}
