//! Pairs of maps, one for each IP family. The key selects the map.

use std::io;
use std::net::{IpAddr, SocketAddr};

use ipnet::IpNet;
use lb_common::layout::{Backend, ServiceKey, SourceRange};
use lb_common::plain::Plain;
use lb_model::{IpFamily, PerFamily};

use crate::address::MapAddress;
use crate::apply::map_name::{MapName, TableError};
use crate::apply::tables::{BackendEntry, ServiceAddress};
use crate::handles::MapHandles;
use crate::table::{ArrayTable, LpmKey, Table};

/// A key of the IPv4 or the IPv6 map.
pub trait FamilyKey: Copy {
    /// The key of the map of one family.
    type Raw<A: MapAddress>: Plain;

    fn address(&self) -> IpAddr;
    /// Builds the map key. `addr` is [`FamilyKey::address`] in the form of its family.
    fn to_raw<A: MapAddress>(self, addr: A) -> Self::Raw<A>;
    /// Returns the key from a map key, or `None` if no agent writes such a key.
    fn from_raw<A: MapAddress>(raw: &Self::Raw<A>) -> Option<Self>;
}

impl FamilyKey for ServiceAddress {
    type Raw<A: MapAddress> = ServiceKey<A>;

    fn address(&self) -> IpAddr {
        self.ip
    }

    fn to_raw<A: MapAddress>(self, addr: A) -> ServiceKey<A> {
        ServiceKey { addr, port: self.port, protocol: self.protocol, pad: 0 }
    }

    fn from_raw<A: MapAddress>(raw: &ServiceKey<A>) -> Option<Self> {
        Some(Self { ip: raw.addr.to_ip(), port: raw.port, protocol: raw.protocol })
    }
}

impl FamilyKey for IpAddr {
    type Raw<A: MapAddress> = A;

    fn address(&self) -> IpAddr {
        *self
    }

    fn to_raw<A: MapAddress>(self, addr: A) -> A {
        addr
    }

    fn from_raw<A: MapAddress>(raw: &A) -> Option<Self> {
        Some(raw.to_ip())
    }
}

impl FamilyKey for IpNet {
    type Raw<A: MapAddress> = LpmKey<A>;

    fn address(&self) -> IpAddr {
        self.network()
    }

    fn to_raw<A: MapAddress>(self, addr: A) -> LpmKey<A> {
        LpmKey { prefix_len: self.prefix_len().into(), data: addr }
    }

    fn from_raw<A: MapAddress>(raw: &LpmKey<A>) -> Option<Self> {
        Self::new(raw.data.to_ip(), u8::try_from(raw.prefix_len).ok()?).ok()
    }
}

/// A network that may use the load balancer addresses of a Service port.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AllowedSource {
    pub service_id: u32,
    pub network: IpNet,
}

/// The length of the service id in bits. It is before the address in a key of source ranges.
const ID_BITS: u32 = u32::BITS;

impl FamilyKey for AllowedSource {
    type Raw<A: MapAddress> = LpmKey<SourceRange<A>>;

    fn address(&self) -> IpAddr {
        self.network.network()
    }

    fn to_raw<A: MapAddress>(self, addr: A) -> LpmKey<SourceRange<A>> {
        let prefix_len = ID_BITS + u32::from(self.network.prefix_len());
        LpmKey { prefix_len, data: SourceRange { service_id: self.service_id, addr } }
    }

    fn from_raw<A: MapAddress>(raw: &LpmKey<SourceRange<A>>) -> Option<Self> {
        // The prefix of each key covers the whole service id.
        let length = u8::try_from(raw.prefix_len.checked_sub(ID_BITS)?).ok()?;
        let network = IpNet::new(raw.data.addr.to_ip(), length).ok()?;
        Some(Self { service_id: raw.data.service_id, network })
    }
}

/// Two hash maps or longest-prefix maps, one for each IP family.
#[derive(Debug)]
pub struct FamilyTable<K: FamilyKey, V> {
    v4: Table<K::Raw<[u8; 4]>, V>,
    v6: Table<K::Raw<[u8; 16]>, V>,
}

impl<K: FamilyKey, V: Plain> FamilyTable<K, V> {
    pub fn open(handles: &MapHandles, maps: PerFamily<MapName>) -> io::Result<Self> {
        Ok(Self { v4: handles.table(maps.v4)?, v6: handles.table(maps.v6)? })
    }

    pub fn capacity(&self) -> PerFamily<u32> {
        PerFamily { v4: self.v4.capacity(), v6: self.v6.capacity() }
    }

    pub fn get(&self, key: K) -> Result<Option<V>, TableError> {
        match key.address() {
            IpAddr::V4(ip) => self.v4.get(&key.to_raw(ip.octets())),
            IpAddr::V6(ip) => self.v6.get(&key.to_raw(ip.octets())),
        }
    }

    /// Writes an entry. `None` removes it, if it exists.
    pub fn set(&self, key: K, value: Option<&V>) -> Result<(), TableError> {
        match key.address() {
            IpAddr::V4(ip) => self.v4.set(&key.to_raw(ip.octets()), value),
            IpAddr::V6(ip) => self.v6.set(&key.to_raw(ip.octets()), value),
        }
    }

