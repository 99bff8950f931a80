//! The maps of this version, and how pinned maps differ from them.

use std::io;
use std::os::fd::{AsFd as _, OwnedFd};
use std::path::Path;

use aya_obj::Object;
use aya_obj::maps::Map;

use crate::btf::EntryLayout;
use crate::field_copy::is_same;
use crate::pins::Pins;
use crate::sizes::MapSizes;
use crate::sys;

/// Maps that are not pinned: no other process reads them, and they need not outlive the programs.
const UNPINNED: [&str; 10] = [
    "SCRATCH_V4",
    "SCRATCH_V6",
    "FLOW_KEYS_V4",
    "FLOW_KEYS_V6",
    "ROUTES_V4",
    "ROUTES_V6",
    "NEIGHBOUR_CHECKS",
    "ANSWER_LIMITS",
    "AYA_LOGS",
    "RECORD",
];

/// Returns whether a map is pinned. Constants (.rodata, .rodata.cst16) belong to one load, and the
/// kernel refuses names with a dot for pins.
pub fn is_pinned(name: &str) -> bool {
    !name.starts_with('.') && !UNPINNED.contains(&name) && !is_of_handover(name)
}

/// Returns whether a map is for `lb monitor`. The programs of `lb explain` have their own.
pub fn is_of_events(name: &str) -> bool {
    ["MONITOR", "EVENTS", "EVENT_BUDGETS"].contains(&name)
}

/// Returns whether a map exists only while an agent converts (lb-ebpf/src/handover.rs).
pub fn is_of_handover(name: &str) -> bool {
    name == "HANDOVER" || name.starts_with("PREDECESSORS_")
}

/// Type, key size, value size and flags of a map. They must agree before a pinned map is reused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Shape {
    pub map_type: u32,
    pub key_size: u32,
    pub value_size: u32,
    pub flags: u32,
}

impl std::fmt::Display for Shape {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { map_type, key_size, value_size, flags } = self;
        write!(f, "type {map_type}, {key_size} byte keys, {value_size} byte values, flags {flags:#x}")
    }
}

/// A map of this version.
#[derive(Debug)]
pub struct OwnMap {
    pub name: String,
    pub shape: Shape,
    pub capacity: u32,
    pub key: EntryLayout,
    pub value: EntryLayout,
}

/// Returns the maps that this version pins, in the order of their names.
pub fn own_maps(object: &Object, sizes: &MapSizes) -> Vec<OwnMap> {
    let btf = object.btf.as_ref().map(aya_obj::btf::Btf::to_bytes);
    let sizes = map_sizes(sizes);
    let mut maps: Vec<_> = object
        .maps
        .iter()
        .filter(|(name, _)| is_pinned(name))
        .map(|(name, map)| {
            let size = sizes.iter().find(|(sized, _)| sized == name);
            let (key_type, value_type) = match map {
                Map::Btf(map) => (map.def.btf_key_type_id, map.def.btf_value_type_id),
                Map::Legacy(_) => (0, 0),
            };
            let layout = |type_id, size: u32| {
                let known = btf.as_ref().and_then(|btf| EntryLayout::read(btf, type_id, size as usize));
                known.unwrap_or_else(|| EntryLayout::unknown(size as usize))
            };
            OwnMap {
                name: name.clone(),
                shape: shape(map),
                capacity: size.map_or_else(|| map.max_entries(), |(_, size)| *size),
                key: layout(key_type, map.key_size()),
                value: layout(value_type, map.value_size()),
            }
        })
        .collect();
    maps.sort_by(|a, b| a.name.cmp(&b.name));
    maps
}

/// Returns the shape of a map of the object.
pub fn shape(map: &Map) -> Shape {
    Shape {
        map_type: map.map_type(),
        key_size: map.key_size(),
        value_size: map.value_size(),
        flags: map.map_flags(),
    }
}

/// A pinned map.
#[derive(Debug)]
pub struct PinnedMap {
    pub fd: OwnedFd,
    pub id: u32,
    pub shape: Shape,
    pub capacity: u32,
    pub key: EntryLayout,
    pub value: EntryLayout,
}

