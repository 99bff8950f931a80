//! Facts about the agent, its programs and its maps.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use lb_datapath::attachments::{HookPrograms, cgroup_programs};
use lb_datapath::inspect::AgentMaps;
use lb_datapath::{EndpointShortage, Pins, monotonic_ns};

use super::args::{DoctorArgs, reachable};
use super::devices;
use crate::cli::{get, http_client};
use crate::view::doctor::{
    AgentFacts, Checked, DatapathFacts, HookNames, MapEntries, MapMemoryFacts, PortShortageFacts,
};
use crate::view::{BackendsById, ServiceEntries};

pub async fn facts(args: &DoctorArgs, cgroup: Option<&Path>) -> DatapathFacts {
    let pins = Pins::new(&args.pins.bpffs);
    let devices = devices::read(None).await.map_err(|error| error.to_string());
    DatapathFacts {
        bpffs: args.pins.bpffs.clone(),
        installed: installed(&pins),
        agent: agent(args),
        devices,
        pinned_hooks: names(&pins.links()),
        sockets: sockets(cgroup),
        maps: maps(&pins).map_err(|error| error.to_string()),
        other_versions: other_versions(&args.pins.root(), &pins),
    }
}

fn installed(pins: &Pins) -> Checked<bool> {
    Ok(!names(&pins.maps())?.is_empty())
}

