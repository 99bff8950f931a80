//! Typed access to hash maps, longest-prefix maps and arrays.

use std::io;
use std::marker::PhantomData;
use std::mem::size_of;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering, fence};

use lb_common::layout::SourceRange;
use lb_common::plain::Plain;
use memmap2::{MmapOptions, MmapRaw};

use crate::address::MapAddress;
use crate::apply::map_name::{MapName, TableError};
use crate::sys;

/// A key of a longest-prefix map (`struct bpf_lpm_trie_key`): the number of significant bits, and
/// the bits, from the first byte on.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LpmKey<D> {
    pub prefix_len: u32,
    pub data: D,
}

lb_common::assert_plain! {
    LpmKey<[u8; 4]> { prefix_len, data }
    LpmKey<[u8; 16]> { prefix_len, data }
    LpmKey<SourceRange<[u8; 4]>> { prefix_len, data }
    LpmKey<SourceRange<[u8; 16]>> { prefix_len, data }
}

// SAFETY: proved above for both address types.
unsafe impl<A: MapAddress> Plain for LpmKey<A> {}
// SAFETY: as above.
unsafe impl<A: MapAddress> Plain for LpmKey<SourceRange<A>> {}

/// A hash map, or a longest-prefix map with the key [`LpmKey`]. In the latter, [`Table::get`] finds
/// the longest prefix that covers the key.
#[derive(Debug, Clone)]
pub struct Table<K, V> {
    map: MapName,
    fd: Arc<OwnedFd>,
    capacity: u32,
    entries: PhantomData<(K, V)>,
}

impl<K: Plain, V: Plain> Table<K, V> {
    /// Returns an error if the keys or values of the map have another size.
    pub fn new(map: MapName, fd: Arc<OwnedFd>) -> io::Result<Self> {
        let info = check_sizes(fd.as_fd(), size_of::<K>(), size_of::<V>())?;
        Ok(Self { map, fd, capacity: info.max_entries, entries: PhantomData })
    }

    pub fn capacity(&self) -> u32 {
        self.capacity
    }

    pub fn put(&self, key: &K, value: &V) -> Result<(), TableError> {
        sys::update(self.fd.as_fd(), key, value, 0).map_err(self.failed("write"))
    }

    /// Adds an entry. Returns false if the map has the key already.
    pub fn insert(&self, key: &K, value: &V) -> Result<bool, TableError> {
        match sys::update(self.fd.as_fd(), key, value, sys::NO_EXIST) {
            Ok(()) => Ok(true),
            Err(error) if error.raw_os_error() == Some(libc::EEXIST) => Ok(false),
            Err(error) => Err(self.failed("write")(error)),
        }
    }

    /// Removes an entry. Returns false if it did not exist.
    pub fn remove(&self, key: &K) -> Result<bool, TableError> {
        sys::delete(self.fd.as_fd(), key).map_err(self.failed("remove"))
    }

    /// Writes an entry. `None` removes it, if it exists.
    pub fn set(&self, key: &K, value: Option<&V>) -> Result<(), TableError> {
        match value {
            Some(value) => self.put(key, value),
            None => self.remove(key).map(drop),
        }
    }

    pub fn get(&self, key: &K) -> Result<Option<V>, TableError> {
        sys::lookup(self.fd.as_fd(), key).map_err(self.failed("read"))
    }

    /// Returns at most `count` keys that follow a key, from the first one on for `None`.
    pub fn keys(&self, after: Option<K>, count: usize) -> Result<Vec<K>, TableError> {
        let mut keys: Vec<K> = Vec::new();
        while keys.len() < count {
            let previous = keys.last().copied().or(after);
            let next = sys::next_key(self.fd.as_fd(), previous.as_ref()).map_err(self.failed("read"))?;
            let Some(next) = next else { break };
            keys.push(next);
        }
        Ok(keys)
    }

    pub fn for_each(&self, visit: impl FnMut(&K, &V)) -> Result<(), TableError> {
        sys::for_each(self.fd.as_fd(), visit).map_err(self.failed("read"))
    }

    pub fn entries(&self) -> Result<Vec<(K, V)>, TableError> {
        let mut entries = Vec::new();
        self.for_each(|key, value| entries.push((*key, *value)))?;
        Ok(entries)
    }

    fn failed(&self, action: &'static str) -> impl FnOnce(io::Error) -> TableError {
        let (map, capacity) = (self.map, self.capacity);
        move |source| map.failed(capacity, action, source)
    }
}

/// A memory-mapped array (`BPF_F_MMAPABLE`). Entries are read and written without system calls.
#[derive(Debug)]
pub struct ArrayTable<V> {
    map: MapName,
    memory: MmapRaw,
    capacity: u32,
    entries: PhantomData<V>,
}

impl<V: Plain> ArrayTable<V> {
    /// The kernel rounds the size of each element up to eight bytes.
    const STRIDE: usize = size_of::<V>().next_multiple_of(8);

    pub fn new(map: MapName, fd: &OwnedFd) -> io::Result<Self> {
        let info = check_sizes(fd.as_fd(), size_of::<u32>(), size_of::<V>())?;
        let length = info.max_entries as usize * Self::STRIDE;
        let memory = MmapOptions::new().len(length).map_raw(fd)?;
        Ok(Self { map, memory, capacity: info.max_entries, entries: PhantomData })
    }

    pub fn capacity(&self) -> u32 {
        self.capacity
    }

    fn entry(&self, index: u32, action: &'static str) -> Result<*mut V, TableError> {
        if index >= self.capacity {
            let text = format!("index {index} of an array of {}", self.capacity);
            let source = io::Error::new(io::ErrorKind::InvalidInput, text);
            return Err(TableError::Kernel { map: self.map.name, action, source });
        }
        // SAFETY: within the mapping: checked above.
        Ok(unsafe { self.memory.as_mut_ptr().add(index as usize * Self::STRIDE) }.cast())
    }

    pub fn read(&self, index: u32) -> Result<V, TableError> {
        // SAFETY: within the mapping and aligned to eight bytes; programs only read arrays.
        Ok(unsafe { self.entry(index, "read")?.read_volatile() })
    }

    /// Returns a word of an entry, which programs change too, by atomic operations.
    pub fn word(&self, index: u32, word: usize) -> Result<&AtomicU64, TableError> {
        assert!(word < Self::STRIDE / size_of::<AtomicU64>(), "word {word} of {} bytes", Self::STRIDE);
        let entry = self.entry(index, "change")?.cast::<u64>();
        // SAFETY: within the entry, whose address is a multiple of eight. The mapping exists as
        // long as `self`.
        Ok(unsafe { AtomicU64::from_ptr(entry.add(word)) })
    }

    /// Writes an entry. Either no program reads it at the same time, or only one aligned word
    /// changes.
    pub fn write(&self, index: u32, value: V) -> Result<(), TableError> {
        let entry = self.entry(index, "write")?;
        // SAFETY: within the mapping and aligned; this process is the only writer.
        unsafe { entry.write_volatile(value) };
        // Programs must not see later writes (a service entry that refers to this one) before it.
        fence(Ordering::Release);
        Ok(())
    }
}

fn check_sizes(
    map: BorrowedFd<'_>,
    key: usize,
    value: usize,
) -> io::Result<aya_obj::generated::bpf_map_info> {
    let info = sys::map_info(map)?;
    if info.key_size as usize != key || info.value_size as usize != value {
        return Err(io::Error::new(
            io::ErrorKind::InvalidData,
            format!(
                "its keys and values have {} and {} bytes, this version of lb has {key} and {value}",
                info.key_size, info.value_size
            ),
        ));
    }
    Ok(info)
}
