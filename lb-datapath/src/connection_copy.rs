//! Copies the connections of one family from the tables of an earlier agent, while programs use
//! both.
//!
//! A record of the old table is copied if the index entry of its replies leads to it. Then the new
//! index entries are inserted, first that of replies. From then on, the programs of this generation
//! handle the connection. A pass can be repeated: it leaves out connections that are in the new
//! table already.
//!
//! This code takes free records without the lock of the programs. While the earlier programs open
//! all connections, no program takes records here. Before this changes, [`ConnectionCopy::reserve`]
//! sets records aside for the last passes.

use std::io;
use std::os::fd::{AsFd as _, OwnedFd};
use std::thread;
use std::time::Duration;

use lb_common::layout::{Flow, FlowIndex, FlowKey, FlowTimeouts, counted, direction, flow_phase};
use lb_common::plain::Plain;

use crate::address::MapAddress;
use crate::apply::map_name::{MapName, TableError};
use crate::field_copy::FieldCopy;
use crate::handles::MapHandles;
use crate::loads::Loads;
use crate::own_maps::{OwnMap, PinnedMap};
use crate::raw_map::RawArray;
use crate::sys;
use crate::table::{ArrayTable, Table};

/// The number of records that are set aside for the last passes: connections that the earlier
/// programs open between the last pass before and the moment when they open no more.
const RESERVED: usize = 4096;

/// A table of connections of an earlier agent.
pub struct OldTable {
    records: RawArray,
    record: FieldCopy,
    index: OwnedFd,
    key: FieldCopy,
    entry: FieldCopy,
}

impl OldTable {
    /// Returns `None` if this version cannot read the table.
    pub fn new(records: (&PinnedMap, &OwnMap), index: (PinnedMap, &OwnMap)) -> io::Result<Option<Self>> {
        let same_type = |old: &PinnedMap, own: &OwnMap| old.shape.map_type == own.shape.map_type;
        if !same_type(records.0, records.1) || !same_type(&index.0, index.1) {
            return Ok(None);
        }
        let record = FieldCopy::new(&records.0.value, &records.1.value);
        let key = FieldCopy::new(&index.0.key, &index.1.key);
        let entry = FieldCopy::new(&index.0.value, &index.1.value);
        let (Some(record), Some(key), Some(entry)) = (record, key, entry) else { return Ok(None) };
        let records = RawArray::open(&records.0.fd)?;
        Ok(Some(Self { records, record, index: index.0.fd, key, entry }))
    }

    /// Returns the fields of records that this version cannot keep.
    pub fn lost_fields(&self) -> &[String] {
        &self.record.lost
    }

    fn read<A: MapAddress + PartialEq>(&self, number: u32) -> Option<Flow<A>> {
        value(&self.record.apply(&self.records.read(number)))
    }

    /// Returns, for each record, the generation and the directions whose index entry leads to it.
    fn links<A: MapAddress + PartialEq>(&self) -> io::Result<Vec<IndexEntries>> {
        let mut links = vec![IndexEntries::default(); self.records.capacity() as usize];
        sys::for_each_bytes(self.index.as_fd(), |key, entry| {
            let key: Option<FlowKey<A>> = value(&self.key.apply(key));
            let entry: Option<FlowIndex> = value(&self.entry.apply(entry));
            let (Some(key), Some(entry)) = (key, entry) else { return };
            let Some(flow) =
                (entry.record < self.records.capacity()).then(|| self.read::<A>(entry.record)).flatten()
            else {
                return;
            };
            if flow.generation != entry.generation || !flow.has_tuple(&key, entry.direction) {
                return;
            }
            let link = &mut links[entry.record as usize];
            if link.generation != entry.generation {
                *link = IndexEntries { generation: entry.generation, ..IndexEntries::default() };
            }
            link.request |= entry.direction == direction::REQUEST;
            link.reply |= entry.direction == direction::REPLY;
        })?;
        Ok(links)
    }
}

#[derive(Debug, Clone, Copy, Default)]
struct IndexEntries {
    generation: u16,
    request: bool,
    reply: bool,
}

