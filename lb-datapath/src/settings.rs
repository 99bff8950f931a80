//! The map `SETTINGS`: the options with which the agent has loaded its programs, for other
//! processes.

use std::io;

use lb_common::layout::{FlowTimeouts, Settings};

use crate::apply::map_name::MapName;
use crate::handles::MapHandles;
use crate::pins::Pins;
use crate::programs::{LoadError, LoadOptions, TcAttach};
use crate::sizes::MapSizes;
use crate::table::Table;

/// Writes the options with which the programs were loaded.
pub fn publish(maps: &MapHandles, options: &LoadOptions, netns_cookie: Option<u64>) -> Result<(), LoadError> {
    let settings = settings(options, netns_cookie);
    let publish = || Ok(table(maps)?.put(&0, &settings)?);
    publish().map_err(|source| LoadError::Map { map: "SETTINGS".into(), source })
}

/// Reads the settings of the agent whose maps are pinned. Returns `None` if nothing is pinned.
pub fn read_pinned(pins: &Pins) -> io::Result<Option<Settings>> {
    let settings = MapHandles::open(&pins.maps()).and_then(|maps| Ok(table(&maps)?.get(&0)?));
    match settings {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        // The agent has created the map, but has not written it yet.
        Ok(Some(settings)) if settings.snat_port_count == 0 => Ok(None),
        result => result,
    }
}

pub fn table(maps: &MapHandles) -> io::Result<Table<u32, Settings>> {
    maps.table(MapName::SETTINGS)
}

/// Returns the entry of `SETTINGS` for these options.
fn settings(options: &LoadOptions, netns_cookie: Option<u64>) -> Settings {
    let (first, last) = options.snat_ports;
    Settings {
        netns_cookie: netns_cookie.unwrap_or(0),
        snat_port_first: first,
        snat_port_count: last - first + 1,
        host_sockets_only: u8::from(options.host_sockets_only),
        kernel_fragments: u8::from(options.kernel_fragments),
        pad: [0; 2],
    }
}

/// Returns the options with which an agent has loaded its programs. The map sizes have no effect,
/// because the maps exist.
pub fn load_options(settings: &Settings) -> LoadOptions {
    let first = settings.snat_port_first;
    LoadOptions {
        sizes: MapSizes::same(1),
        map_memory: 0,
        snat_ports: (first, first + (settings.snat_port_count - 1)),
        flow_timeouts: FlowTimeouts::DEFAULT,
        log_level: 0,
        tc_attach: TcAttach::Auto,
        host_sockets_only: settings.host_sockets_only != 0,
        protect_node_ports: false,
        neighbour_check_ms: 0,
        kernel_fragments: settings.kernel_fragments != 0,
    }
}
