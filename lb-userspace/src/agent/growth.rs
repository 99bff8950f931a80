//! When maps of Services are replaced by larger ones, and the thread that makes these.

use std::future::pending;
use std::io;
use std::thread;
use std::time::{Duration, Instant};

use lb_datapath::apply::Demand;
use lb_datapath::{LoadError, LoadOptions, MapSizes, NewGeneration, Pins};
use tokio::sync::oneshot;
use tracing::debug;

/// The pause after the first replacement that failed. It doubles with each further one.
const FIRST_PAUSE: Duration = Duration::from_secs(10);
const LONGEST_PAUSE: Duration = Duration::from_secs(600);

/// A demand that rises all the time is waited for no longer than this.
const LONGEST_RISE: Duration = Duration::from_secs(10);

/// The thread loads programs for some seconds. After this time it is stuck.
const LONGEST_LOAD: Duration = Duration::from_secs(300);

/// Chooses the sizes and the time of each attempt, and loads programs for larger maps.
pub struct Growth {
    /// The memory of all maps in bytes up to which maps grow.
    pub most: usize,
    /// The time of the next attempt, and the pause before it. `None` if the last one succeeded.
    failed: Option<(Instant, Duration)>,
    /// The demand of the last tick, and since when maps are too small for it. `None` if they are
    /// not.
    rising: Option<(Demand, Instant)>,
    loading: Option<Loading>,
}

/// The thread that makes larger maps, and loads programs.
struct Loading {
    started: Instant,
    result: oneshot::Receiver<Result<NewGeneration, LoadError>>,
}

impl Growth {
    pub fn new(most: usize) -> Self {
        Self { most, failed: None, rising: None, loading: None }
    }

    /// Returns larger sizes, if maps need them and it is time for an attempt.
    pub fn wanted(&self, sizes: MapSizes, demand: &Demand, now: Instant) -> Option<MapSizes> {
        let wanted = sizes.grown_for(demand, self.most);
        let is_early = self.failed.is_some_and(|(next, _)| now < next);
        (wanted != sizes && !is_early && self.loading.is_none()).then_some(wanted)
    }

    /// Returns whether maps are about to become larger.
    pub fn is_under_way(&self, now: Instant) -> bool {
        self.rising.is_some() || (self.loading.is_some() && !self.is_stuck(now))
    }

    /// Returns whether maps are about to become larger, or will be for this demand.
    pub fn is_expected(&self, sizes: MapSizes, demand: &Demand, now: Instant) -> bool {
        self.is_under_way(now) || self.wanted(sizes, demand, now).is_some()
    }

    /// Returns as [`Growth::wanted`], but waits until the demand does not rise any more: Services
    /// come before their endpoints, and maps are to grow once for both. To be called about once a
    /// second.
    pub fn settled(&mut self, sizes: MapSizes, demand: &Demand, now: Instant) -> Option<MapSizes> {
        let wanted = self.wanted(sizes, demand, now);
        let before = std::mem::take(&mut self.rising);
        wanted?;
        let since = before.map_or(now, |(_, since)| since);
        if before.is_some_and(|(before, _)| !demand.exceeds(&before)) || now - since >= LONGEST_RISE {
            return wanted;
        }
        self.rising = Some((*demand, since));
        None
    }

    /// Starts the thread that makes maps and loads programs with these options. [`Growth::loaded`]
    /// returns its result. If the agent ends before, the next one removes the maps.
    pub fn load(&mut self, pins: Pins, options: LoadOptions, now: Instant) -> io::Result<()> {
        let (sender, result) = oneshot::channel();
        // Not a thread of the runtime: the runtime would wait for it when the agent is to end.
        thread::Builder::new().name("larger-maps".into()).spawn(move || {
            let loaded = NewGeneration::load(&pins, &options);
            debug!(loaded = loaded.is_ok(), "loaded the programs for larger maps");
            // The receiver is gone when the agent ends.
            let _ = sender.send(loaded);
        })?;
        self.loading = Some(Loading { started: now, result });
        Ok(())
    }

    /// Waits for the thread. Never returns if there is none.
    pub async fn loaded(&mut self) -> Result<NewGeneration, LoadError> {
        let Some(loading) = &mut self.loading else { return pending().await };
        let panicked = |_| {
            let source = io::Error::other("the thread that loads programs has panicked");
            Err(LoadError::Map { map: "of services".into(), source })
        };
        let result = (&mut loading.result).await.unwrap_or_else(panicked);
        self.loading = None;
        result
    }

