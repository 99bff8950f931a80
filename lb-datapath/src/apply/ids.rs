//! Allocates ids of services and backends. Map entries and flows refer to these ids.
//!
//! A flow, or a running program, can still refer to an id after its map entry was removed.
//! Therefore a released id is reused only after the grace period is over, and after a sweep of the
//! flows that began later has not found this id.

use std::collections::{BTreeSet, HashSet};
use std::time::{Duration, Instant};

/// Allocates ids in `1..end`. It takes the lowest free id, so that ids stay small. Id 0 means
/// "none" and is never allocated.
#[derive(Debug)]
pub struct IdPool {
    end: u32,
    /// All ids from here on are free.
    next: u32,
    /// The free ids below `next`.
    free: BTreeSet<u32>,
    /// The released ids, with the time of their release.
    released: Vec<(Instant, u32)>,
}

impl IdPool {
    /// Returns a pool in which the ids in `used` are allocated, and those in `referenced` are
    /// released at `now` unless they are used. Ids outside `1..end` are ignored.
    pub fn adopt(end: u32, used: &HashSet<u32>, referenced: &HashSet<u32>, now: Instant) -> Self {
        let valid = |id: &&u32| (1..end).contains(*id);
        let next = used.union(referenced).filter(valid).max().map_or(1, |highest| highest + 1);
        let free = (1..next).filter(|id| !used.contains(id) && !referenced.contains(id)).collect();
        let released = referenced.difference(used).filter(valid).map(|id| (now, *id)).collect();
        Self { end, next, free, released }
    }

    /// Allocates an id.
    pub fn take(&mut self) -> Option<u32> {
        self.free.pop_first().or_else(|| {
            let id = (self.next < self.end).then_some(self.next)?;
            self.next += 1;
            Some(id)
        })
    }

    /// Frees an id that was never written to a map.
    pub fn put_back(&mut self, id: u32) {
        let new = self.free.insert(id);
        debug_assert!(new && id < self.next, "id {id} is freed twice");
    }

    /// Releases an id to which flows may refer.
    pub fn release(&mut self, id: u32, now: Instant) {
        self.released.push((now, id));
    }

    /// Frees the ids that were released at or before `before` and are not in `referenced`. Returns
    /// whether there were any.
    pub fn free_unreferenced(&mut self, before: Option<Instant>, referenced: &HashSet<u32>) -> bool {
        let Some(before) = before else { return false };
        let free = &mut self.free;
        let count = self.released.len();
        self.released.retain(|(since, id)| {
            let keep = *since > before || referenced.contains(id);
            if !keep {
                free.insert(*id);
            }
            keep
        });
        self.released.len() < count
    }

    /// Adds free ids at the end, up to a larger end.
    pub fn extend(&mut self, end: u32) {
        self.end = self.end.max(end);
    }

    /// Returns whether ids wait for a sweep of the flows.
    #[cfg(test)]
    pub fn has_released(&self) -> bool {
        !self.released.is_empty()
    }

    /// Returns the number of allocated ids. Released ids do not count.
    pub fn in_use(&self) -> usize {
        self.next as usize - 1 - self.free.len() - self.released.len()
    }
}

/// Returns the time `grace` before `started`. Running programs may still use ids that were released
/// later.
pub fn grace_start(started: Instant, grace: Duration) -> Option<Instant> {
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
    fn the_lowest_free_id_is_taken_and_never_zero() {
        let now = Instant::now();
        let mut pool = IdPool::adopt(4, &set(&[]), &set(&[]), now);
        assert_eq!([pool.take(), pool.take(), pool.take(), pool.take()], [Some(1), Some(2), Some(3), None]);
        pool.put_back(2);
        assert_eq!((pool.take(), pool.take()), (Some(2), None));
    }

    #[test]
    fn a_released_id_waits_for_the_grace_period_and_for_its_flows() {
        let start = Instant::now();
        let mut pool = IdPool::adopt(2, &set(&[]), &set(&[]), start);
        assert_eq!(pool.take(), Some(1));
        pool.release(1, start);
        let too_early = grace_start(start + GRACE / 2, GRACE);
        assert!(
            !pool.free_unreferenced(too_early, &set(&[])),
            "a sweep within the grace period proves nothing"
        );
        let later = grace_start(start + 2 * GRACE, GRACE);
        assert!(!pool.free_unreferenced(later, &set(&[1])), "a flow still refers to it");
        assert_eq!(pool.take(), None);
        assert!(pool.free_unreferenced(later, &set(&[])));
        assert_eq!(pool.take(), Some(1));
    }

    #[test]
    fn adopts_used_and_referenced_ids() {
        let start = Instant::now();
        let mut pool = IdPool::adopt(10, &set(&[2, 5, 99]), &set(&[2, 3, 0]), start);
        assert_eq!(pool.in_use(), 2);
        assert_eq!([pool.take(), pool.take(), pool.take()], [Some(1), Some(4), Some(6)]);
        assert!(pool.free_unreferenced(grace_start(start + GRACE, GRACE), &set(&[])));
        assert_eq!(pool.take(), Some(3));
    }
}
