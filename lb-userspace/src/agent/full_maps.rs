//! Maps that are nearly full: each is reported once.

use std::collections::BTreeSet;

use lb_datapath::apply::MapUsage;

/// The maps that were reported.
#[derive(Debug, Default)]
pub struct FullMaps(BTreeSet<&'static str>);

/// A map that was reported is reported again only after its usage fell below this, in percent. So a
/// usage that varies a little does not repeat the message.
const AGAIN_BELOW_PERCENT: u64 = 70;

impl FullMaps {
    /// Returns the maps that have become nearly full.
    pub fn update(&mut self, usage: &[MapUsage]) -> Vec<MapUsage> {
        for map in usage.iter().filter(|map| map.percent() < AGAIN_BELOW_PERCENT) {
            self.0.remove(map.map);
        }
        usage.iter().filter(|map| map.is_nearly_full() && self.0.insert(map.map)).copied().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_map_is_reported_once_until_it_has_room_again() {
        let mut full = FullMaps::default();
        let usage = |flows, slots| {
            let map = |map, entries, option| MapUsage { map, entries, capacity: 1000, option };
            [map("FLOWS_V4", flows, "max-flows"), map("SLOTS", slots, "max-slots")]
        };
        let mut reported = |flows, slots| {
            let maps = full.update(&usage(flows, slots)).into_iter();
            maps.map(|usage| (usage.map, usage.percent())).collect::<Vec<_>>()
        };
        assert_eq!(reported(799, 0), []);
        assert_eq!(reported(800, 0), [("FLOWS_V4", 80)]);
        assert_eq!(reported(999, 1000), [("SLOTS", 100)]);
        assert_eq!(reported(700, 1000), []);
        assert_eq!(reported(800, 1000), []);
        assert_eq!(reported(699, 1000), []);
        assert_eq!(reported(850, 1000), [("FLOWS_V4", 85)]);
    }
}
