//! Limits how often one Service is written.
//!
//! A controller can change the slices of one Service hundreds of times a second. Each change would
//! replace all its map entries, and others would wait for that. Events of a Service that was
//! written less than [`PERIOD`] ago are therefore held until the period is over. Of several events
//! of one object the last one is kept. Events of all other Services pass without delay.
//!
//! The deletion of a Service is never held: another Service may be waiting for its addresses.

use std::collections::{BTreeMap, HashMap};
use std::time::{Duration, Instant};

use lb_model::{ObjectName, SourceEvent};

/// Minimum time between two writes of one Service.
const PERIOD: Duration = Duration::from_millis(100);

/// An object whose events can be held.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
enum Object {
    Service(ObjectName),
    EndpointSlice(ObjectName),
}

#[derive(Debug)]
struct Held {
    event: SourceEvent,
    /// The period of its Service ends.
    due: Instant,
    /// Order of arrival: events are released in this order.
    number: u64,
}

/// Holds the events of Services that change too often. It has no clock: callers pass the time.
#[derive(Debug, Default)]
pub struct Coalescer {
    /// When each recently changed Service was written last.
    written: HashMap<ObjectName, Instant>,
    held: BTreeMap<Object, Held>,
    arrived: u64,
    /// `written` is searched for old entries when it has this length.
    search_at: usize,
    /// The number of events that a later one replaced, since the start.
    replaced: u64,
}

impl Coalescer {
    /// Returns the events that are to be applied now: those that are due, then those of `batch`
    /// whose Service was not written recently. The rest is held.
    ///
    /// `service_of` returns the Service to which an applied slice belongs.
    pub fn admit(
        &mut self,
        batch: Vec<SourceEvent>,
        service_of: impl Fn(&ObjectName) -> Option<ObjectName>,
        now: Instant,
    ) -> Vec<SourceEvent> {
        let (mut admitted, mut services) = (Vec::new(), Vec::new());
        for event in batch {
            let Some(object) = object(&event) else {
                admitted.push(event);
                continue;
            };
            if matches!(event, SourceEvent::Service(_, None)) {
                self.replaced += u64::from(self.held.remove(&object).is_some());
                services.extend(services_of(&event, &service_of));
                admitted.push(event);
                continue;
            }
            if let Some(held) = self.held.get_mut(&object) {
                held.event = event;
                self.replaced += 1;
                continue;
            }
            let of_event = services_of(&event, &service_of);
            let last = of_event.iter().filter_map(|service| self.written.get(service)).max();
            match last.map(|last| *last + PERIOD).filter(|due| *due > now) {
                Some(due) => {
                    self.arrived += 1;
                    self.held.insert(object, Held { event, due, number: self.arrived });
                }
                None => {
                    services.extend(of_event);
                    admitted.push(event);
                }
            }
        }
        // The batch can have replaced events that are due.
        let due = self.take_due(now);
        services.extend(due.iter().flat_map(|event| services_of(event, &service_of)));
        admitted.splice(..0, due);
        // After the loop: the events of one batch are written together.
        self.written.extend(services.into_iter().map(|service| (service, now)));
        admitted
    }

    fn take_due(&mut self, now: Instant) -> Vec<SourceEvent> {
        if self.written.len() >= self.search_at {
            self.written.retain(|_, written| *written + PERIOD > now);
            self.search_at = 64.max(2 * self.written.len());
        }
        let mut due: Vec<Held> =
            self.held.extract_if(.., |_, held| held.due <= now).map(|(_, held)| held).collect();
        due.sort_by_key(|held| held.number);
        due.into_iter().map(|held| held.event).collect()
    }

    /// Returns when [`Self::admit`] is to be called again, if it holds events.
    pub fn next_due(&self) -> Option<Instant> {
        self.held.values().map(|held| held.due).min()
    }

    /// Returns the number of events that were never applied because a later event of the same
    /// object replaced them.
    pub fn replaced(&self) -> u64 {
        self.replaced
    }
}

fn object(event: &SourceEvent) -> Option<Object> {
    match event {
        SourceEvent::Service(name, _) => Some(Object::Service(name.clone())),
        SourceEvent::EndpointSlice(name, _) => Some(Object::EndpointSlice(name.clone())),
        _ => None,
    }
}

