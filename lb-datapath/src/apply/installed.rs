//! The records of what the maps have for each Service port.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::SocketAddr;

use ipnet::IpNet;
use lb_common::layout;
use lb_model::{IpFamily, PerFamily, Thresholds};

use super::entry::SlotRange;
use super::tables::{BackendEntry, ServiceAddress};

/// The map contents that belong to one Service port.
#[derive(Debug)]
pub(super) struct Installed {
    pub service_id: u32,
    /// The port number in its `SERVICE_NAMES` entry. `None` if this entry is not written yet.
    pub named_port: Option<u16>,
    pub thresholds: Option<Thresholds>,
    pub entries: BTreeMap<ServiceAddress, layout::ServiceEntry>,
    pub families: PerFamily<InstalledFamily>,
    /// Whether this was read from the maps at start, and `apply` was not called for it since.
    pub adopted: bool,
}

#[derive(Debug, Default)]
pub(super) struct InstalledFamily {
    pub backends: HashMap<SocketAddr, InstalledBackend>,
    /// Lists with the same content share one range. After a failed write, some ranges may be in no
    /// service entry.
    pub ranges: Vec<InstalledRange>,
    pub source_ranges: BTreeSet<IpNet>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct InstalledBackend {
    pub id: u32,
    pub flags: u16,
    pub weight: u32,
}

impl InstalledBackend {
    pub fn entry(self, address: SocketAddr, service_id: u32) -> BackendEntry {
        BackendEntry { address, flags: self.flags, service_id, weight: self.weight }
    }
}

/// A range of the map `SLOTS`, with its content.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct InstalledRange {
    pub base: u32,
    pub backend_ids: Vec<u32>,
    /// The slots are used in turn: the range has a cursor.
    pub in_turn: bool,
}

impl InstalledRange {
    pub fn count(&self) -> u32 {
        u32::try_from(self.backend_ids.len()).unwrap_or(u32::MAX)
    }

    pub fn range(&self) -> SlotRange {
        SlotRange { base: self.base, count: self.count() }
    }

    /// Returns the first position in a range that replaces this one, so that no endpoint is skipped
    /// and none gets two connections in a row. It is the position of the endpoint that is next in
    /// this range, or of the first endpoint after it that still exists. `replacement` has the first
    /// position of each backend id.
    pub fn next_in(&self, next: u32, replacement: &HashMap<u32, u32>) -> u32 {
        let (before, after) = self.backend_ids.split_at((next as usize).min(self.backend_ids.len()));
        after.iter().chain(before).find_map(|id| replacement.get(id).copied()).unwrap_or(0)
    }
}

impl Installed {
    pub fn new(service_id: u32) -> Self {
        Self {
            service_id,
            named_port: None,
            thresholds: None,
            entries: BTreeMap::new(),
            families: PerFamily::default(),
            adopted: false,
        }
    }

    /// Returns whether the maps have no entry of this Service port.
    pub fn is_blank(&self) -> bool {
        self.named_port.is_none()
            && self.thresholds.is_none()
            && self.entries.is_empty()
            && IpFamily::BOTH.iter().all(|&family| {
                let family = &self.families[family];
                family.backends.is_empty() && family.ranges.is_empty() && family.source_ranges.is_empty()
            })
    }
}