fn value<T: Plain>(bytes: &[u8]) -> Option<T> {
    sys::values(bytes).next()
}

/// Returns a distance by which all records are visited, evenly spread: a program looks at a few
/// records that follow each other, and should find a free one among them.
///
/// Multiples of a fraction are spread evenly if its continued fraction has small terms only, as the
/// golden ratio has (Knuth, TAOCP 6.4). So this is the best of some distances near the golden
/// section of the table.
fn spread(capacity: u32) -> u32 {
    const RATIO: f64 = 0.618_033_988_749_894_9;
    const CANDIDATES: u32 = 256;
    let first = (f64::from(capacity) * RATIO) as u32;
    let candidates = (first..).take(CANDIDATES as usize).filter(|step| (1..capacity).contains(step));
    candidates.min_by_key(|step| largest_term(capacity, *step)).unwrap_or(1)
}

/// Returns the largest term of the continued fraction of `b / a`, with `a` > `b` > 0. Returns the
/// maximum if the numbers have a common divisor.
fn largest_term(mut a: u32, mut b: u32) -> u32 {
    let mut largest = 0;
    while b > 1 {
        largest = largest.max(a / b);
        (a, b) = (b, a % b);
    }
    if b == 1 { largest.max(a) } else { u32::MAX }
}

/// The result of a pass.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Copied {
    pub connections: usize,
    /// Connections for which the new table has no room.
    pub lost: usize,
    /// Connections that are not over and whose source port programs have given to another one. The
    /// programs that open connections do not know the ports of the earlier table.
    pub displaced: usize,
}

/// Whether the new table has a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Presence {
    Present,
    Absent,
    /// Another connection has its source port.
    Displaced,
}

/// The copy of the connections of one family.
pub struct ConnectionCopy<A> {
    old: OldTable,
    records: ArrayTable<Flow<A>>,
    index: Table<FlowKey<A>, FlowIndex>,
    loads: Loads,
    /// The next record to look at, and the distance to the one after it.
    next: u32,
    step: u32,
    /// The records that are set aside. `None` while no program takes records.
    reserved: Option<Vec<u32>>,
    /// For each record of the old table, the generation of the connection that was copied last, and
    /// when it had been seen. Its packets change only the new record then. When it has ended, the
    /// old record is still that of an open connection. No pass may copy it again.
    copied: Vec<Option<(u16, u64)>>,
}

impl<A: MapAddress + PartialEq> ConnectionCopy<A> {
    pub fn new(old: OldTable, maps: &MapHandles) -> io::Result<Self> {
        let records: ArrayTable<Flow<A>> = maps.array(MapName::FLOWS[A::FAMILY])?;
        let index = maps.table(MapName::FLOW_INDEX[A::FAMILY])?;
        let loads = Loads::open(maps, A::FAMILY)?;
        let step = spread(records.capacity());
        let copied = vec![None; old.records.capacity() as usize];
        Ok(Self { old, records, index, loads, next: 0, step, reserved: None, copied })
    }

    /// Frees the records that an earlier process had set aside and has not freed. Programs hold a
    /// record in this phase only for microseconds.
    pub fn free_abandoned(&self) -> io::Result<()> {
        let claimed = || -> io::Result<Vec<(u32, u16)>> {
            let mut claimed = Vec::new();
            for number in 0..self.records.capacity() {
                let flow = self.records.read(number)?;
                if flow.phase == flow_phase::CLAIMED {
                    claimed.push((number, flow.generation));
                }
            }
            Ok(claimed)
        };
        let first = claimed()?;
        if first.is_empty() {
            return Ok(());
        }
        thread::sleep(Duration::from_millis(50));
        for record in claimed()?.into_iter().filter(|record| first.contains(record)) {
            self.free(record.0)?;
        }
        Ok(())
    }

