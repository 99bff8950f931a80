//! How many entries the maps of Services need.

use lb_model::{IpFamily, PerFamily};
use lb_plan::desired::{DesiredServicePort, EndpointList, EndpointLists};

use super::entry;
use super::installed::{Installed, InstalledFamily};
use super::map_name::MapName;

/// Needed entries. If there is a map for each IP family, this is the greater number of both.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Demand {
    /// Service addresses, or Service ports if there are more of them.
    pub services: u64,
    pub slots: u64,
    pub backends: u64,
    pub source_ranges: u64,
}

impl Demand {
    /// Returns the greater number of each.
    pub(super) fn max(self, other: Self) -> Self {
        Self {
            services: self.services.max(other.services),
            slots: self.slots.max(other.slots),
            backends: self.backends.max(other.backends),
            source_ranges: self.source_ranges.max(other.source_ranges),
        }
    }

    /// Returns whether any of these numbers is greater than that of `other`.
    pub fn exceeds(&self, other: &Self) -> bool {
        self.max(*other) != *other
    }

    /// Sets the demand for a map of this name to its capacity at least.
    pub(super) fn fill(&mut self, map: &str, capacity: u32) {
        let is = |maps: PerFamily<MapName>| maps.v4.name == map || maps.v6.name == map;
        let entries = if is(MapName::SERVICES) || map == MapName::SERVICE_NAMES.name {
            &mut self.services
        } else if map == MapName::SLOTS.name {
            &mut self.slots
        } else if is(MapName::BACKENDS) {
            &mut self.backends
        } else if is(MapName::SOURCE_RANGES) {
            &mut self.source_ranges
        } else {
            return;
        };
        *entries = (*entries).max(capacity.into());
    }
}

/// The entries that changes need in addition to those that exist.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Needed {
    pub ports: u64,
    /// Of both IP families.
    pub slots: u64,
    pub families: PerFamily<NeededOfFamily>,
}

#[derive(Debug, Clone, Copy, Default)]
pub(super) struct NeededOfFamily {
    pub services: u64,
    pub backends: u64,
    pub source_ranges: u64,
}

/// What an operation needs that has found no room.
#[derive(Debug)]
pub(super) struct Lacking {
    pub needed: Needed,
    /// The map that was full, with its capacity.
    pub full: (&'static str, u32),
}

impl Needed {
    /// Adds what a Service port needs. `slots` returns the number of slots that it needs for some
    /// lists of its endpoints.
    pub fn add(
        &mut self,
        desired: &DesiredServicePort,
        installed: Option<&Installed>,
        slots: impl Fn(&EndpointLists, &[&[u32]], Option<&InstalledFamily>) -> u64,
    ) {
        let more = |wanted: usize, present: usize| wanted.saturating_sub(present) as u64;
        self.ports += u64::from(installed.is_none());
        for family in IpFamily::BOTH {
            let frontends =
                || desired.frontends.iter().filter(|frontend| frontend.address.family() == family);
            if frontends().next().is_none() {
                continue;
            }
            let uses = |list| frontends().any(|f| f.outside.list == list || f.inside.list == list);
            let lists = desired.endpoints(family);
            let mut used = Vec::new();
            if uses(EndpointList::Cluster) {
                used.push(lists.cluster.as_slice());
            }
            // Lists with the same content share their slots.
            if uses(EndpointList::Local) && !used.contains(&lists.local.as_slice()) {
                used.push(&lists.local);
            }
            let of_family = installed.map(|installed| &installed.families[family]);
            self.slots += slots(lists, &used, of_family);
            let entries = installed.map_or(0, |installed| {
                installed.entries.keys().filter(|address| IpFamily::of(&address.ip) == family).count()
            });
            let needed = &mut self.families[family];
            needed.services += more(frontends().count(), entries);
            needed.backends += more(lists.endpoints.len(), of_family.map_or(0, |known| known.backends.len()));
            needed.source_ranges += more(
                entry::source_ranges(desired, family).map_or(0, |ranges| ranges.len()),
                of_family.map_or(0, |known| known.source_ranges.len()),
            );
        }
    }

    pub(super) fn add_all(&mut self, other: &Self) {
        self.ports += other.ports;
        self.slots += other.slots;
        for family in IpFamily::BOTH {
            let (sum, other) = (&mut self.families[family], &other.families[family]);
            sum.services += other.services;
            sum.backends += other.backends;
            sum.source_ranges += other.source_ranges;
        }
    }
}