impl PinnedMap {
    /// Opens the map pinned at `path`, if there is one. A map without type information is assumed
    /// to have the layout of `own` if the sizes agree.
    pub fn open(path: &Path, own: &OwnMap) -> io::Result<Option<Self>> {
        let fd = match sys::open_pin(path) {
            Ok(fd) => fd,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error),
        };
        let info = sys::map_info(fd.as_fd())?;
        let btf = sys::map_btf(&info)?;
        let layout = |type_id, size: u32, own: &EntryLayout| {
            let size = size as usize;
            match btf.as_ref().and_then(|btf| EntryLayout::read(btf, type_id, size)) {
                Some(layout) => layout,
                None if size == own.size => own.clone(),
                None => EntryLayout::unknown(size),
            }
        };
        Ok(Some(Self {
            id: info.id,
            shape: Shape {
                map_type: info.type_,
                key_size: info.key_size,
                value_size: info.value_size,
                flags: info.map_flags,
            },
            capacity: info.max_entries,
            key: layout(info.btf_key_type_id, info.key_size, &own.key),
            value: layout(info.btf_value_type_id, info.value_size, &own.value),
            fd,
        }))
    }

    /// Describes the first difference from the map of this version. Returns `None` if the pinned
    /// map can be used as it is.
    pub fn difference(&self, own: &OwnMap) -> Option<String> {
        if self.shape != own.shape {
            Some(format!("{}, this version has {}", self.shape, own.shape))
        } else if !is_same(&self.key, &own.key) || !is_same(&self.value, &own.value) {
            Some("its fields have other names or places".to_owned())
        } else if self.capacity != own.capacity {
            Some(format!("{} entries, {} are wanted", self.capacity, own.capacity))
        } else {
            None
        }
    }
}

/// The number of addresses that a node can have in each IP family.
const NODE_ADDRESSES: u32 = 1024;

/// Returns the maps whose size depends on the configuration.
pub fn map_sizes(sizes: &MapSizes) -> [(&'static str, u32); 24] {
    // The engine limits the addresses of Services. The addresses of the node need extra room.
    let addresses = sizes.max_services + NODE_ADDRESSES;
    // Each connection has one entry for each direction.
    let index = sizes.max_flows * 2;
    [
        ("SERVICES_V4", sizes.max_services),
        ("SERVICES_V6", sizes.max_services),
        ("SERVICE_NAMES", sizes.max_services),
        ("CURSORS", sizes.max_services),
        ("THRESHOLDS", sizes.max_services),
        ("ADDRESSES_V4", addresses),
        ("ADDRESSES_V6", addresses),
        ("SLOTS", sizes.max_slots),
        ("BACKENDS_V4", sizes.max_backends),
        ("BACKENDS_V6", sizes.max_backends),
        ("LOADS_V4", sizes.max_backends),
        ("LOADS_V6", sizes.max_backends),
        ("FLOWS_V4", sizes.max_flows),
        ("FLOWS_V6", sizes.max_flows),
        ("FLOW_INDEX_V4", index),
        ("FLOW_INDEX_V6", index),
        ("FRAGMENTS_V4", sizes.max_fragments),
        ("FRAGMENTS_V6", sizes.max_fragments),
        ("SOCKET_PEERS_V4", sizes.max_socket_peers),
        ("SOCKET_PEERS_V6", sizes.max_socket_peers),
        ("SOURCE_RANGES_V4", sizes.max_source_ranges),
        ("SOURCE_RANGES_V6", sizes.max_source_ranges),
        ("AFFINITY", sizes.max_affinity),
        ("AYA_LOGS", 1 << 17),
    ]
}

/// Returns the sizes of the maps that are pinned in a folder. Sizes of maps that are missing are
/// those of `otherwise`.
pub fn pinned_sizes(pins: &Pins, otherwise: &MapSizes) -> MapSizes {
    let capacity = |name: &str| {
        let map = sys::open_pin(&pins.map(name)).ok()?;
        Some(sys::map_info(map.as_fd()).ok()?.max_entries)
    };
    let size = |name: &str, otherwise| capacity(name).unwrap_or(otherwise);
    MapSizes {
        max_services: size("SERVICES_V4", otherwise.max_services),
        max_slots: size("SLOTS", otherwise.max_slots),
        max_backends: size("BACKENDS_V4", otherwise.max_backends),
        max_flows: size("FLOWS_V4", otherwise.max_flows),
        max_fragments: size("FRAGMENTS_V4", otherwise.max_fragments),
        max_socket_peers: size("SOCKET_PEERS_V4", otherwise.max_socket_peers),
        max_source_ranges: size("SOURCE_RANGES_V4", otherwise.max_source_ranges),
        max_affinity: size("AFFINITY", otherwise.max_affinity),
    }
}