/// Returns the names of the files in a folder. A folder that does not exist has none.
fn names(folder: &Path) -> Checked<Vec<String>> {
    match fs::read_dir(folder) {
        Ok(entries) => {
            Ok(entries.flatten().map(|entry| entry.file_name().to_string_lossy().into_owned()).collect())
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
        Err(error) => Err(format!("{}: {error}", folder.display())),
    }
}

fn agent(args: &DoctorArgs) -> AgentFacts {
    let get = |path: &str, server| {
        let server = reachable(server);
        http_client::get(path, server).map_err(|error| format!("http://{server}{path}: {error}"))
    };
    let metrics = get("/metrics", args.metrics_bind).map(|(_, metrics)| metrics);
    AgentFacts {
        health: get("/healthz", args.health_bind),
        watches: metrics.as_ref().map(|metrics| watches(metrics)).unwrap_or_default(),
        map_memory: metrics.as_ref().ok().and_then(|metrics| map_memory(metrics)),
        written: metrics.map(|metrics| written(&metrics)),
    }
}

/// Returns the entries of the maps of Services in the text of `/metrics`. The entries of endpoints
/// are left out: removed ones stay in the maps while connections use them.
fn written(metrics: &str) -> Vec<(String, u64)> {
    samples(metrics, "sluice_map_entries{map=\"").filter(|(map, _)| map.starts_with("SERVICE")).collect()
}

/// Returns the memory of the maps in the text of `/metrics`.
fn map_memory(metrics: &str) -> Option<MapMemoryFacts> {
    let value = |name: &str| {
        let mut lines = metrics.lines();
        lines.find_map(|line| line.strip_prefix(name)?.strip_prefix(' ')?.parse().ok())
    };
    Some(MapMemoryFacts {
        bytes: value("sluice_map_memory_bytes")?,
        most: value("sluice_map_memory_limit_bytes")?,
        growths: value("sluice_map_growths_total")?,
    })
}

/// Returns the ages of the watches in the text of `/metrics`, in seconds.
fn watches(metrics: &str) -> Vec<(String, u64)> {
    samples(metrics, "sluice_watch_age_seconds{resource=\"").collect()
}

/// Returns the samples of a metric with one label, each as the label's value and the number.
/// `begin` is the text before that value.
fn samples(metrics: &str, begin: &str) -> impl Iterator<Item = (String, u64)> {
    metrics.lines().filter_map(move |line| {
        let (label, value) = line.strip_prefix(begin)?.split_once("\"} ")?;
        Some((label.to_owned(), value.trim().parse().ok()?))
    })
}

fn sockets(cgroup: Option<&Path>) -> Checked<Vec<HookNames>> {
    let path = cgroup.ok_or("there is no cgroup-v2 file system")?;
    let hooks = cgroup_programs(path)
        .map_err(|error| format!("cannot list the programs of cgroup {}: {error}", path.display()))?;
    Ok(hooks.into_iter().map(|HookPrograms { hook, programs }| HookNames { hook, programs }).collect())
}

fn maps(pins: &Pins) -> io::Result<MapEntries> {
    let maps = AgentMaps::open(pins)?;
    let entries = get::service_tables(&maps)?;
    Ok(MapEntries {
        usage: maps.usage()?,
        inconsistent: inconsistent(&entries),
        port_shortages: maps.port_shortages()?.iter().map(port_shortage).collect(),
    })
}

fn port_shortage(shortage: &EndpointShortage) -> PortShortageFacts {
    PortShortageFacts {
        service: shortage.service.to_string(),
        endpoint: shortage.endpoint,
        packets: shortage.packets,
        seconds_ago: monotonic_ns().saturating_sub(shortage.last_ns) / 1_000_000_000,
    }
}

/// Returns the entries of Services that refer to a name or an endpoint that does not exist.
fn inconsistent(entries: &ServiceEntries) -> Vec<String> {
    let ServiceEntries { services, names, slots, backends, .. } = entries;
    let mut found = Vec::new();
    for (address, service) in services {
        let at = std::net::SocketAddr::new(address.ip, address.port);
        if !names.contains_key(&service.service_id) {
            found.push(format!("{at} belongs to Service port {}, which has no name", service.service_id));
        }
        let ranges =
            [(service.inside_base, service.inside_count), (service.outside_base, service.outside_count)];
        let ids = ranges.iter().filter_map(|range| slots.get(range)).flatten();
        if let Some(id) = ids.copied().find(|id| !has_backend(backends, address.ip, *id)) {
            found.push(format!("{at} refers to endpoint {id}, which does not exist"));
        }
    }
    found
}

fn has_backend(backends: &BackendsById, ip: std::net::IpAddr, id: u32) -> bool {
    backends.contains_key(&(lb_model::IpFamily::of(&ip), id))
}

/// Returns the folders with pins of other map layouts.
fn other_versions(root: &Path, pins: &Pins) -> Vec<PathBuf> {
    let entries = fs::read_dir(root).into_iter().flatten().flatten();
    entries.map(|entry| entry.path()).filter(|path| path != pins.root()).collect()
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use lb_common::layout::{ServiceEntry, ServiceName};
    use lb_datapath::apply::tables::ServiceAddress;

    use super::*;

    #[test]
    fn the_entries_that_the_agent_has_written_are_read_from_its_metrics() {
        let metrics = "# HELP sluice_map_entries Entries\nsluice_map_entries{map=\"SERVICES_V4\"} 12\n\
                       sluice_map_entries{map=\"BACKENDS_V4\"} 3\nsluice_map_capacity{map=\"SERVICES_V4\"} 16\n";
        assert_eq!(written(metrics), [("SERVICES_V4".to_owned(), 12)]);
        let metrics =
            "# TYPE sluice_watch_age_seconds gauge\nsluice_watch_age_seconds{resource=\"nodes\"} 61\n";
        assert_eq!(watches(metrics), [("nodes".to_owned(), 61)]);
        let metrics =
            "sluice_map_memory_bytes 5\nsluice_map_memory_limit_bytes 7\nsluice_map_growths_total 2\n";
        let memory = map_memory(metrics).expect("all three");
        assert_eq!((memory.bytes, memory.most, memory.growths), (5, 7, 2));
        assert!(map_memory("sluice_map_memory_bytes 5\n").is_none());
    }

    #[test]
    fn entries_without_a_name_or_an_endpoint_are_reported() {
        let address = ServiceAddress { ip: "10.96.0.10".parse().unwrap(), port: 80, protocol: 6 };
        let service = ServiceEntry {
            service_id: 7,
            flags: 0,
            outside_base: 0,
            outside_count: 0,
            inside_base: 1,
            inside_count: 2,
            affinity_seconds: 0,
            algorithm: 0,
            kind: 0,
            scheduler: 0,
            pad: 0,
        };
        let name = ServiceName {
            namespace: [0; 64],
            name: [0; 64],
            port_name: [0; 64],
            port: 80,
            protocol: 6,
            pad: 0,
        };
        let mut entries = ServiceEntries {
            services: vec![(address, service)],
            names: HashMap::new(),
            slots: HashMap::from([((1, 2), vec![4, 4])]),
            backends: HashMap::new(),
            source_ranges: HashMap::new(),
            thresholds: HashMap::new(),
        };
        assert_eq!(
            inconsistent(&entries),
            [
                "10.96.0.10:80 belongs to Service port 7, which has no name",
                "10.96.0.10:80 refers to endpoint 4, which does not exist"
            ]
        );
        entries.names.insert(7, name);
        entries.slots.clear();
        assert_eq!(inconsistent(&entries), [""; 0]);
    }
}