    /// Returns whether the thread runs for longer than it may need.
    pub fn is_stuck(&self, now: Instant) -> bool {
        let is_late = |loading: &Loading| now.saturating_duration_since(loading.started) > LONGEST_LOAD;
        self.loading.as_ref().is_some_and(is_late)
    }

    pub fn succeeded(&mut self) {
        self.failed = None;
    }

    /// Returns the pause before the next attempt.
    pub fn failed(&mut self, now: Instant) -> Duration {
        let pause = self.failed.map_or(FIRST_PAUSE, |(_, pause)| (pause * 2).min(LONGEST_PAUSE));
        self.failed = Some((now + pause, pause));
        pause
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failed_attempt_is_repeated_less_and_less_often() {
        let start = Instant::now();
        let sizes = MapSizes::same(16);
        let demand = Demand { services: 16, ..Demand::default() };
        let mut growth = Growth::new(usize::MAX);
        let larger = Some(MapSizes { max_services: 32, ..sizes });
        assert_eq!(growth.wanted(sizes, &Demand::default(), start), None);
        assert_eq!(growth.wanted(sizes, &demand, start), larger);
        let mut now = start;
        let pauses = [10, 20, 40, 80, 160, 320, 600, 600].map(Duration::from_secs);
        for pause in pauses {
            assert_eq!(growth.failed(now), pause);
            assert_eq!(growth.wanted(sizes, &demand, now + pause / 2), None);
            now += pause;
            assert_eq!(growth.wanted(sizes, &demand, now), larger);
        }
        growth.succeeded();
        assert_eq!(growth.wanted(sizes, &demand, now), larger);
        assert_eq!(growth.failed(now), pauses[0]);
    }

    #[test]
    fn maps_grow_when_the_demand_has_settled() {
        let start = Instant::now();
        let sizes = MapSizes::same(16);
        let mut growth = Growth::new(usize::MAX);
        let mut at = |second, services, backends| {
            let demand = Demand { services, backends, ..Demand::default() };
            let now = start + Duration::from_secs(second);
            let wanted = growth.settled(sizes, &demand, now);
            let waits = sizes.grown_for(&demand, usize::MAX) != sizes && wanted.is_none();
            assert_eq!(growth.is_under_way(now), waits);
            wanted.map(|wanted| (wanted.max_services, wanted.max_backends))
        };
        assert_eq!(at(0, 8, 0), None, "there is room");
        assert_eq!(at(1, 20, 0), None, "the first tick");
        assert_eq!(at(2, 20, 12), None, "endpoints follow");
        assert_eq!(at(3, 20, 40), None, "more endpoints follow");
        assert_eq!(at(4, 20, 40), Some((64, 128)));
        for second in 10..20 {
            assert_eq!(at(second, 20 + second, 0), None, "it rises");
        }
        assert_eq!(at(20, 40, 0), Some((128, 16)), "it has risen for too long");
        assert_eq!(at(30, 20, 0), None);
        assert_eq!(at(31, 8, 0), None, "there is room again");
        assert_eq!(at(32, 20, 0), None, "it begins anew");
        assert_eq!(at(33, 19, 0), Some((64, 16)), "it falls");
    }

    #[test]
    fn there_is_one_growth_at_a_time() {
        let now = Instant::now();
        let demand = Demand { services: 16, ..Demand::default() };
        let mut growth = Growth::new(usize::MAX);
        let (sender, result) = oneshot::channel();
        growth.loading = Some(Loading { started: now, result });
        assert_eq!(growth.wanted(MapSizes::same(16), &demand, now), None);
        assert!(growth.is_under_way(now));
        let late = now + LONGEST_LOAD + Duration::from_secs(1);
        assert!(!growth.is_stuck(now + LONGEST_LOAD) && growth.is_under_way(now + LONGEST_LOAD));
        assert!(growth.is_stuck(late) && !growth.is_under_way(late));
        assert!(!growth.is_expected(MapSizes::same(16), &demand, late));

        drop(sender);
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        let error = runtime.block_on(growth.loaded()).err().unwrap();
        assert!(error.to_string().contains("has panicked"), "{error}");
        assert!(!growth.is_stuck(now + 2 * LONGEST_LOAD));
        assert!(growth.wanted(MapSizes::same(16), &demand, now).is_some());
    }
}