    /// Copies the connections that have not ended at `now_ns` and are not copied yet.
    pub fn pass(&mut self, now_ns: u64, timeouts: &FlowTimeouts) -> io::Result<Copied> {
        let is_over = |flow: &Flow<A>| flow.is_over(now_ns, timeouts);
        let mut copied = Copied::default();
        let links = self.old.links::<A>()?;
        for (number, link) in (0u32..).zip(links) {
            // Programs insert the entry of replies first. If it is missing, the connection was
            // opened while the index was read: the next pass copies it.
            if !link.reply {
                continue;
            }
            let Some(flow) = self.old.read::<A>(number) else { continue };
            let is_free = flow.phase == flow_phase::FREE || flow.phase == flow_phase::CLAIMED;
            if is_free || flow.generation != link.generation || is_over(&flow) {
                continue;
            }
            let presence = self.presence(&flow, link, is_over)?;
            // The earlier programs see a packet of it again if its client opens a connection from
            // the same port: then there is something new to copy.
            let seen = Some((flow.generation, flow.last_seen_ns));
            if self.copied[number as usize] == seen {
                continue;
            }
            match presence {
                Presence::Present => {}
                Presence::Displaced if flow.state().has_ended() => {}
                Presence::Displaced => copied.displaced += 1,
                Presence::Absent if self.copy(number, &flow, link, is_over)? => {
                    self.copied[number as usize] = seen;
                    copied.connections += 1;
                }
                Presence::Absent => copied.lost += 1,
            }
        }
        Ok(copied)
    }

    /// Returns whether the connection is in the new table. Inserts its second index entry if this
    /// is missing: it was not there when the connection was copied, or an agent was ended. Removes
    /// entries of connections that are over.
    fn presence(
        &self,
        flow: &Flow<A>,
        link: IndexEntries,
        is_over: impl Fn(&Flow<A>) -> bool,
    ) -> io::Result<Presence> {
        let request = self.find(&flow.request_key(), &is_over)?;
        let reply = self.find(&flow.reply_key(), &is_over)?;
        match (request, reply) {
            (Some(_), _) => Ok(Presence::Present),
            (None, None) => Ok(Presence::Absent),
            (None, Some(entry)) => {
                if !self.records.read(entry.record)?.has_tuple(&flow.request_key(), direction::REQUEST) {
                    return Ok(Presence::Displaced);
                }
                if link.request {
                    let entry = FlowIndex { direction: direction::REQUEST, ..entry };
                    self.insert(&flow.request_key(), &entry, &is_over)?;
                }
                Ok(Presence::Present)
            }
        }
    }

    /// Returns the index entry of the connection that has this tuple. Removes the entry of a
    /// connection that is over, unless programs open connections.
    fn find(&self, key: &FlowKey<A>, is_over: impl Fn(&Flow<A>) -> bool) -> io::Result<Option<FlowIndex>> {
        let Some(entry) = self.index.get(key)? else { return Ok(None) };
        let is_current = entry.record < self.records.capacity() && {
            let record = self.records.read(entry.record)?;
            record.generation == entry.generation
                && record.has_tuple(key, entry.direction)
                && (record.phase == flow_phase::CLAIMED || !is_over(&record))
        };
        // Once programs open connections, they may replace the entry before it is removed here.
        if !is_current && self.reserved.is_none() {
            self.index.remove(key)?;
        }
        Ok(is_current.then_some(entry))
    }

    /// Inserts an index entry. Returns false if another connection has the tuple, or if the index
    /// is full.
    ///
    /// Replaces the entry of a connection that is over: its client may open the next one from the
    /// same port. This is not atomic. If a program replaces the entry in the same instant, the
    /// later one has the tuple, as between two programs.
    fn insert(
        &self,
        key: &FlowKey<A>,
        entry: &FlowIndex,
        is_over: impl Fn(&Flow<A>) -> bool,
    ) -> io::Result<bool> {
        let inserted = match self.index.insert(key, entry) {
            Ok(false) if self.find(key, is_over)?.is_none() => self.index.put(key, entry).map(|()| true),
            result => result,
        };
        match inserted {
            Err(TableError::Full { .. }) => Ok(false),
            result => Ok(result?),
        }
    }

