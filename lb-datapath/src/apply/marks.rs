//! What `ADDRESSES` says of the addresses of Services: the programs look at no packet whose destination is not there.
//!
//! An address is marked before its first entry is written and until its last one is removed, so that no entry is ever
//! hidden. Several entries, of several service ports, may have one address.

use std::collections::{BTreeSet, HashMap};
use std::net::IpAddr;

use lb_common::layout::{address_flags, kind};

use super::tables::{TableError, Tables};

#[derive(Debug, Default)]
pub struct AddressMarks {
    marks: HashMap<IpAddr, Mark>,
    /// Addresses whose flags say more than is needed, or something else after a restart.
    untidy: BTreeSet<IpAddr>,
}

#[derive(Debug, Default)]
struct Mark {
    /// Entries at the address, and how many of them are ClusterIPs.
    entries: u32,
    cluster_ips: u32,
    /// What the map says.
    written: u32,
}

impl Mark {
    fn wanted(&self) -> u32 {
        let service = if self.entries > 0 { address_flags::SERVICE } else { 0 };
        let cluster_ip = if self.cluster_ips > 0 { address_flags::CLUSTER_IP } else { 0 };
        service | cluster_ip
    }
}

impl AddressMarks {
    /// `entries`: address and kind of every service entry. `marked`: what the map says.
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
        let untidy = adopted.marks.iter().filter(|(_, mark)| mark.written != mark.wanted());
        adopted.untidy = untidy.map(|(ip, _)| *ip).collect();
        adopted
    }

    /// To be called before an entry is written: marks its address. NodePorts have none of their own.
    pub fn add<T: Tables>(&mut self, tables: &mut T, ip: IpAddr, kind: u8) -> Result<(), TableError> {
        if ip.is_unspecified() {
            return Ok(());
        }
        let written = self.marks.get(&ip).map_or(0, |mark| mark.written);
        let needed = written | needed_by(kind);
        if needed != written {
            tables.mark_address(ip, needed)?;
        }
        self.count(ip, kind).written = needed;
        Ok(())
    }

    fn count(&mut self, ip: IpAddr, kind: u8) -> &mut Mark {
        let mark = self.marks.entry(ip).or_default();
        mark.entries += 1;
        mark.cluster_ips += u32::from(kind == kind::CLUSTER_IP);
        mark
    }

    /// An entry is gone, replaced, or was not written after all. What its address no longer needs stays until
    /// [`AddressMarks::tidy`].
    pub fn release(&mut self, ip: IpAddr, kind: u8) {
        let Some(mark) = self.marks.get_mut(&ip) else { return };
        mark.entries -= 1;
        mark.cluster_ips -= u32::from(kind == kind::CLUSTER_IP);
        if mark.written != mark.wanted() {
            self.untidy.insert(ip);
        }
    }

    /// Makes the map say what is needed and nothing more. What fails is tried again by the next call.
    pub fn tidy<T: Tables>(&mut self, tables: &mut T) -> Result<(), TableError> {
        while let Some(&ip) = self.untidy.first() {
            if let Some(mark) = self.marks.get_mut(&ip) {
                let wanted = mark.wanted();
                if mark.written != wanted {
                    tables.mark_address(ip, wanted)?;
                    mark.written = wanted;
                }
                if wanted == 0 {
                    self.marks.remove(&ip);
                }
            }
            self.untidy.remove(&ip);
        }
        Ok(())
    }

    /// What the map says.
    #[cfg(test)]
    pub fn written(&self) -> std::collections::BTreeMap<IpAddr, u32> {
        self.marks.iter().map(|(ip, mark)| (*ip, mark.written)).collect()
    }
}

fn needed_by(kind: u8) -> u32 {
    match kind {
        kind::CLUSTER_IP => address_flags::SERVICE | address_flags::CLUSTER_IP,
        _ => address_flags::SERVICE,
    }
}
