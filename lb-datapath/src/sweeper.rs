//! Reads the whole flow table, and ends connections, for a thread that does only this.

use std::collections::BTreeSet;
use std::io;
use std::os::fd::{AsFd as _, OwnedFd};
use std::sync::Arc;
use std::time::Instant;

use lb_model::PerFamily;

use crate::first_filter::{Filter, Tidied};
use crate::first_filter_needs;
use crate::flows::{self, AgedFlow, FlowEntry, FlowUsage};
use crate::handles::MapHandles;
use crate::health;
use crate::inspect::AgentMaps;
use crate::loads::{self, DrainingEndpoints};
use crate::overloaded;
use crate::port_shortage;
use crate::programs::{Programs, SWEEP};
use crate::sys;

/// The greatest number of connections that one call of [`Sweeper::cut_connections`] ends.
const MOST_CUT: usize = 4096;

/// The flow table and the maps that are compared with it. The cost of nearly every method is
/// proportional to the size of a map.
///
/// Programs use the maps at the same time, and another thread may write the maps of Services. No
/// method may run while the maps are replaced ([`crate::Datapath::move_to`]); after that, take a
/// new `Sweeper`.
#[derive(Debug)]
pub struct Sweeper {
    maps: MapHandles,
    filter: Arc<Filter>,
    /// The program that ends connections. `None` if the kernel refuses it.
    sweep: Option<OwnedFd>,
}

impl Sweeper {
    pub(crate) fn new(programs: &Programs, maps: &MapHandles, filter: &Arc<Filter>) -> io::Result<Self> {
        let sweep = programs.get(SWEEP).map(|program| program.try_clone_to_owned()).transpose()?;
        Ok(Self { maps: maps.clone(), filter: Arc::clone(filter), sweep })
    }

    /// Returns the maps, for reading.
    pub fn maps(&self) -> AgentMaps {
        AgentMaps::of(&self.maps)
    }

    /// Reads the flow table and collects the ids to which it refers. Ends connections that are over
    /// and whose records no program has taken yet, so that they do not count any more. `now_ns` is
    /// the time of [`crate::monotonic_ns`].
    pub fn flow_usage(&self, now_ns: u64) -> io::Result<FlowUsage> {
        let mut usage = flows::usage(&self.maps, now_ns)?;
        // Without the program, the counts fall when the records are used again.
        self.sweep(&usage.over)?;
        flows::add_counted(&self.maps, &mut usage)?;
        Ok(usage)
    }

    /// Removes the entries of removed endpoints that the programs have written. Call this before
    /// the ids of endpoints become free.
    pub fn forget_gone_endpoints(&self) -> io::Result<()> {
        port_shortage::remove_gone(&self.maps)?;
        overloaded::tidy(&self.maps)?;
        health::tidy(&self.maps, sys::monotonic_ns())
    }

    /// Sets the bits of the first filter that entries and connections need, and clears those that
    /// they did not need the last time either. At least a second must pass between two calls while
    /// programs are attached. `now_ns` is the time of [`crate::monotonic_ns`].
    pub fn tidy_filter(&self, now_ns: u64) -> io::Result<Tidied> {
        self.filter.begin_search();
        let needed = first_filter_needs::find(&self.maps, &self.filter, now_ns)
            .inspect_err(|_| self.filter.note_removal())?;
        Ok(self.filter.tidy(&needed)?)
    }

    /// Returns whether it is time for [`Sweeper::tidy_filter`].
    pub fn is_filter_due(&self, now: Instant) -> bool {
        self.filter.is_due(now)
    }

    /// Returns the endpoints that drain.
    pub fn draining_endpoints(&self) -> io::Result<DrainingEndpoints> {
        loads::draining(&self.maps)
    }

    /// Ends connections in the flow table to those of these endpoints that drain, at most
    /// [`MOST_CUT`]. Returns their number. The node or the other side answers the next packet of
    /// each side with a reset.
    pub fn cut_connections(&self, backends: &PerFamily<BTreeSet<u32>>) -> io::Result<usize> {
        self.sweep(&flows::of_draining(&self.maps, backends, (sys::monotonic_ns(), MOST_CUT))?)
    }

    /// Calls `visit` with each established connection in the flow table.
    pub fn for_each_established(&self, mut visit: impl FnMut(FlowEntry, AgedFlow)) -> io::Result<()> {
        flows::for_each_established(&self.maps, sys::monotonic_ns(), &mut visit)
    }

    /// Ends those of the connections that are still established, because of their age. Returns
    /// their number. What follows is the same as after [`Sweeper::cut_connections`].
    pub fn end_aged(&self, flows: &[AgedFlow]) -> io::Result<usize> {
        self.sweep(&flows::still_established(&self.maps, flows, sys::monotonic_ns())?)
    }

    /// Passes connections to `lb_sweep`, which ends them. Returns their number, or 0 without the
    /// program.
    fn sweep(&self, words: &[u64]) -> io::Result<usize> {
        let Some(sweep) = &self.sweep else { return Ok(0) };
        for packet in flows::sweep_packets(words) {
            sys::test_run(sweep.as_fd(), &packet, &[], 1)?;
        }
        Ok(words.len())
    }
}
