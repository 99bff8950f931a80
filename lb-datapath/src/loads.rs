//! The maps `LOADS_V4` and `LOADS_V6`: the open connections of endpoints.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::io;
use std::net::SocketAddr;
use std::sync::atomic::Ordering;

use lb_common::layout::{Load, ServiceName, counted};
use lb_common::load::{Connections, step};
use lb_model::{IpFamily, PerFamily};
use lb_plan::desired::ServicePortId;

use crate::apply::entry::parse_service_name;
use crate::apply::map_name::{MapName, TableError};
use crate::family_table::BackendArrays;
use crate::handles::MapHandles;
use crate::table::{ArrayTable, Table};

/// The words of a [`Load`].
const FLOWS: usize = 0;
const SOCKETS: usize = 1;

/// The loads of the endpoints of one IP family.
#[derive(Debug)]
pub struct Loads(ArrayTable<Load>);

impl Loads {
    pub fn open(maps: &MapHandles, family: IpFamily) -> io::Result<Self> {
        Ok(Self(maps.array(MapName::LOADS[family])?))
    }

    pub fn read(&self, id: u32) -> Result<Load, TableError> {
        let word = |word| Ok(self.0.word(id, word)?.load(Ordering::Relaxed));
        Ok(Load::of_pairs(word(FLOWS)?, word(SOCKETS)?))
    }

    /// Counts a connection that the agent has added to the flow table. Its endpoint may be beyond
    /// the new size of the map: then it is removed.
    pub fn add_flow(&self, id: u32, class: u8) -> Result<(), TableError> {
        if id >= self.0.capacity() {
            return Ok(());
        }
        self.0.word(id, FLOWS)?.fetch_add(step(counted::NONE, class), Ordering::Relaxed);
        Ok(())
    }

    /// Adds the sockets of a load that no program counts any more.
    pub fn add_sockets(&self, id: u32, load: &Load) -> Result<(), TableError> {
        let sockets = u64::from(load.socket_active) << 32 | u64::from(load.socket_inactive);
        self.0.word(id, SOCKETS)?.fetch_add(sockets, Ordering::Relaxed);
        Ok(())
    }

    /// Removes all counts of connections in the flow table. The programs must not be attached.
    pub fn forget_flows(&self) -> Result<(), TableError> {
        (0..self.0.capacity()).try_for_each(|id| {
            self.0.word(id, FLOWS)?.store(0, Ordering::Relaxed);
            Ok(())
        })
    }

    /// Returns the endpoints that have connections, by backend id.
    fn counted(&self) -> Result<Vec<(u32, Connections)>, TableError> {
        let mut counted = Vec::new();
        for id in 0..self.0.capacity() {
            let connections = self.read(id)?.connections();
            if connections != Connections::default() {
                counted.push((id, connections));
            }
        }
        Ok(counted)
    }
}

/// Returns the open connections of all endpoints that have any, by IP family and backend id.
pub fn read(maps: &MapHandles) -> io::Result<HashMap<(IpFamily, u32), Connections>> {
    let mut loads = HashMap::new();
    for family in IpFamily::BOTH {
        let counted = Loads::open(maps, family)?.counted()?;
        loads.extend(counted.into_iter().map(|(id, connections)| ((family, id), connections)));
    }
    Ok(loads)
}

/// The open connections of a Service port, over all its endpoints.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServiceLoad {
    pub service: ServicePortId,
    /// The port number in the Service spec.
    pub port: u16,
    pub connections: Connections,
    /// Those of endpoints that get no new connections.
    pub draining: Connections,
}

/// Returns the Service ports with the most open connections, at most `most` of them.
pub fn by_service(maps: &MapHandles, most: usize) -> io::Result<Vec<ServiceLoad>> {
    let backends = BackendArrays::open(maps)?;
    let mut loads: HashMap<u32, (Connections, Connections)> = HashMap::new();
    for ((family, id), connections) in read(maps)? {
        let Some(backend) = backends.get(family, id)? else { continue };
        let (all, draining) = loads.entry(backend.service_id).or_default();
        add(all, connections);
        if backend.drains() {
            add(draining, connections);
        }
    }
    let names: Table<u32, ServiceName> = maps.table(MapName::SERVICE_NAMES)?;
    let mut services = Vec::new();
    for (service_id, (connections, draining)) in loads {
        let name = names.get(&service_id)?;
        if let Some((service, port)) = name.as_ref().and_then(parse_service_name) {
            services.push(ServiceLoad { service, port, connections, draining });
        }
    }
    services.sort_by(|a, b| (b.connections.sum(), &a.service).cmp(&(a.connections.sum(), &b.service)));
    services.truncate(most);
    Ok(services)
}

fn add(sum: &mut Connections, connections: Connections) {
    sum.active = sum.active.saturating_add(connections.active);
    sum.inactive = sum.inactive.saturating_add(connections.inactive);
}

/// The endpoints that drain.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct DrainingEndpoints {
    /// Those that have connections, with their backend ids.
    pub busy: BTreeMap<(ServicePortId, SocketAddr), u32>,
    /// Those that have none any more.
    pub idle: BTreeSet<(ServicePortId, SocketAddr)>,
}

/// Returns the endpoints that drain.
pub fn draining(maps: &MapHandles) -> io::Result<DrainingEndpoints> {
    let backends = BackendArrays::open(maps)?;
    let names: Table<u32, ServiceName> = maps.table(MapName::SERVICE_NAMES)?;
    let mut endpoints = DrainingEndpoints::default();
    for family in IpFamily::BOTH {
        let loads = Loads::open(maps, family)?;
        for (id, backend) in backends.entries(family)? {
            if !backend.drains() {
                continue;
            }
            let name = names.get(&backend.service_id)?;
            let Some((service, _)) = name.as_ref().and_then(parse_service_name) else { continue };
            let is_idle = loads.read(id)?.connections() == Connections::default();
            let endpoint = (service, backend.address);
            if is_idle {
                endpoints.idle.insert(endpoint);
            } else {
                endpoints.busy.insert(endpoint, id);
            }
        }
    }
    Ok(endpoints)
}

/// Opens the loads of both families.
pub fn open(maps: &MapHandles) -> io::Result<PerFamily<Loads>> {
    Ok(PerFamily { v4: Loads::open(maps, IpFamily::V4)?, v6: Loads::open(maps, IpFamily::V6)? })
}
