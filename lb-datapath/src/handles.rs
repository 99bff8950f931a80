//! File descriptors of the maps, by name.

use std::collections::HashMap;
use std::io;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::path::Path;
use std::sync::Arc;

use lb_common::plain::Plain;

use crate::apply::map_name::{MapName, MapUsage};
use crate::sys;
use crate::table::{ArrayTable, Table};

/// File descriptors of maps, by name.
#[derive(Debug, Clone, Default)]
pub struct MapHandles(HashMap<String, Arc<OwnedFd>>);

impl MapHandles {
    pub fn insert(&mut self, name: &str, map: OwnedFd) {
        self.0.insert(name.to_owned(), Arc::new(map));
    }

    /// Opens the maps that are pinned in a folder.
    pub fn open(folder: &Path) -> io::Result<Self> {
        let mut handles = Self::default();
        for entry in std::fs::read_dir(folder)? {
            let entry = entry?;
            handles.insert(&entry.file_name().to_string_lossy(), sys::open_pin(&entry.path())?);
        }
        Ok(handles)
    }

    /// Returns the maps with their names, in no order.
    pub fn iter(&self) -> impl Iterator<Item = (&str, BorrowedFd<'_>)> {
        self.0.iter().map(|(name, map)| (name.as_str(), map.as_fd()))
    }

    /// Returns the usage of a map that has so many entries, or `None` for a map without an option
    /// that sets its size.
    pub fn usage(&self, map: MapName, entries: usize) -> io::Result<Option<MapUsage>> {
        let capacity = sys::map_info(self.fd(map.name)?)?.max_entries;
        Ok(map.usage(entries as u64, capacity))
    }

    fn find(&self, name: &str) -> io::Result<&Arc<OwnedFd>> {
        let missing = || io::Error::new(io::ErrorKind::NotFound, format!("there is no map {name}"));
        self.0.get(name).ok_or_else(missing)
    }

    pub fn get(&self, name: &str) -> io::Result<Arc<OwnedFd>> {
        self.find(name).cloned()
    }

    pub fn fd(&self, name: &str) -> io::Result<BorrowedFd<'_>> {
        self.find(name).map(|map| map.as_fd())
    }

    pub fn table<K: Plain, V: Plain>(&self, map: MapName) -> io::Result<Table<K, V>> {
        Table::new(map, self.get(map.name)?)
    }

    pub fn array<V: Plain>(&self, map: MapName) -> io::Result<ArrayTable<V>> {
        ArrayTable::new(map, self.find(map.name)?)
    }
}