    /// Copies a connection. Returns false if there is no room.
    fn copy(
        &mut self,
        old_number: u32,
        flow: &Flow<A>,
        link: IndexEntries,
        is_over: impl Fn(&Flow<A>) -> bool,
    ) -> io::Result<bool> {
        let Some(number) = self.take()? else { return Ok(false) };
        let generation = self.records.read(number)?.generation.wrapping_add(1);
        let uncounted = Flow { generation, counted: counted::NONE, ..*flow };
        self.records.write(number, Flow { phase: flow_phase::CLAIMED, ..uncounted })?;
        let entry = |direction| FlowIndex { record: number, generation, direction, pad: 0 };
        if !self.insert(&flow.reply_key(), &entry(direction::REPLY), &is_over)? {
            self.free(number)?;
            return Ok(false);
        }
        // If the state changes during the copy, the next packet of the connection changes the
        // count.
        let record = Flow { counted: flow.state().counted(flow.protocol), ..uncounted };
        self.loads.add_flow(record.backend_id, record.counted)?;
        self.records.write(number, record)?;
        if link.request {
            self.insert(&flow.request_key(), &entry(direction::REQUEST), &is_over)?;
        }
        self.update_state(old_number, number, &record)?;
        Ok(true)
    }

    /// Copies the state again if an earlier program has changed it during the copy.
    fn update_state(&self, old_number: u32, number: u32, copied: &Flow<A>) -> io::Result<()> {
        let (Some(old), new) = (self.old.read::<A>(old_number), self.records.read(number)?) else {
            return Ok(());
        };
        let is_same =
            old.has_tuple(&copied.request_key(), direction::REQUEST) && new.generation == copied.generation;
        if is_same && new.state() == copied.state() && old.state() != copied.state() {
            let Flow { phase, request, reply, last_seen_ns, .. } = old;
            self.records.write(number, Flow { phase, request, reply, last_seen_ns, ..new })?;
        }
        Ok(())
    }

    /// Takes a record.
    fn take(&mut self) -> io::Result<Option<u32>> {
        match &mut self.reserved {
            Some(reserved) => Ok(reserved.pop()),
            None => self.find_free(),
        }
    }

    /// Returns a free record. No program may take records.
    fn find_free(&mut self) -> io::Result<Option<u32>> {
        for _ in 0..self.records.capacity() {
            let number = self.next;
            let next = (u64::from(number) + u64::from(self.step)) % u64::from(self.records.capacity());
            self.next = next as u32;
            if self.records.read(number)?.phase == flow_phase::FREE {
                return Ok(Some(number));
            }
        }
        Ok(None)
    }

    /// Sets records aside, which programs do not take.
    pub fn reserve(&mut self) -> io::Result<()> {
        let mut reserved = Vec::new();
        let count = RESERVED.min(self.records.capacity() as usize / 4);
        while reserved.len() < count
            && let Some(number) = self.find_free()?
        {
            let flow = self.records.read(number)?;
            self.records.write(number, Flow { phase: flow_phase::CLAIMED, ..flow })?;
            reserved.push(number);
        }
        self.reserved = Some(reserved);
        Ok(())
    }

    /// Frees the records that are set aside and were not needed.
    pub fn release(&mut self) -> io::Result<()> {
        self.reserved.take().into_iter().flatten().try_for_each(|number| self.free(number))
    }

    fn free(&self, number: u32) -> io::Result<()> {
        let flow = self.records.read(number)?;
        Ok(self.records.write(number, Flow { phase: flow_phase::FREE, ..flow })?)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn every_record_is_visited_and_neighbours_are_far_apart() {
        for capacity in [16, 17, 1000, 16_384, 65_537, 100_000, 131_072, 262_144] {
            let step = u64::from(spread(capacity));
            let visited = |count: u64| (0..count).map(move |n| n * step % u64::from(capacity));
            assert_eq!(visited(capacity.into()).collect::<HashSet<_>>().len(), capacity as usize);
            // Of the first half, no eight follow each other: a program looks at eight.
            let half: HashSet<_> = visited(u64::from(capacity) / 2).collect();
            let runs = |start: u64| (0..8).all(|n| half.contains(&((start + n) % u64::from(capacity))));
            assert!(!(0..u64::from(capacity)).any(runs), "{capacity}");
        }
    }
}
