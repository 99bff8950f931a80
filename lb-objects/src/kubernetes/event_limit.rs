//! Limits the number of Events about each object, with the rules and numbers of the spam filter in
//! client-go (`EventCorrelator` in tools/record/events_cache.go).
//!
//! Unlike client-go it does not count repetitions in the Event: thousands of agents would update
//! one counter.

use std::collections::HashMap;
use std::time::{Duration, Instant};

/// The number of Events about one object that may be written at once (`defaultSpamBurst`).
const BURST: u32 = 25;
/// One more Event about the object may be written after this time (`defaultSpamQPS`).
const REFILL: Duration = Duration::from_secs(300);
/// The number of different Events with the same object and reason that are written individually
/// (`defaultAggregateMaxEvents`). One combined Event follows.
const SIMILAR_MAX: usize = 10;
/// The count of similar Events restarts after this time without one
/// (`defaultAggregateIntervalInSeconds`).
const SIMILAR_WINDOW: Duration = Duration::from_secs(600);
/// The number of objects whose Events are limited (`maxLruCacheEntries`).
const OBJECTS_MAX: usize = 4096;
/// Objects without recent Events are searched at most this often when the table is full.
const PRUNE_INTERVAL: Duration = Duration::from_secs(60);

/// The decision about an Event.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Admission {
    Individual,
    /// The Event stands for this one and for all similar ones that follow.
    Combined,
    Suppressed,
}

/// The state of the limits. Its size is bounded; time is an argument.
#[derive(Debug, Default)]
pub(super) struct EventLimit {
    /// By kind, namespace and name.
    objects: HashMap<String, ObjectLimit>,
    pruned: Option<Instant>,
}

#[derive(Debug)]
struct ObjectLimit {
    /// The time at which the token bucket is full again. Each Event takes one token.
    full_at: Instant,
    /// The recent Events by reason.
    similar: HashMap<String, Similar>,
}

#[derive(Debug)]
struct Similar {
    last: Instant,
    /// Digests of the different notes, at most [`SIMILAR_MAX`].
    notes: Vec<u64>,
    combined: bool,
}

impl EventLimit {
    /// Decides about an Event. `object` identifies the object; `note` is a digest of the text.
    pub fn admit(&mut self, object: &str, reason: &str, note: u64, now: Instant) -> Admission {
        if !self.objects.contains_key(object) {
            self.prune(now);
            if self.objects.len() >= OBJECTS_MAX {
                // The queue and the pace of the recorder still limit the Events.
                return Admission::Individual;
            }
        }
        let limit = self
            .objects
            .entry(object.to_owned())
            .or_insert_with(|| ObjectLimit { full_at: now, similar: HashMap::new() });
        limit.admit(reason, note, now)
    }

    /// Removes the objects without recent Events if the table is full.
    fn prune(&mut self, now: Instant) {
        let due = self.pruned.is_none_or(|pruned| now >= pruned + PRUNE_INTERVAL);
        if self.objects.len() >= OBJECTS_MAX && due {
            self.pruned = Some(now);
            self.objects.retain(|_, limit| limit.is_recent(now));
        }
    }
}

impl ObjectLimit {
    fn admit(&mut self, reason: &str, note: u64, now: Instant) -> Admission {
        self.similar.retain(|_, similar| similar.is_recent(now));
        let similar = self.similar.entry(reason.to_owned()).or_insert_with(|| Similar {
            last: now,
            notes: Vec::new(),
            combined: false,
        });
        similar.last = now;
        let repeated = similar.notes.contains(&note);
        let admission = match similar.notes.len() {
            _ if repeated => Admission::Individual,
            ..SIMILAR_MAX => Admission::Individual,
            _ if !similar.combined => Admission::Combined,
            _ => return Admission::Suppressed,
        };
        if self.full_at.saturating_duration_since(now) > REFILL * (BURST - 1) {
            return Admission::Suppressed;
        }
        self.full_at = self.full_at.max(now) + REFILL;
        match admission {
            Admission::Combined => similar.combined = true,
            _ if !repeated => similar.notes.push(note),
            _ => {}
        }
        admission
    }

    fn is_recent(&self, now: Instant) -> bool {
        self.full_at > now || self.similar.values().any(|similar| similar.is_recent(now))
    }
}

impl Similar {
    fn is_recent(&self, now: Instant) -> bool {
        now < self.last + SIMILAR_WINDOW
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The numbers of individual and combined Events among those with these notes.
    fn admit(
        limit: &mut EventLimit,
        reason: &str,
        notes: std::ops::Range<u64>,
        now: Instant,
    ) -> (usize, usize) {
        let admissions: Vec<_> = notes.map(|note| limit.admit("Service a/b", reason, note, now)).collect();
        let count = |expected| admissions.iter().filter(|admission| **admission == expected).count();
        (count(Admission::Individual), count(Admission::Combined))
    }

    #[test]
    fn similar_events_end_with_one_combined_event() {
        let (mut limit, start) = (EventLimit::default(), Instant::now());
        assert_eq!(admit(&mut limit, "AddressTaken", 0..100, start), (10, 1));
        assert_eq!(admit(&mut limit, "AddressTaken", 100..200, start + SIMILAR_WINDOW / 2), (0, 0));
        // Another reason is counted by itself.
        assert_eq!(admit(&mut limit, "WrongFamily", 0..3, start), (3, 0));
        // Ten minutes without a similar Event.
        assert_eq!(admit(&mut limit, "AddressTaken", 0..5, start + SIMILAR_WINDOW * 2), (5, 0));
    }

    #[test]
    fn a_repeated_event_is_not_a_similar_one() {
        let (mut limit, start) = (EventLimit::default(), Instant::now());
        for _ in 0..BURST {
            assert_eq!(limit.admit("Service a/b", "Missing", 7, start), Admission::Individual);
        }
        assert_eq!(limit.admit("Service a/b", "Missing", 7, start), Admission::Suppressed);
    }

    #[test]
    fn an_object_has_a_burst_of_events_and_then_one_in_five_minutes() {
        let (mut limit, start) = (EventLimit::default(), Instant::now());
        let mut flood = |now| {
            (0..10).map(|reason| admit(&mut limit, &format!("Reason{reason}"), 0..10, now).0).sum::<usize>()
        };
        assert_eq!(flood(start), BURST as usize);
        assert_eq!(flood(start + REFILL - Duration::from_secs(1)), 0);
        assert_eq!(flood(start + REFILL), 1);
        assert_eq!(flood(start + REFILL * 4), 3);
        assert_eq!(flood(start + REFILL * 1000), BURST as usize);
        // Other objects have buckets of their own.
        assert_eq!(limit.admit("Service a/c", "Missing", 0, start + REFILL * 1000), Admission::Individual);
    }

    #[test]
    fn the_table_is_bounded_and_forgets_objects_without_recent_events() {
        let (mut limit, start) = (EventLimit::default(), Instant::now());
        for object in 0..2 * OBJECTS_MAX {
            let admission = limit.admit(&format!("Service a/{object}"), "Missing", 0, start);
            assert_eq!(admission, Admission::Individual);
        }
        assert_eq!(limit.objects.len(), OBJECTS_MAX);
        limit.admit("Service a/late", "Missing", 0, start + SIMILAR_WINDOW);
        assert_eq!(limit.objects.len(), 1);
    }
}
