//! Maps whose entries are read and written as bytes, because their layout is known only at run
//! time.

use std::ffi::c_void;
use std::io;
use std::mem::size_of;
use std::os::fd::{AsFd as _, OwnedFd};
use std::sync::Arc;

use memmap2::{MmapOptions, MmapRaw};

use crate::sys;

/// A memory-mapped array.
#[derive(Debug)]
pub struct RawArray {
    memory: MmapRaw,
    stride: usize,
    size: usize,
    capacity: u32,
}

impl RawArray {
    pub fn open(map: &OwnedFd) -> io::Result<Self> {
        let info = sys::map_info(map.as_fd())?;
        let size = info.value_size as usize;
        // The kernel rounds the size of each element up to eight bytes.
        let stride = size.next_multiple_of(8);
        let memory = MmapOptions::new().len(info.max_entries as usize * stride).map_raw(map)?;
        Ok(Self { memory, stride, size, capacity: info.max_entries })
    }

    pub fn capacity(&self) -> u32 {
        self.capacity
    }

    /// Returns the element as words.
    fn element(&self, index: u32) -> *mut u64 {
        assert!(index < self.capacity, "index {index} of an array of {}", self.capacity);
        let words = self.memory.as_mut_ptr().cast::<c_void>().cast::<u64>();
        // SAFETY: within the mapping: checked above. The mapping is aligned to pages.
        unsafe { words.add(index as usize * self.stride / size_of::<u64>()) }
    }

    /// Reads an entry. Programs may change it at the same time.
    pub fn read(&self, index: u32) -> Vec<u8> {
        let mut bytes = vec![0; self.stride];
        let element = self.element(index);
        for (word, part) in bytes.chunks_exact_mut(8).enumerate() {
            // SAFETY: within the element, whose size and address are multiples of eight.
            let value = unsafe { element.add(word).read_volatile() };
            part.copy_from_slice(&value.to_ne_bytes());
        }
        bytes.truncate(self.size);
        bytes
    }

    /// Writes an entry that no program reads yet.
    pub fn write(&self, index: u32, value: &[u8]) {
        let mut bytes = value.to_vec();
        bytes.resize(self.stride, 0);
        let element = self.element(index);
        for (word, part) in bytes.chunks_exact(8).enumerate() {
            let value = part.iter().rev().fold(0u64, |value, byte| value << 8 | u64::from(*byte));
            // SAFETY: as in `read`.
            unsafe { element.add(word).write_volatile(value.to_le()) };
        }
    }
}

/// The only entry of a memory-mapped array of `u32`.
#[derive(Debug)]
pub struct MappedWord(RawArray);

impl MappedWord {
    pub fn open(map: &Arc<OwnedFd>) -> io::Result<Self> {
        RawArray::open(map).map(Self)
    }

    pub fn get(&self) -> u32 {
        // SAFETY: the first word of the element, aligned.
        unsafe { self.0.element(0).cast::<u32>().read_volatile() }
    }

    pub fn set(&self, value: u32) {
        // SAFETY: as in `get`.
        unsafe { self.0.element(0).cast::<u32>().write_volatile(value) };
    }
}
