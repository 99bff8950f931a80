//! Names of the maps, and errors that contain them.

use std::io;

use lb_model::PerFamily;

/// The name of a map, and the option of the agent that limits its size, if one does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MapName {
    pub name: &'static str,
    pub option: Option<&'static str>,
}

/// The number of used entries of a map that refuses entries when it is full.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MapUsage {
    pub map: &'static str,
    pub entries: u64,
    pub capacity: u32,
    /// The option of the agent that limits the capacity.
    pub option: &'static str,
}

impl MapUsage {
    /// A map in which this part of the entries is used, in percent, is nearly full.
    pub const NEARLY_FULL_PERCENT: u64 = 80;

    pub fn is_full(&self) -> bool {
        self.entries >= u64::from(self.capacity)
    }

    /// Returns the used part in percent, rounded down.
    pub fn percent(&self) -> u64 {
        self.entries * 100 / u64::from(self.capacity.max(1))
    }

    pub fn is_nearly_full(&self) -> bool {
        self.percent() >= Self::NEARLY_FULL_PERCENT
    }
}

/// The option that limits the maps that grow while the agent runs.
const GROWING: Option<&str> = Some("max-map-memory");

/// A map for each family.
macro_rules! per_family {
    ($name:literal, $option:expr) => {
        PerFamily {
            v4: MapName { name: concat!($name, "_V4"), option: $option },
            v6: MapName { name: concat!($name, "_V6"), option: $option },
        }
    };
}

impl MapName {
    pub const SERVICES: PerFamily<Self> = per_family!("SERVICES", GROWING);
    pub const SERVICE_NAMES: Self = Self { name: "SERVICE_NAMES", option: GROWING };
    pub const THRESHOLDS: Self = Self { name: "THRESHOLDS", option: GROWING };
    pub const SLOTS: Self = Self { name: "SLOTS", option: GROWING };
    pub const CURSORS: Self = Self { name: "CURSORS", option: GROWING };
    pub const BACKENDS: PerFamily<Self> = per_family!("BACKENDS", GROWING);
    pub const LOADS: PerFamily<Self> = per_family!("LOADS", GROWING);
    pub const ADDRESSES: PerFamily<Self> = per_family!("ADDRESSES", GROWING);
    pub const SOURCE_RANGES: PerFamily<Self> = per_family!("SOURCE_RANGES", GROWING);
    pub const FILTER: Self = Self { name: "FILTER", option: None };
    pub const NETWORKS: PerFamily<Self> = per_family!("NETWORKS", None);
    pub const DEVICES: Self = Self { name: "DEVICES", option: None };
    pub const LINK_ADDRESSES: Self = Self { name: "LINK_ADDRESSES", option: None };
    pub const NAMESPACES: Self = Self { name: "NAMESPACES", option: None };
    pub const FLOWS: PerFamily<Self> = per_family!("FLOWS", Some("max-flows"));
    pub const FLOW_INDEX: PerFamily<Self> = per_family!("FLOW_INDEX", Some("max-flows"));
    pub const FLOW_TIMEOUTS: Self = Self { name: "FLOW_TIMEOUTS", option: None };
    pub const FRAGMENTS: PerFamily<Self> = per_family!("FRAGMENTS", Some("max-fragments"));
    pub const AFFINITY: Self = Self { name: "AFFINITY", option: Some("max-affinity") };
    pub const NO_SOURCE_PORT: Self = Self { name: "NO_SOURCE_PORT", option: None };
    pub const HEALTH: Self = Self { name: "HEALTH", option: None };
    pub const OVERLOADED: Self = Self { name: "OVERLOADED", option: None };
    pub const SETTINGS: Self = Self { name: "SETTINGS", option: None };
    pub const MONITOR: Self = Self { name: "MONITOR", option: None };
    pub const RECORD: Self = Self { name: "RECORD", option: None };

    /// Returns the usage, or `None` for a map without an option that sets its size.
    pub fn usage(self, entries: u64, capacity: u32) -> Option<MapUsage> {
        self.option.map(|option| MapUsage { map: self.name, entries, capacity, option })
    }

    /// Returns the error of a write to a full map with this capacity.
    pub fn full(self, capacity: u32) -> TableError {
        self.failed(capacity, "write", io::Error::from_raw_os_error(libc::E2BIG))
    }

    /// Returns the error for an error of the kernel.
    pub fn failed(self, capacity: u32, action: &'static str, source: io::Error) -> TableError {
        match (source.raw_os_error(), self.option) {
            // Hash maps return E2BIG, longest-prefix maps ENOSPC.
            (Some(libc::E2BIG | libc::ENOSPC), Some(option)) => {
                TableError::Full { map: self.name, capacity, option }
            }
            _ => TableError::Kernel { map: self.name, action, source },
        }
    }
}

/// A failed read or write. It contains the map, so that the message can name the option to raise.
#[derive(Debug, thiserror::Error)]
pub enum TableError {
    #[error("map {map} is full ({capacity} entries): raise --{option}")]
    Full { map: &'static str, capacity: u32, option: &'static str },
    #[error("map {map}: {action}: {source}")]
    Kernel { map: &'static str, action: &'static str, source: io::Error },
}

impl From<TableError> for io::Error {
    fn from(error: TableError) -> Self {
        Self::other(error)
    }
}