    /// Adds an entry. Returns false if the map has the key already.
    pub fn insert(&self, key: K, value: &V) -> Result<bool, TableError> {
        match key.address() {
            IpAddr::V4(ip) => self.v4.insert(&key.to_raw(ip.octets()), value),
            IpAddr::V6(ip) => self.v6.insert(&key.to_raw(ip.octets()), value),
        }
    }

    /// Returns at most `count` keys that follow a key, from the first one on for `None`. IPv6 keys
    /// follow those of IPv4. No key follows the last one. If `after` was removed, the kernel begins
    /// with the first key of its family.
    pub fn keys(&self, after: Option<K>, count: usize) -> Result<Vec<K>, TableError> {
        let mut keys = Vec::new();
        let v6 = match after.map(|key| (key, key.address())) {
            Some((key, IpAddr::V6(ip))) => Some(key.to_raw(ip.octets())),
            Some((key, IpAddr::V4(ip))) => {
                keys.extend(
                    self.v4.keys(Some(key.to_raw(ip.octets())), count)?.iter().filter_map(K::from_raw),
                );
                None
            }
            None => {
                keys.extend(self.v4.keys(None, count)?.iter().filter_map(K::from_raw));
                None
            }
        };
        if keys.len() < count {
            keys.extend(self.v6.keys(v6, count - keys.len())?.iter().filter_map(K::from_raw));
        }
        Ok(keys)
    }

    /// Returns all entries of both families.
    pub fn entries(&self) -> Result<Vec<(K, V)>, TableError> {
        let mut entries = Vec::new();
        self.v4.for_each(|raw, value| entries.extend(K::from_raw(raw).map(|key| (key, *value))))?;
        self.v6.for_each(|raw, value| entries.extend(K::from_raw(raw).map(|key| (key, *value))))?;
        Ok(entries)
    }
}

/// The arrays of backends, one for each IP family.
#[derive(Debug)]
pub struct BackendArrays {
    v4: ArrayTable<Backend<[u8; 4]>>,
    v6: ArrayTable<Backend<[u8; 16]>>,
}

impl BackendArrays {
    pub fn open(handles: &MapHandles) -> io::Result<Self> {
        let maps = MapName::BACKENDS;
        Ok(Self { v4: handles.array(maps.v4)?, v6: handles.array(maps.v6)? })
    }

    pub fn capacity(&self) -> PerFamily<u32> {
        PerFamily { v4: self.v4.capacity(), v6: self.v6.capacity() }
    }

    /// Writes an entry. Its address must be of this family.
    pub fn write(&self, family: IpFamily, id: u32, entry: &BackendEntry) -> Result<(), TableError> {
        match (family, entry.address.ip()) {
            (IpFamily::V4, IpAddr::V4(ip)) => self.v4.write(id, raw_backend(ip.octets(), entry)),
            (IpFamily::V6, IpAddr::V6(ip)) => self.v6.write(id, raw_backend(ip.octets(), entry)),
            _ => {
                let text = "an endpoint address of the other family";
                let source = io::Error::new(io::ErrorKind::InvalidInput, text);
                let map = MapName::BACKENDS[family].name;
                Err(TableError::Kernel { map, action: "write", source })
            }
        }
    }

    /// Zeroes the entry.
    pub fn clear(&self, family: IpFamily, id: u32) -> Result<(), TableError> {
        match family {
            IpFamily::V4 => self.v4.write(id, no_backend([0; 4])),
            IpFamily::V6 => self.v6.write(id, no_backend([0; 16])),
        }
    }

    /// Returns an entry, or `None` if its flags are 0.
    pub fn get(&self, family: IpFamily, id: u32) -> Result<Option<BackendEntry>, TableError> {
        match family {
            IpFamily::V4 => Ok(backend_entry(self.v4.read(id)?)),
            IpFamily::V6 => Ok(backend_entry(self.v6.read(id)?)),
        }
    }

    /// Returns all entries of the family whose flags are not 0, as (id, entry).
    pub fn entries(&self, family: IpFamily) -> Result<Vec<(u32, BackendEntry)>, TableError> {
        match family {
            IpFamily::V4 => backend_entries(&self.v4),
            IpFamily::V6 => backend_entries(&self.v6),
        }
    }
}

fn raw_backend<A>(addr: A, entry: &BackendEntry) -> Backend<A> {
    let BackendEntry { address, flags, service_id, weight } = *entry;
    Backend { addr, port: address.port(), flags, service_id, weight }
}

fn no_backend<A>(addr: A) -> Backend<A> {
    Backend { addr, port: 0, flags: 0, service_id: 0, weight: 0 }
}

fn backend_entries<A: MapAddress>(
    table: &ArrayTable<Backend<A>>,
) -> Result<Vec<(u32, BackendEntry)>, TableError> {
    let mut entries = Vec::new();
    for id in 0..table.capacity() {
        entries.extend(backend_entry(table.read(id)?).map(|entry| (id, entry)));
    }
    Ok(entries)
}

/// Returns `None` if the flags are 0.
fn backend_entry<A: MapAddress>(backend: Backend<A>) -> Option<BackendEntry> {
    let Backend { addr, port, flags, service_id, weight } = backend;
    let address = SocketAddr::new(addr.to_ip(), port);
    (flags != 0).then_some(BackendEntry { address, flags, service_id, weight })
}
