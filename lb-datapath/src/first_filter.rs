//! The map `FILTER`: bits by which the programs recognize most packets that are not for Sluice
//! (`lb-ebpf/src/filter.rs`).
//!
//! A bit is set before the entry that needs it is written. Removal of an entry clears no bit:
//! connections may still need it. [`Filter::tidy`] finds the bits that no entry and no connection
//! needs, and clears those that were not needed the last time either. In between, programs that
//! have read a removed entry have ended, and the connections that they have opened are found.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use ipnet::IpNet;
use lb_common::family::{V4, V6};
use lb_common::filter::{Filtered, LINES, Position, node_port};
use lb_common::layout::FilterLine;

use crate::apply::map_name::{MapName, TableError};
use crate::apply::tables::ServiceAddress;
use crate::handles::MapHandles;
use crate::table::ArrayTable;

/// [`Filter::tidy`] compares so many lines before another thread can set bits: some microseconds.
const AT_ONCE: usize = 512;

/// What needs a bit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mark {
    /// An endpoint: its replies.
    Endpoint(SocketAddr),
    /// An address of Services.
    Service(IpAddr),
    /// A port that a Service has at all addresses of this node.
    NodePort { port: u16, protocol: u8 },
    /// A ServiceCIDR.
    Network(IpNet),
}

impl Mark {
    /// Returns the mark of a service entry that is found by its port alone.
    pub fn of_node_port(entry: ServiceAddress) -> Option<Self> {
        let ServiceAddress { ip, port, protocol } = entry;
        ip.is_unspecified().then_some(Self::NodePort { port, protocol })
    }

    /// Calls `visit` with the place of each bit.
    pub fn for_each(self, mut visit: impl FnMut(Position)) {
        match self {
            Self::Endpoint(SocketAddr::V4(at)) => visit(V4::spread(at.ip().octets()).endpoint(at.port())),
            Self::Endpoint(SocketAddr::V6(at)) => visit(V6::spread(at.ip().octets()).endpoint(at.port())),
            Self::Service(IpAddr::V4(ip)) => visit(V4::spread(ip.octets()).service()),
            Self::Service(IpAddr::V6(ip)) => visit(V6::spread(ip.octets()).service()),
            Self::NodePort { port, protocol } => visit(node_port(port, protocol)),
            Self::Network(IpNet::V4(network)) => {
                let first = u32::from(network.network());
                let shift = 32 - V4::NETWORK_BITS;
                let count = 1_u32 << V4::NETWORK_BITS.saturating_sub(network.prefix_len());
                (0..count).for_each(|n| visit(V4::service_network((first | n << shift).to_be_bytes())));
            }
            // It has too many networks of the size that has a bit.
            Self::Network(IpNet::V6(network)) if network.prefix_len() < 48 => Position::all().for_each(visit),
            Self::Network(IpNet::V6(network)) => {
                let first = u128::from(network.network());
                let shift = 128 - V6::NETWORK_BITS;
                let count = 1_u128 << V6::NETWORK_BITS.saturating_sub(network.prefix_len());
                (0..count).for_each(|n| visit(V6::service_network((first | n << shift).to_be_bytes())));
            }
        }
    }
}

/// The time between two searches for bits that nothing needs if no entry was removed: connections
/// may need a bit longer than its entry exists.
const CHECK_PERIOD: Duration = Duration::from_secs(300);

/// The bits in the map.
#[derive(Debug)]
pub struct Filter {
    lines: ArrayTable<FilterLine>,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    /// The bits that this process has read and set. Empty: not read yet.
    bits: Vec<FilterLine>,
    /// The bits that were not needed when [`Filter::tidy`] last ran, nor since. Empty: none.
    unneeded: Vec<FilterLine>,
    /// An entry was removed since [`Filter::begin_search`] was called.
    removed: bool,
    /// When [`Filter::tidy`] last ran.
    tidied: Option<Instant>,
}

/// The result of [`Filter::tidy`].
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Tidied {
    /// Bits that were missing: another program has added an entry that needs them.
    pub set: usize,
    pub cleared: usize,
    /// Bits that are cleared the next time if nothing needs them until then.
    pub unneeded: usize,
}

/// A line without bits.
pub const EMPTY: FilterLine = FilterLine { words: [0; 8] };

impl Filter {
    pub fn open(handles: &MapHandles) -> io::Result<Arc<Self>> {
        let lines: ArrayTable<FilterLine> = handles.array(MapName::FILTER)?;
        let state = State { bits: Vec::new(), unneeded: Vec::new(), removed: false, tidied: None };
        Ok(Arc::new(Self { lines, state: Mutex::new(state) }))
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns the state after the bits were read from the map. The first call reads them: a
    /// process that only reads other maps does not need them.
    fn state_with_bits(&self) -> Result<MutexGuard<'_, State>, TableError> {
        let mut state = self.state();
        if state.bits.is_empty() {
            state.bits = (0..LINES as u32).map(|line| self.lines.read(line)).collect::<Result<_, _>>()?;
        }
        Ok(state)
    }

