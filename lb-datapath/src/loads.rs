//! The maps `LOADS_V4` and `LOADS_V6`: the open connections of endpoints.

use std::collections::HashMap;
use std::io;
use std::sync::atomic::Ordering;

use lb_common::layout::{Load, counted};
use lb_common::load::{Connections, step};
use lb_model::{IpFamily, PerFamily};

use crate::apply::map_name::{MapName, TableError};
use crate::handles::MapHandles;
use crate::table::ArrayTable;

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

    fn read(&self, id: u32) -> Result<Load, TableError> {
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

/// Opens the loads of both families.
pub fn open(maps: &MapHandles) -> io::Result<PerFamily<Loads>> {
    Ok(PerFamily { v4: Loads::open(maps, IpFamily::V4)?, v6: Loads::open(maps, IpFamily::V6)? })
}
