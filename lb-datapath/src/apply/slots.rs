//! Allocates ranges of the map `SLOTS`.
//!
//! The map is an array and does not record which entries are free. The allocator limits
//! fragmentation in two ways:
//!
//! * Lengths are rounded up to a **size class**: exact up to 8, then four classes per power of two
//!   (10, 12, 14, 16, 20, …). A range wastes less than a quarter of its length. A freed range fits
//!   the next request of a similar length exactly, so changing endpoints reuse the same few ranges.
//! * **Best fit with coalescing**: the allocator takes the smallest free range that is long enough,
//!   and the lowest if there are several. The rest of the range stays free. Adjacent free ranges
//!   are merged at once, so large ranges stay available for large Services.
//!
//! A running program may still read a range after its service entry was replaced. Therefore a
//! released range is reused only after the grace period.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::{Duration, Instant};

/// The free ranges of the array, and the released ranges in their grace period.
#[derive(Debug)]
pub struct SlotPool {
    capacity: u32,
    /// The length of each free range by its base. Free ranges are never adjacent.
    by_base: BTreeMap<u32, u32>,
    /// The free ranges as (length, base).
    by_length: BTreeSet<(u32, u32)>,
    /// The released ranges in order of time, as (time, base, length).
    released: VecDeque<(Instant, u32, u32)>,
}

/// Returns the length of a range for `count` slots. Returns `None` if it exceeds the range of
/// `u32`.
pub fn size_class(count: u32) -> Option<u32> {
    if count <= 8 {
        return Some(count);
    }
    let step = 1 << ((count - 1).ilog2() - 2);
    count.checked_next_multiple_of(step)
}

impl SlotPool {
    pub fn new(capacity: u32) -> Self {
        let mut pool = Self {
            capacity,
            by_base: BTreeMap::new(),
            by_length: BTreeSet::new(),
            released: VecDeque::new(),
        };
        pool.insert(0, capacity);
        pool
    }

    /// Allocates a range of at least `count` > 0 slots, and returns its base.
    pub fn take(&mut self, count: u32) -> Option<u32> {
        let length = size_class(count)?;
        let &(free, base) = self.by_length.range((length, 0)..).next()?;
        self.carve(base, free, base, length);
        Some(base)
    }

    /// Allocates a given range, to which a map entry refers. Returns false and allocates nothing if
    /// a part of it is not free or does not exist.
    pub fn reserve(&mut self, base: u32, count: u32) -> bool {
        let Some(length) = size_class(count) else { return false };
        let Some((&free_base, &free)) = self.by_base.range(..=base).next_back() else { return false };
        if u64::from(base) + u64::from(length) > u64::from(free_base) + u64::from(free) {
            return false;
        }
        self.carve(free_base, free, base, length);
        true
    }

    /// Frees a range to which no service entry ever referred.
    pub fn put_back(&mut self, base: u32, count: u32) {
        if let Some(length) = size_class(count) {
            self.insert(base, length);
        }
    }

    /// Releases a range. It becomes free after the grace period.
    pub fn release(&mut self, base: u32, count: u32, now: Instant) {
        self.released.push_back((now, base, count));
    }

    /// Frees the released ranges whose grace period is over. Returns whether there were any.
    pub fn expire(&mut self, now: Instant, grace: Duration) -> bool {
        let mut freed = false;
        while let Some((since, base, count)) = self.released.front().copied()
            && now.saturating_duration_since(since) >= grace
        {
            self.released.pop_front();
            self.put_back(base, count);
            freed = true;
        }
        freed
    }

    /// Adds free slots at the end, up to a larger capacity.
    pub fn extend(&mut self, capacity: u32) {
        if let Some(more) = capacity.checked_sub(self.capacity) {
            self.insert(self.capacity, more);
            self.capacity = capacity;
        }
    }

    pub fn capacity(&self) -> u32 {
        self.capacity
    }

    /// Returns the number of slots in ranges that are neither free nor released.
    pub fn in_use(&self) -> u64 {
        let waiting =
            self.released.iter().filter_map(|(_, _, count)| size_class(*count)).map(u64::from).sum::<u64>();
        u64::from(self.capacity) - self.by_base.values().copied().map(u64::from).sum::<u64>() - waiting
    }