    /// Sets the bits of something that is about to be written to another map.
    pub fn mark(&self, mark: Mark) -> Result<(), TableError> {
        let state = &mut *self.state_with_bits()?;
        let mut result = Ok(());
        mark.for_each(|position| {
            let index = position.line as usize;
            if let Some(line) = state.unneeded.get_mut(index) {
                position.clear(line);
            }
            if result.is_ok() && position.set(&mut state.bits[index]) {
                result = self.lines.write(position.line, state.bits[index]);
            }
        });
        result
    }

    /// Notes that an entry was removed: [`Filter::tidy`] may find bits that nothing needs.
    pub fn note_removal(&self) {
        self.state().removed = true;
    }

    /// Call this before searching for what needs bits: an entry that is removed during the search
    /// may have been found.
    pub fn begin_search(&self) {
        self.state().removed = false;
    }

    /// Returns whether it is time for [`Filter::tidy`]: there may be bits that nothing needs.
    pub fn is_due(&self, now: Instant) -> bool {
        let state = self.state();
        let is_recent =
            state.tidied.is_some_and(|tidied| now.saturating_duration_since(tidied) < CHECK_PERIOD);
        state.removed || !state.unneeded.is_empty() || !is_recent
    }

    /// Writes the lines again that another program has changed. Returns their number.
    pub fn repair(&self) -> Result<usize, TableError> {
        let mut repaired = 0;
        for (number, bits) in (0..).zip(&self.state_with_bits()?.bits) {
            if self.lines.read(number)? != *bits {
                self.lines.write(number, *bits)?;
                repaired += 1;
            }
        }
        Ok(repaired)
    }

    /// Sets bits, and clears none.
    pub fn add(&self, needed: &[FilterLine]) -> Result<(), TableError> {
        for ((number, bits), needed) in (0..).zip(&mut self.state_with_bits()?.bits).zip(needed) {
            let old = *bits;
            bits.words.iter_mut().zip(needed.words).for_each(|(word, needed)| *word |= needed);
            if *bits != old {
                self.lines.write(number, *bits)?;
            }
        }
        Ok(())
    }

    /// Sets all bits that are needed, and clears those that were not needed the last time either.
    /// The documentation of this module states what must happen between two calls.
    ///
    /// Another thread may call [`Filter::mark`] at the same time: it waits for some of the lines
    /// only. `needed` may have been found before that call. Then the bit is not cleared, because
    /// the call has removed it from the bits that were not needed the last time.
    pub fn tidy(&self, needed: &[FilterLine]) -> Result<Tidied, TableError> {
        let mut tidied = Tidied::default();
        for (part, needed) in needed.chunks(AT_ONCE).enumerate() {
            self.tidy_part(part * AT_ONCE, needed, &mut tidied)?;
        }
        let mut state = self.state();
        state.tidied = Some(Instant::now());
        if tidied.unneeded == 0 {
            state.unneeded = Vec::new();
        }
        Ok(tidied)
    }

    fn tidy_part(&self, first: usize, needed: &[FilterLine], tidied: &mut Tidied) -> Result<(), TableError> {
        let state = &mut *self.state_with_bits()?;
        state.unneeded.resize(LINES, EMPTY);
        for (number, needed) in (first..).zip(needed) {
            let old = state.bits[number];
            let (bits, unneeded) = (&mut state.bits[number], &mut state.unneeded[number]);
            for word in 0..old.words.len() {
                let surplus = old.words[word] & !needed.words[word];
                let clear = surplus & unneeded.words[word];
                bits.words[word] = (old.words[word] | needed.words[word]) & !clear;
                unneeded.words[word] = surplus & !clear;
                tidied.set += (needed.words[word] & !old.words[word]).count_ones() as usize;
                tidied.cleared += clear.count_ones() as usize;
                tidied.unneeded += (surplus & !clear).count_ones() as usize;
            }
            if *bits != old {
                self.lines.write(number as u32, *bits)?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    fn count(mark: Mark) -> usize {
        let mut positions = HashSet::new();
        mark.for_each(|position| {
            positions.insert(position);
        });
        positions.len()
    }

    #[test]
    fn a_network_has_the_bits_of_the_networks_in_it() {
        let network = |text: &str| Mark::Network(text.parse().unwrap());
        assert_eq!(count(network("10.96.0.0/12")), 16);
        assert_eq!(count(network("10.96.0.0/16")), 1);
        assert_eq!(count(network("10.96.7.0/24")), 1);
        assert_eq!(count(network("fd00:10:96::/112")), 1);
        assert_eq!(count(network("fd00:10:96::/60")), 16);
        let mut inside = false;
        network("10.96.0.0/12")
            .for_each(|position| inside |= position == V4::service_network([10, 111, 2, 3]));
        assert!(inside);
        inside = false;
        network("fd00:10:96::/60").for_each(|position| {
            inside |=
                position == V6::service_network([0xfd, 0, 0, 0x10, 0, 0x96, 0, 15, 0, 0, 0, 0, 0, 0, 0, 1]);
        });
        assert!(inside);
    }

    #[test]
    fn a_network_with_too_many_networks_has_all_bits() {
        assert_eq!(count(Mark::Network("fd00::/8".parse().unwrap())), LINES * 512);
    }
}
