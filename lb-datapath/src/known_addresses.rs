//! The maps `ADDRESSES_V4` and `ADDRESSES_V6`. They have flags of Services and flags of the node.

use std::io;
use std::net::IpAddr;

use lb_common::layout::KnownAddress;

use crate::apply::map_name::{MapName, TableError};
use crate::family_table::FamilyTable;
use crate::handles::MapHandles;

/// The addresses of Services and of this node.
#[derive(Debug)]
pub struct KnownAddresses(FamilyTable<IpAddr, KnownAddress>);

impl KnownAddresses {
    pub fn open(handles: &MapHandles) -> io::Result<Self> {
        FamilyTable::open(handles, MapName::ADDRESSES).map(Self)
    }

    pub fn entries(&self) -> Result<Vec<(IpAddr, KnownAddress)>, TableError> {
        self.0.entries()
    }

    pub fn get(&self, address: IpAddr) -> Result<Option<KnownAddress>, TableError> {
        self.0.get(address)
    }

    /// Changes an entry, and removes it if no flag is left. Only one thread writes the map, so the
    /// entry does not change between the read and the write.
    pub fn update(
        &self,
        address: IpAddr,
        change: impl FnOnce(KnownAddress) -> KnownAddress,
    ) -> Result<(), TableError> {
        let known = self.0.get(address)?.unwrap_or(KnownAddress { ifindex: 0, flags: 0 });
        let changed = change(known);
        if changed.flags == 0 {
            self.0.set(address, None)
        } else if changed != known {
            self.0.set(address, Some(&changed))
        } else {
            Ok(())
        }
    }
}
