//! Numbers for services and backends, which stand in map entries and in flows.
//!
//! A number that was published may still be named by a flow (or by a packet that is just being handled) long after its
//! entry is gone. It is given out again only when both are excluded: the grace period has passed, and a sweep of the
//! flow tables that began after it found no flow with that number.

use std::collections::{BTreeSet, HashSet};
use std::time::{Duration, Instant};

/// Numbers `1..end`, the lowest free one first, so that they stay small. 0 is never given out: it means "none".
#[derive(Debug)]
pub struct IdPool {
    end: u32,
    /// Every number from here on is free.
    next: u32,
    /// Free numbers below `next`.
    free: BTreeSet<u32>,
    /// Withdrawn numbers, and when.
    retired: Vec<(Instant, u32)>,
}

impl IdPool {
    /// A pool where the numbers of `used` are given out already and those of `named` are retired at `now`, unless used.
    /// Numbers outside `1..end` are ignored.
    pub fn adopt(end: u32, used: &HashSet<u32>, named: &HashSet<u32>, now: Instant) -> Self {
        let valid = |id: &&u32| (1..end).contains(*id);
        let next = used.union(named).filter(valid).max().map_or(1, |highest| highest + 1);
        let free = (1..next).filter(|id| !used.contains(id) && !named.contains(id)).collect();
        let retired = named.difference(used).filter(valid).map(|id| (now, *id)).collect();
        Self { end, next, free, retired }
    }

    pub fn take(&mut self) -> Option<u32> {
        self.free.pop_first().or_else(|| {
            let id = (self.next < self.end).then_some(self.next)?;
            self.next += 1;
            Some(id)
        })
    }

    /// Gives back a number that was never published: it is free at once.
    pub fn put_back(&mut self, id: u32) {
        let new = self.free.insert(id);
        debug_assert!(new && id < self.next, "id {id} given back twice");
    }

    /// Gives back a number that flows may name.
    pub fn retire(&mut self, id: u32, now: Instant) {
        self.retired.push((now, id));
    }

    /// Frees what was retired at or before `before` and is not in `named`. Returns whether anything was freed.
    pub fn swept(&mut self, before: Option<Instant>, named: &HashSet<u32>) -> bool {
        let Some(before) = before else { return false };
        let free = &mut self.free;
        let held = self.retired.len();
        self.retired.retain(|(since, id)| {
            let keep = *since > before || named.contains(id);
            if !keep {
                free.insert(*id);
            }
            keep
        });
        self.retired.len() < held
    }

    pub fn has_retired(&self) -> bool {
        !self.retired.is_empty()
    }

    /// How many numbers are given out, the retired ones not counted.
    pub fn in_use(&self) -> usize {
        self.next as usize - 1 - self.free.len() - self.retired.len()
    }
}

/// The moment `grace` before `started`: what was withdrawn later may still be in the hands of a running program.
pub fn settled_before(started: Instant, grace: Duration) -> Option<Instant> {
    started.checked_sub(grace)
}

#[cfg(test)]
mod tests {
    use super::*;

    const GRACE: Duration = Duration::from_secs(1);

    fn set(ids: &[u32]) -> HashSet<u32> {
        ids.iter().copied().collect()
    }

    #[test]
    fn lowest_free_first_and_never_zero() {
        let now = Instant::now();
        let mut pool = IdPool::adopt(4, &set(&[]), &set(&[]), now);
        assert_eq!([pool.take(), pool.take(), pool.take(), pool.take()], [Some(1), Some(2), Some(3), None]);
        pool.put_back(2);
        assert_eq!((pool.take(), pool.take()), (Some(2), None));
    }

    #[test]
    fn a_retired_id_waits_for_grace_and_for_its_flows() {
        let start = Instant::now();
        let mut pool = IdPool::adopt(2, &set(&[]), &set(&[]), start);
        assert_eq!(pool.take(), Some(1));
        pool.retire(1, start);
        let too_early = settled_before(start + GRACE / 2, GRACE);
        assert!(!pool.swept(too_early, &set(&[])), "a sweep within the grace period proves nothing");
        let later = settled_before(start + 2 * GRACE, GRACE);
        assert!(!pool.swept(later, &set(&[1])), "a flow still names it");
        assert_eq!(pool.take(), None);
        assert!(pool.swept(later, &set(&[])));
        assert_eq!(pool.take(), Some(1));
    }

    #[test]
    fn adopts_used_and_named_ids() {
        let start = Instant::now();
        let mut pool = IdPool::adopt(10, &set(&[2, 5, 99]), &set(&[2, 3, 0]), start);
        assert_eq!(pool.in_use(), 2);
        assert_eq!([pool.take(), pool.take(), pool.take()], [Some(1), Some(4), Some(6)]);
        assert!(pool.swept(settled_before(start + GRACE, GRACE), &set(&[])));
        assert_eq!(pool.take(), Some(3));
    }
}