/// Returns the Services that an event changes. A slice can move from one Service to another.
fn services_of(
    event: &SourceEvent,
    service_of: impl Fn(&ObjectName) -> Option<ObjectName>,
) -> Vec<ObjectName> {
    match event {
        SourceEvent::Service(name, _) => vec![name.clone()],
        SourceEvent::EndpointSlice(name, slice) => {
            let after = slice.as_ref().map(|slice| slice.service.clone());
            let before = service_of(name).filter(|before| after.as_ref() != Some(before));
            before.into_iter().chain(after).collect()
        }
        _ => Vec::new(),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use k8s_openapi::api::core::v1 as v1core;
    use k8s_openapi::api::discovery::v1;
    use lb_model::WatchedResource;
    use lb_objects::convert;
    use serde_json::json;

    use super::*;

    fn slice(name: &str, service: &str, address: u8) -> SourceEvent {
        let object: v1::EndpointSlice = serde_json::from_value(json!({
            "metadata": {
                "namespace": "default", "name": name, "labels": {"kubernetes.io/service-name": service},
            },
            "addressType": "IPv4",
            "endpoints": [{"addresses": [format!("10.1.0.{address}")]}],
            "ports": [{"port": 80}],
        }))
        .unwrap();
        let converted = convert::endpoint_slice(&object, "here");
        SourceEvent::EndpointSlice(converted.name, converted.value.map(Arc::new))
    }

    fn service(name: &str) -> SourceEvent {
        let object: v1core::Service = serde_json::from_value(json!({
            "metadata": {"namespace": "default", "name": name},
            "spec": {"clusterIP": "10.96.0.1", "clusterIPs": ["10.96.0.1"], "ports": [{"port": 80}]},
        }))
        .unwrap();
        let converted = convert::service(&object);
        SourceEvent::Service(converted.name, converted.value.map(Arc::new))
    }

    fn after(start: Instant, millis: u64) -> Instant {
        start + Duration::from_millis(millis)
    }

    fn nothing(_: &ObjectName) -> Option<ObjectName> {
        None
    }

    #[test]
    fn a_service_that_changes_all_the_time_is_written_ten_times_a_second() {
        let start = Instant::now();
        let mut coalescer = Coalescer::default();
        let (mut writes, mut last) = (0, Vec::new());
        // 500 changes in a second, and the wake-ups between them.
        for change in 0..500_u64 {
            let now = after(start, change * 2);
            let admitted = coalescer.admit(vec![slice("web-1", "web", (change % 256) as u8)], nothing, now);
            assert!(admitted.len() <= 1);
            writes += admitted.len();
            last = admitted.into_iter().next().map_or(last, |event| vec![event]);
        }
        assert_eq!(writes, 10);
        assert_ne!(last, [slice("web-1", "web", 243)], "the last change is held");
        let due = coalescer.next_due().unwrap();
        assert_eq!(due, after(start, 1000));
        assert_eq!(coalescer.admit(vec![], nothing, due), [slice("web-1", "web", 243)]);
        assert_eq!(coalescer.next_due(), None);
        assert_eq!(coalescer.replaced(), 500 - 11);
    }

    #[test]
    fn other_services_are_not_delayed() {
        let start = Instant::now();
        let mut coalescer = Coalescer::default();
        coalescer.admit(vec![slice("busy-1", "busy", 1)], nothing, start);
        let synced = SourceEvent::Synced(WatchedResource::Services);
        let batch =
            vec![slice("busy-1", "busy", 2), slice("web-1", "web", 1), service("api"), synced.clone()];
        assert_eq!(
            coalescer.admit(batch, nothing, after(start, 1)),
            [slice("web-1", "web", 1), service("api"), synced]
        );
        assert_eq!(coalescer.next_due(), Some(after(start, 100)));
    }

    #[test]
    fn all_objects_of_a_service_are_written_together() {
        let start = Instant::now();
        let mut coalescer = Coalescer::default();
        let batch = || vec![slice("web-1", "web", 1), slice("web-2", "web", 2), service("web")];
        assert_eq!(coalescer.admit(batch(), nothing, start), batch(), "one batch is one write");
        assert_eq!(coalescer.admit(batch(), nothing, after(start, 50)), []);
        assert_eq!(coalescer.admit(vec![], nothing, after(start, 99)), []);
        assert_eq!(coalescer.admit(vec![], nothing, after(start, 100)), batch(), "in their order");
        assert_eq!(coalescer.admit(batch(), nothing, after(start, 101)), [], "written again too soon");
        assert_eq!(coalescer.admit(batch(), nothing, after(start, 500)), batch());
    }

    #[test]
    fn a_slice_that_moves_or_is_deleted_counts_for_its_former_service() {
        let start = Instant::now();
        let web = |_: &ObjectName| Some(ObjectName::new("default", "web"));
        let gone = || SourceEvent::EndpointSlice(ObjectName::new("default", "web-1"), None);
        for next in [gone(), slice("web-1", "api", 1)] {
            let mut coalescer = Coalescer::default();
            coalescer.admit(vec![service("web")], web, start);
            assert_eq!(coalescer.admit(vec![next.clone()], web, after(start, 10)), []);
            // The slice comes back before the change was applied: only the last state counts.
            let last = slice("web-1", "web", 9);
            assert_eq!(coalescer.admit(vec![last.clone()], web, after(start, 20)), []);
            assert_eq!(coalescer.admit(vec![], web, after(start, 100)), [last]);
        }
    }

    #[test]
    fn the_deletion_of_a_service_is_not_delayed() {
        let start = Instant::now();
        let mut coalescer = Coalescer::default();
        coalescer.admit(vec![service("web")], nothing, start);
        assert_eq!(coalescer.admit(vec![service("web")], nothing, after(start, 1)), []);
        let gone = || SourceEvent::Service(ObjectName::new("default", "web"), None);
        assert_eq!(coalescer.admit(vec![gone()], nothing, after(start, 2)), [gone()]);
        assert_eq!(coalescer.next_due(), None, "the held event is older than the deletion");
    }

    #[test]
    fn services_that_rest_are_forgotten() {
        let start = Instant::now();
        let mut coalescer = Coalescer::default();
        let many = (0..1000).map(|number| service(&format!("web-{number}"))).collect();
        coalescer.admit(many, nothing, start);
        coalescer.admit(vec![], nothing, after(start, 100));
        assert_eq!(coalescer.written.len(), 0);
    }
}
