//! Writes the flags of Service addresses in the map `ADDRESSES`. The programs ignore packets whose
//! destination has no flags there.
//!
//! An address gets its flags before its first service entry is written, and loses them after its
//! last one is removed. Several service entries, also of different Service ports, can have the same
//! address.

use std::collections::{BTreeSet, HashMap};
use std::net::IpAddr;

use lb_common::layout::{address_flags, kind};

use super::tables::{TableError, Tables};

#[derive(Debug, Default)]
pub struct AddressFlags {
    marks: HashMap<IpAddr, AddressState>,
    /// Addresses whose flags in the map differ from those they need.
    outdated: BTreeSet<IpAddr>,
}

#[derive(Debug, Default)]
struct AddressState {
    /// The number of service entries with this address.
    entries: u32,
    /// How many of them are ClusterIPs.
    cluster_ips: u32,
    /// The flags in the map.
    written: u32,
}

impl AddressState {
    /// Returns the flags that the address needs.
    fn needed(&self) -> u32 {
        let service = if self.entries > 0 { address_flags::SERVICE } else { 0 };
        let cluster_ip = if self.cluster_ips > 0 { address_flags::CLUSTER_IP } else { 0 };
        service | cluster_ip
    }
}

impl AddressFlags {
    /// Takes over existing maps. `entries` has address and kind of every service entry, `marked`
    /// the flags in the map.
    pub fn adopt(
        entries: impl IntoIterator<Item = (IpAddr, u8)>,
        marked: impl IntoIterator<Item = (IpAddr, u32)>,
    ) -> Self {
        let mut adopted = Self::default();
        for (ip, flags) in marked {
            adopted.marks.entry(ip).or_default().written = flags;
        }
        for (ip, kind) in entries {
            if !ip.is_unspecified() {
                adopted.count(ip, kind);
            }
        }
        let outdated = adopted.marks.iter().filter(|(_, mark)| mark.written != mark.needed());
        adopted.outdated = outdated.map(|(ip, _)| *ip).collect();
        adopted
    }

    /// Writes the flags that a new service entry needs. Call this before the entry is written.
    /// NodePorts need no flags, because they have no address of their own.
    pub fn add<T: Tables>(&mut self, tables: &mut T, ip: IpAddr, kind: u8) -> Result<(), TableError> {
        if ip.is_unspecified() {
            return Ok(());
        }
        let written = self.marks.get(&ip).map_or(0, |mark| mark.written);
        let needed = written | flags_of(kind);
        if needed != written {
            tables.mark_address(ip, needed)?;
        }
        self.count(ip, kind).written = needed;
        Ok(())
    }

    /// Counts a service entry.
    fn count(&mut self, ip: IpAddr, kind: u8) -> &mut AddressState {
        let mark = self.marks.entry(ip).or_default();
        mark.entries += 1;
        mark.cluster_ips += u32::from(kind == kind::CLUSTER_IP);
        mark
    }

    /// Call this when a service entry was removed or replaced, or was not written after
    /// [`Self::add`]. The flags of its address stay until [`Self::remove_unneeded`].
    pub fn release(&mut self, ip: IpAddr, kind: u8) {
        let Some(mark) = self.marks.get_mut(&ip) else { return };
        mark.entries -= 1;
        mark.cluster_ips -= u32::from(kind == kind::CLUSTER_IP);
        if mark.written != mark.needed() {
            self.outdated.insert(ip);
        }
    }

    /// Removes the flags that no service entry needs. If a write fails, the next call tries it
    /// again.
    pub fn remove_unneeded<T: Tables>(&mut self, tables: &mut T) -> Result<(), TableError> {
        while let Some(&ip) = self.outdated.first() {
            if let Some(mark) = self.marks.get_mut(&ip) {
                let needed = mark.needed();
                if mark.written != needed {
                    tables.mark_address(ip, needed)?;
                    mark.written = needed;
                }
                if needed == 0 {
                    self.marks.remove(&ip);
                }
            }
            self.outdated.remove(&ip);
        }
        Ok(())
    }

    /// Writes the flags of an address again if another program has changed them. Returns whether it
    /// has.
    pub fn restore<T: Tables>(&self, tables: &mut T, ip: IpAddr) -> Result<bool, TableError> {
        let written = self.marks.get(&ip).map_or(0, |mark| mark.written);
        let differs = tables.mark(ip)? != written;
        if differs {
            tables.mark_address(ip, written)?;
        }
        Ok(differs)
    }

    /// Returns the flags in the map.
    #[cfg(test)]
    pub fn written(&self) -> std::collections::BTreeMap<IpAddr, u32> {
        self.marks.iter().map(|(ip, mark)| (*ip, mark.written)).collect()
    }
}

/// Returns the flags that a service entry of this kind needs.
fn flags_of(kind: u8) -> u32 {
    match kind {
        kind::CLUSTER_IP => address_flags::SERVICE | address_flags::CLUSTER_IP,
        _ => address_flags::SERVICE,
    }
}