    /// Removes `base..base + length` from the free range `free_base..free_base + free` that
    /// contains it.
    fn carve(&mut self, free_base: u32, free: u32, base: u32, length: u32) {
        self.by_base.remove(&free_base);
        self.by_length.remove(&(free, free_base));
        for (base, length) in
            [(free_base, base - free_base), (base + length, free_base + free - base - length)]
        {
            if length > 0 {
                self.by_base.insert(base, length);
                self.by_length.insert((length, base));
            }
        }
    }

    /// Adds a free range, and merges it with adjacent free ranges.
    fn insert(&mut self, mut base: u32, mut length: u32) {
        if let Some((&before, &before_length)) = self.by_base.range(..base).next_back()
            && before + before_length == base
        {
            self.by_base.remove(&before);
            self.by_length.remove(&(before_length, before));
            base = before;
            length += before_length;
        }
        if let Some(after_length) = self.by_base.remove(&(base + length)) {
            self.by_length.remove(&(after_length, base + length));
            length += after_length;
        }
        if length > 0 {
            self.by_base.insert(base, length);
            self.by_length.insert((length, base));
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn size_classes() {
        let classes: Vec<_> = [0, 1, 7, 8, 9, 10, 11, 16, 17, 33, 40, 41, 100, 1000].map(size_class).into();
        let expected = [0, 1, 7, 8, 10, 10, 12, 16, 20, 40, 40, 48, 112, 1024].map(Some);
        assert_eq!(classes, expected);
        assert_eq!(size_class(u32::MAX), None);
    }

    proptest! {
        #[test]
        fn size_class_is_enough_and_wastes_less_than_a_quarter(count in 1u32..1_000_000) {
            let length = size_class(count).expect("fits");
            prop_assert!(length >= count && (length - count) * 4 < length);
            prop_assert_eq!(size_class(length), Some(length), "a class is its own class");
        }

        /// Ranges never overlap. When all are freed, the array is one free range again.
        #[test]
        fn ranges_are_disjoint_and_come_back(ops in proptest::collection::vec((any::<bool>(), 1u32..60), 1..120)) {
            let mut pool = SlotPool::new(512);
            let mut held: Vec<(u32, u32)> = Vec::new();
            for (take, number) in ops {
                if take {
                    if let Some(base) = pool.take(number) {
                        let end = base + size_class(number).expect("small");
                        prop_assert!(end <= 512);
                        for (other, count) in &held {
                            prop_assert!(end <= *other || base >= other + size_class(*count).expect("small"));
                        }
                        held.push((base, number));
                    }
                } else if !held.is_empty() {
                    let (base, count) = held.swap_remove(number as usize % held.len());
                    pool.put_back(base, count);
                }
                let used: u64 = held.iter().map(|(_, count)| u64::from(size_class(*count).expect("small"))).sum();
                prop_assert_eq!(pool.in_use(), used);
            }
            for (base, count) in held {
                pool.put_back(base, count);
            }
            prop_assert_eq!(pool.by_base.into_iter().collect::<Vec<_>>(), vec![(0, 512)]);
        }
    }

    #[test]
    fn a_released_range_waits_for_its_grace_period() {
        let start = Instant::now();
        let grace = Duration::from_secs(1);
        let mut pool = SlotPool::new(4);
        assert_eq!(pool.take(4), Some(0));
        pool.release(0, 4, start);
        assert!(!pool.expire(start + grace / 2, grace));
        assert_eq!(pool.take(1), None);
        assert!(pool.expire(start + grace, grace));
        assert_eq!(pool.take(1), Some(0));
    }

    #[test]
    fn reserve_refuses_allocated_and_invalid_ranges() {
        let mut pool = SlotPool::new(16);
        assert!(pool.reserve(4, 4));
        assert!(!pool.reserve(4, 4));
        assert!(!pool.reserve(7, 1));
        assert!(!pool.reserve(2, 3));
        assert!(!pool.reserve(14, 3));
        assert!(!pool.reserve(u32::MAX, u32::MAX));
        assert!(pool.reserve(8, 8));
        assert_eq!(pool.take(4), Some(0));
        assert_eq!(pool.take(1), None);
    }

    #[test]
    fn the_smallest_free_range_that_fits_is_taken() {
        let mut pool = SlotPool::new(32);
        let [big, gap, small, _end] = [8, 1, 2, 4].map(|count| pool.take(count).expect("room"));
        pool.put_back(big, 8);
        pool.put_back(small, 2);
        assert_eq!(pool.take(2), Some(small));
        assert_eq!(pool.take(3), Some(big));
        let _ = gap;
    }
}
