//! Reads the maps, for commands and tests. Returns plain values.

use std::collections::{HashMap, HashSet};
use std::io;
use std::net::IpAddr;

use ipnet::IpNet;
use lb_common::layout::{
    Affinity, AffinityKey, FlowTimeouts, ServiceEntry, ServiceName, Settings, Thresholds, affinity_client,
};
use lb_common::load::Connections;
use lb_common::reason::Reason;
use lb_model::IpFamily;

use crate::apply::map_name::MapName;
use crate::apply::tables::{BackendEntry, ServiceAddress, Tables as _};
use crate::first_filter::Filter;
use crate::flows::{self, FlowEntry};
use crate::handles::MapHandles;
use crate::health::{self, LeftOutEndpoint};
use crate::host_maps::HostMaps;
use crate::loads::{self, ServiceLoad};
use crate::overloaded;
use crate::pins::Pins;
use crate::port_shortage::{self, EndpointShortage};
use crate::service_tables::ServiceTables;
use crate::settings;
use crate::sys;
use crate::table::Table;

/// The maps of an agent, or private maps.
#[derive(Debug, Clone)]
pub struct AgentMaps(MapHandles);

impl AgentMaps {
    /// Opens the maps that an agent has pinned. No agent needs to run. Fails with `NotFound` if
    /// there are none.
    pub fn open(pins: &Pins) -> io::Result<Self> {
        MapHandles::open(&pins.maps()).map(Self)
    }

    pub(crate) fn of(maps: &MapHandles) -> Self {
        Self(maps.clone())
    }

    pub(crate) fn handles(&self) -> &MapHandles {
        &self.0
    }

    /// Returns the service maps, for a reader of single entries.
    pub fn tables(&self) -> io::Result<ServiceTables> {
        ServiceTables::new(&self.0, Filter::open(&self.0)?)
    }

    pub fn services(&self) -> io::Result<Vec<(ServiceAddress, ServiceEntry)>> {
        Ok(self.tables()?.services()?)
    }

    pub fn service_names(&self) -> io::Result<Vec<(u32, ServiceName)>> {
        Ok(self.tables()?.service_names()?)
    }

    pub fn backends(&self, family: IpFamily) -> io::Result<Vec<(u32, BackendEntry)>> {
        Ok(self.tables()?.backends(family)?)
    }

    /// Returns the open connections of the endpoints that have any, by IP family and backend id.
    pub fn loads(&self) -> io::Result<HashMap<(IpFamily, u32), Connections>> {
        loads::read(&self.0)
    }

    /// Returns the Service ports with the most open connections, at most `most` of them.
    pub fn service_loads(&self, most: usize) -> io::Result<Vec<ServiceLoad>> {
        loads::by_service(&self.0, most)
    }

    /// Returns the backend ids in a range of slots.
    pub fn slots(&self, base: u32, count: u32) -> io::Result<Vec<u32>> {
        Ok(self.tables()?.read_slots(base, count)?)
    }

    /// Returns the networks that may use load balancer addresses, by service id.
    pub fn source_ranges(&self) -> io::Result<Vec<(u32, IpNet)>> {
        Ok(self.tables()?.source_ranges()?)
    }

    /// Returns the clients of Service ports with session affinity, with their endpoints.
    pub fn affinity(&self) -> io::Result<Vec<AffinityEntry>> {
        let table: Table<AffinityKey, Affinity> = self.0.table(MapName::AFFINITY)?;
        let mut entries = Vec::new();
        table.for_each(|key, value| entries.extend(AffinityEntry::new(key, value)))?;
        Ok(entries)
    }

    /// Returns the timeouts of idle connections.
    pub fn flow_timeouts(&self) -> io::Result<FlowTimeouts> {
        flows::timeouts(&self.0)
    }

    /// Returns the settings with which the agent has loaded its programs.
    pub fn settings(&self) -> io::Result<Settings> {
        settings::table(&self.0)?.get(&0)?.ok_or_else(|| io::ErrorKind::NotFound.into())
    }

    /// Returns the open connections of both families.
    pub fn flows(&self) -> io::Result<Vec<FlowEntry>> {
        flows::read(&self.0, sys::monotonic_ns())
    }

    /// Returns the number of packets by reason, over all CPUs.
    pub fn counters(&self) -> io::Result<Vec<(Reason, u64)>> {
        let map = self.0.fd("COUNTERS")?;
        let cpus = sys::possible_cpus()?;
        Reason::ALL
            .iter()
            .map(|reason| Ok((*reason, sys::lookup_per_cpu(map, *reason as u32, cpus)?.iter().sum())))
            .collect()
    }

    /// Returns the endpoints for whose connections no source port was free.
    pub fn port_shortages(&self) -> io::Result<Vec<EndpointShortage>> {
        port_shortage::read(&self.0)
    }

    /// Returns the endpoints that are left out.
    pub fn left_out(&self) -> io::Result<Vec<LeftOutEndpoint>> {
        health::read(&self.0)
    }

    /// Returns the thresholds of the Service ports that have any, by service id.
    pub fn thresholds(&self) -> io::Result<HashMap<u32, Thresholds>> {
        Ok(self.tables()?.thresholds()?.into_iter().collect())
    }

    /// Returns the endpoints that have too many connections to get new ones, by IP family and
    /// backend id.
    pub fn overloaded(&self) -> io::Result<HashSet<(IpFamily, u32)>> {
        overloaded::read(&self.0)
    }

    /// Returns the maps that describe this host.
    pub fn host(&self) -> io::Result<HostMaps> {
        HostMaps::new(&self.0, Filter::open(&self.0)?)
    }
}

/// An entry of `AFFINITY`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AffinityEntry {
    pub client: AffinityClient,
    /// The IP family of the connections.
    pub family: IpFamily,
    pub service_id: u32,
    pub backend_id: u32,
    /// `CLOCK_MONOTONIC` at the last new connection, see [`crate::monotonic_ns`].
    pub last_used_ns: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AffinityClient {
    Address(IpAddr),
    /// Cookie of the network namespace of processes whose connections are translated at their
    /// socket.
    Namespace(u64),
}

impl AffinityEntry {
    /// Returns `None` if the kind of client is unknown.
    fn new(key: &AffinityKey, value: &Affinity) -> Option<Self> {
        let cookie = || {
            let [a, b, c, d, e, f, g, h, ..] = key.client;
            AffinityClient::Namespace(u64::from_le_bytes([a, b, c, d, e, f, g, h]))
        };
        let (client, family) = match key.client_kind {
            affinity_client::ADDRESS_V4 => {
                let [a, b, c, d, ..] = key.client;
                (AffinityClient::Address([a, b, c, d].into()), IpFamily::V4)
            }
            affinity_client::ADDRESS_V6 => (AffinityClient::Address(key.client.into()), IpFamily::V6),
            affinity_client::NAMESPACE_V4 => (cookie(), IpFamily::V4),
            affinity_client::NAMESPACE_V6 => (cookie(), IpFamily::V6),
            _ => return None,
        };
        Some(Self {
            client,
            family,
            service_id: key.service_id,
            backend_id: value.backend_id,
            last_used_ns: value.last_used_ns,
        })
    }
}
