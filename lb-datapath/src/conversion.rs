//! Replaces the maps of an earlier agent by maps of this version and of the configured sizes,
//! without losing a connection. The earlier agent may have been older or newer.
//!
//! | step | maps in use | new connections are opened by |
//! |---|---|---|
//! | fill the new maps | earlier | earlier programs |
//! | attach the programs of the conversion: replace the programs in all links | both | earlier programs |
//! | copy connections, session affinities and peers of sockets | both | earlier programs |
//! | open connections here; copy those that the earlier programs opened last | both | new programs |
//! | stop using the earlier programs; move the pins | new | new programs |
//!
//! The programs of the conversion hand packets that they cannot decide to the earlier programs
//! (lb-ebpf/src/handover.rs). So the order in which links are updated does not matter, and each
//! packet is handled by one generation.
//!
//! The pinned map `HANDOVER` contains the phase. An agent that finds it continues where another one
//! was ended. Each step can be repeated.

use std::fs;
use std::io;
use std::os::fd::{AsFd as _, AsRawFd as _, OwnedFd};
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use aya_obj::generated::bpf_map_type;
use lb_common::layout::handover;
use lb_model::{IpFamily, PerFamily};

use crate::apply::map_name::MapName;
use crate::apply::{Demand, MapUsage};
use crate::connection_copy::{ConnectionCopy, Copied, OldTable};
use crate::field_copy::FieldCopy;
use crate::first_filter::Filter;
use crate::first_filter_needs;
use crate::flows;
use crate::handles::MapHandles;
use crate::hooks;
use crate::links::{Links, truncated};
use crate::loads::Loads;
use crate::own_maps::{OwnMap, PinnedMap, is_of_events, own_maps, pinned_sizes};
use crate::pins::Pins;
use crate::programs::{LoadError, LoadOptions, Programs, object};
use crate::raw_map::{MappedWord, RawArray};
use crate::settings;
use crate::sizes::MapSizes;
use crate::step::ConversionStep;
use crate::sys;

/// Maps that are replaced together: they refer to each other. The loads are counted anew with the
/// connections that are copied.
const CONNECTIONS: [&str; 8] = [
    "FLOWS_V4",
    "FLOWS_V6",
    "FLOW_INDEX_V4",
    "FLOW_INDEX_V6",
    "FLOW_HANDS",
    "FLOW_LOCKS",
    "LOADS_V4",
    "LOADS_V6",
];

/// Maps that programs write and that have no references to other maps but ids. They are copied in
/// passes, as connections are.
const WRITTEN_BY_PROGRAMS: [&str; 3] = ["AFFINITY", "SOCKET_PEERS_V4", "SOCKET_PEERS_V6"];

/// Maps that are not copied. The earlier programs handle datagrams whose first fragment they have
/// seen. The others are written by this agent when it loads programs. Those of [`is_of_events`] are
/// not copied either: a reader of events opens the new maps.
const NOT_COPIED: [&str; 5] = ["FRAGMENTS_V4", "FRAGMENTS_V6", "SETTINGS", "FLOW_TIMEOUTS", "FILTER"];

/// How long a program can run that has read the phase before it changed.
const PROGRAM_RUN: Duration = Duration::from_millis(20);

/// The maximal number of passes in one phase. While the earlier programs open connections, two or
/// three are usual. When they open no more, the second one finds nothing to copy.
const PASSES: usize = 20;

/// A pass that copies no more connections than this is the last one while the earlier programs open
/// connections. The records that are set aside must suffice for the next one.
const FEW: usize = 512;

/// Replaces pinned maps that do not fit. Does nothing if all fit, or if there are none. Returns the
/// sizes of the maps: those of `options`, or greater ones that have room for the pinned entries.
///
/// Programs of other folders may stay attached. Call [`remove_others`] when programs of this folder
/// are loaded.
pub fn convert(pins: &Pins, options: &LoadOptions) -> Result<MapSizes, LoadError> {
    let failed = |source| LoadError::Map { map: pins.root().display().to_string(), source };
    let mut continued = false;
    for staging in pins.all().map_err(failed)? {
        if staging.target().is_some() {
            continued |= continue_interrupted(&staging, pins, options)?;
        }
    }
    let object = object()?;
    let own = own_maps(&object, &options.sizes);
    let Some((mut source, mut reason)) = find_source(pins, &own).map_err(failed)? else {
        return Ok(options.sizes);
    };
    let pinned = pinned_sizes(&source, &options.sizes);
    let sizes = if continued {
        // The agent that was ended may have made maps larger for entries that they do not have yet.
        options.sizes.no_smaller_than(&pinned)
    } else {
        options.sizes.kept_for(&pinned_demand(&source).map_err(failed)?, &pinned, options.map_memory)
    };
    let own = own_maps(&object, &sizes);
    if sizes != options.sizes {
        // The maps may fit these sizes.
        match find_source(pins, &own).map_err(failed)? {
            Some(found) => (source, reason) = found,
            None => return Ok(sizes),
        }
    }
    log::info!("converting the maps in {}: {reason}", source.root().display());
    let options = LoadOptions { sizes, ..options.clone() };
    Conversion::start(source, pins, own, &options)?.run()?;
    Ok(sizes)
}

/// A failure to replace the maps of a running agent.
#[derive(Debug, thiserror::Error)]
pub enum GrowError {
    /// The earlier maps and programs are in use, as before.
    #[error("the maps keep their sizes: {0}")]
    Undone(LoadError),
    /// Programs use new maps. Another agent can continue.
    #[error("replacing the maps was interrupted: {0}")]
    Interrupted(LoadError),
}

/// Empty maps of other sizes, and the programs that will use them, for an agent that runs. Its
/// earlier maps and programs are in use until [`NewGeneration::replace`].
pub struct NewGeneration {
    conversion: Conversion,
    /// The programs that serve after the conversion.
    programs: Programs,
}

impl NewGeneration {
    /// Makes the maps and loads the programs. This takes seconds and changes nothing that is in
    /// use, so it can run beside the thread that writes the earlier maps.
    pub fn load(pins: &Pins, options: &LoadOptions) -> Result<Self, LoadError> {
        let staging = pins.staging();
        let failed = |source| LoadError::Map { map: staging.root().display().to_string(), source };
        // An earlier attempt may have left it. No program uses it.
        remove_if_present(&staging).map_err(failed)?;
        Self::load_in_staging(pins, options).inspect_err(|_| {
            if let Err(error) = remove_if_present(&staging) {
                log::warn!("cannot remove {}: {error}", staging.root().display());
            }
        })
    }

    fn load_in_staging(pins: &Pins, options: &LoadOptions) -> Result<Self, LoadError> {
        let own = own_maps(&object()?, &options.sizes);
        let conversion = Conversion::create(pins.clone(), pins, own, options)?;
        // The pins of the maps move later. The maps stay the same.
        let programs = Programs::load(options, Some(&conversion.staging))?;
        Ok(Self { conversion, programs })
    }

    /// Returns the options with which the programs are loaded.
    pub(crate) fn options(&self) -> LoadOptions {
        self.conversion.options.clone()
    }

    /// Copies all entries and connections to the new maps, and stops using the earlier ones.
    /// `serving` are the programs that are attached. Returns those that are to be attached: until
    /// then, the programs of the conversion serve.
    pub(crate) fn replace(self, serving: &mut Programs) -> Result<Programs, GrowError> {
        let Self { mut conversion, programs } = self;
        let Err(error) = conversion.begin().and_then(|()| conversion.run()) else { return Ok(programs) };
        Err(match conversion.undo(serving) {
            Ok(true) => GrowError::Undone(error),
            Ok(false) => GrowError::Interrupted(error),
            Err(undo) => {
                log::error!("cannot return to the earlier maps: {undo}");
                GrowError::Interrupted(error)
            }
        })
    }
}

/// Returns the entries that the pinned maps need.
fn pinned_demand(pins: &Pins) -> io::Result<Demand> {
    let count = |map: MapName| match sys::open_pin(&pins.map(map.name)) {
        Ok(fd) => used_entries(&fd, map == MapName::SERVICE_NAMES),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(0),
        Err(error) => Err(error),
    };
    let both = |maps: PerFamily<MapName>| Ok::<_, io::Error>(count(maps.v4)?.max(count(maps.v6)?));
    Ok(Demand {
        services: both(MapName::SERVICES)?.max(count(MapName::SERVICE_NAMES)?),
        slots: count(MapName::SLOTS)?,
        backends: both(MapName::BACKENDS)?,
        source_ranges: both(MapName::SOURCE_RANGES)?,
    })
}

/// Returns the number of used entries of a hash map. An array, and a hash map whose keys are ids,
/// need all entries up to the last used one, because ids and slots stay. They may be full up to
/// there, so this function returns the number that makes a map of this length nearly full.
fn used_entries(map: &OwnedFd, keys_are_ids: bool) -> io::Result<u64> {
    let mut last = 0;
    if sys::map_info(map.as_fd())?.type_ == bpf_map_type::BPF_MAP_TYPE_ARRAY as u32 {
        let array = RawArray::open(map)?;
        let is_used = |index: &u32| array.read(*index).iter().any(|byte| *byte != 0);
        last = (0..array.capacity()).rev().find(is_used).unwrap_or(0);
    } else if keys_are_ids {
        sys::for_each_bytes(map.as_fd(), |id, _| last = sys::values(id).fold(last, u32::max))?;
    } else {
        return Ok(sys::count_entries(map.as_fd())? as u64);
    }
    Ok((u64::from(last) * MapUsage::NEARLY_FULL_PERCENT).div_ceil(100))
}

/// Removes the folders of other versions, and unfinished conversions of them. If they exist, first
/// replaces all attached programs.
pub fn remove_others(pins: &Pins, programs: &mut Programs) -> Result<(), LoadError> {
    let failed = |source| LoadError::Map { map: pins.root().display().to_string(), source };
    let others: Vec<_> = pins.all().map_err(failed)?.into_iter().filter(|other| other != pins).collect();
    if others.is_empty() {
        return Ok(());
    }
    let attached = Links::new(pins.links()).replace_all(programs, || {});
    attached.map_err(|error| failed(io::Error::other(error)))?;
    remove_siblings(pins).map_err(failed)
}

/// Finishes or undoes a conversion during which an agent was ended. Returns whether it is finished.
fn continue_interrupted(staging: &Pins, pins: &Pins, options: &LoadOptions) -> Result<bool, LoadError> {
    let failed = |source| LoadError::Map { map: staging.root().display().to_string(), source };
    let is_own = *staging == pins.staging();
    match phase(staging).map_err(failed)? {
        // No program uses these maps.
        None | Some(handover::FILLING) => remove(staging).map_err(failed).map(|()| false),
        Some(handover::COPYING | handover::OPENING) if is_own => {
            log::info!("continuing the conversion in {}", staging.root().display());
            Conversion::resume(pins, options)?.run().map(|()| true)
        }
        // The earlier programs and maps are complete. The programs that this agent attaches replace
        // those that use the staging folder.
        Some(handover::COPYING) => {
            log::warn!("undoing an unfinished conversion to another version in {}", staging.root().display());
            Ok(false)
        }
        Some(_) => publish(staging).map_err(failed).map(|()| true),
    }
}

/// Returns the phase of a conversion. `None`: there is none.
fn phase(staging: &Pins) -> io::Result<Option<u32>> {
    match sys::open_pin(&staging.handover("HANDOVER")) {
        Ok(map) => Ok(Some(MappedWord::open(&map.into())?.get())),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

/// Returns the folder whose maps must be replaced, with the reason.
fn find_source(pins: &Pins, own: &[OwnMap]) -> io::Result<Option<(Pins, String)>> {
    let mut others: Vec<_> =
        pins.all()?.into_iter().filter(|other| other != pins && other.target().is_none()).collect();
    others.retain(Pins::has_maps);
    // Programs are attached that use the maps of another version.
    let in_use = others.iter().rposition(Pins::has_links);
    if !pins.has_maps() || (!pins.has_links() && in_use.is_some()) {
        let source = in_use.or(others.len().checked_sub(1)).map(|index| others.swap_remove(index));
        return Ok(source.map(|source| (source, "they are of another version".to_owned())));
    }
    for map in own {
        if let Some(pinned) = PinnedMap::open(&pins.map(&map.name), map)?
            && let Some(difference) = pinned.difference(map)
        {
            return Ok(Some((pins.clone(), format!("{}: {difference}", map.name))));
        }
    }
    Ok(None)
}

/// A map of this version that is not the earlier agent's, with the earlier one.
struct Replaced {
    own: OwnMap,
    old: PinnedMap,
}

struct Conversion {
    source: Pins,
    pins: Pins,
    staging: Pins,
    programs: Programs,
    maps: MapHandles,
    phase: MappedWord,
    replaced: Vec<Replaced>,
    options: LoadOptions,
}

impl Conversion {
    /// Creates the new maps and fills them.
    fn start(source: Pins, pins: &Pins, own: Vec<OwnMap>, options: &LoadOptions) -> Result<Self, LoadError> {
        let conversion = Self::create(source, pins, own, options)?;
        conversion.begin()?;
        Ok(conversion)
    }

    /// Creates the new maps, and loads the programs of the conversion. Maps of the source that fit
    /// are pinned in the staging folder too.
    fn create(source: Pins, pins: &Pins, own: Vec<OwnMap>, options: &LoadOptions) -> Result<Self, LoadError> {
        let staging = pins.staging();
        let failed = |source| LoadError::Map { map: staging.root().display().to_string(), source };
        let folder = |source| LoadError::PinFolder { path: staging.root().to_owned(), source };
        fs::create_dir_all(staging.maps()).map_err(folder)?;
        fs::create_dir_all(staging.handover("")).map_err(folder)?;
        let replaced = share_maps(&source, &staging, own).map_err(failed)?;
        Self::load(source, pins, replaced, options.clone())
    }

    /// Fills the new maps with the entries that agents write. From now on, a conversion that is
    /// interrupted is continued.
    fn begin(&self) -> Result<(), LoadError> {
        let failed = |source| LoadError::Map { map: self.staging.root().display().to_string(), source };
        ConversionStep::MapsCreated.reached().map_err(failed)?;
        self.fill().map_err(failed)?;
        settings::publish(&self.maps, &self.options, self.programs.features.netns_cookie)?;
        flows::set_timeouts(&self.maps, &self.options.flow_timeouts).map_err(failed)?;
        ConversionStep::MapsFilled.reached().map_err(failed)?;
        self.phase.set(handover::COPYING);
        Ok(())
    }

    /// Opens the maps that an agent was filling when it was ended. They have the sizes that this
    /// agent wanted.
    fn resume(pins: &Pins, options: &LoadOptions) -> Result<Self, LoadError> {
        let staging = pins.staging();
        let failed = |source| LoadError::Map { map: staging.root().display().to_string(), source };
        let sizes = pinned_sizes(&staging, &options.sizes);
        let options = LoadOptions { sizes, ..options.clone() };
        let own = own_maps(&object()?, &sizes);
        let siblings = pins.all().map_err(failed)?.into_iter();
        let source = siblings
            .filter(|other| other != pins && other.target().is_none() && other.has_maps())
            .rfind(Pins::has_links)
            .unwrap_or_else(|| pins.clone());
        let mut replaced = Vec::new();
        for own in own {
            let id = open_id(&staging.map(&own.name)).map_err(failed)?;
            if let Some(old) = PinnedMap::open(&source.map(&own.name), &own).map_err(failed)?
                && id.is_some_and(|id| id != old.id)
            {
                replaced.push(Replaced { own, old });
            }
        }
        Self::load(source, pins, replaced, options)
    }

    fn load(
        source: Pins,
        pins: &Pins,
        replaced: Vec<Replaced>,
        options: LoadOptions,
    ) -> Result<Self, LoadError> {
        let staging = pins.staging();
        let programs = Programs::load_converting(&options, &staging)?;
        let maps = programs.map_handles()?;
        let failed = |source| LoadError::Map { map: "HANDOVER".into(), source };
        let phase = MappedWord::open(&maps.get("HANDOVER").map_err(failed)?).map_err(failed)?;
        Ok(Self { source, pins: pins.clone(), staging, programs, maps, phase, replaced, options })
    }

    fn run(&mut self) -> Result<(), LoadError> {
        let started = Instant::now();
        let failed = |source| LoadError::Map { map: "of the conversion".into(), source };
        let mut tables = self.tables().map_err(failed)?;
        let connections = if self.programs.refusals.is_empty() {
            self.attach().map_err(failed)?;
            ConversionStep::Attached.reached().map_err(failed)?;
            self.copy_while_both_serve(&mut tables).map_err(failed)?
        } else {
            for refusal in &self.programs.refusals {
                log::warn!("connections that are opened during the conversion are lost: {refusal}");
            }
            let copied = self.repeat_passes(&mut tables).map_err(failed)?;
            self.complete_filter().map_err(failed)?;
            self.phase.set(handover::DONE);
            copied
        };
        self.move_socket_counts().map_err(failed)?;
        ConversionStep::Done.reached().map_err(failed)?;
        log::info!(
            "converted the maps: {} connections copied, {} lost, {} displaced by new ones, in {:.1} s",
            connections.connections,
            connections.lost,
            connections.displaced,
            started.elapsed().as_secs_f32()
        );
        if self.pins != self.source {
            self.log_unreadable().map_err(failed)?;
        }
        publish(&self.staging).map_err(failed)
    }

    /// Attaches the programs of the source again, which are `serving`, and removes the new maps.
    /// Returns false if the new programs may have opened connections: then the earlier maps do not
    /// have all of them.
    fn undo(&self, serving: &mut Programs) -> io::Result<bool> {
        match self.phase.get() {
            handover::FILLING => {}
            handover::COPYING => {
                let links = Links::new(self.source.links());
                links.replace_all(serving, || {}).map_err(io::Error::other)?;
            }
            _ => return Ok(false),
        }
        remove(&self.staging)?;
        Ok(true)
    }

    /// Copies the entries of maps that only agents write. No agent writes them now: this one waits
    /// for the end of the conversion, and no other one runs.
    fn fill(&self) -> io::Result<()> {
        for map in &self.replaced {
            let name = map.own.name.as_str();
            if CONNECTIONS.contains(&name)
                || WRITTEN_BY_PROGRAMS.contains(&name)
                || NOT_COPIED.contains(&name)
                || is_of_events(name)
            {
                continue;
            }
            match map.copy_all(&self.maps) {
                Ok(0) => {}
                Ok(lost) => log::warn!("map {name}: {lost} entries do not fit into its new size"),
                Err(error) if error.kind() == io::ErrorKind::Unsupported => {
                    log::warn!("map {name} is not converted: {error}");
                }
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// Moves the counts of connected sockets to the new maps. The new programs have counted there
    /// the sockets that ended meanwhile. No program changes the old counts any more.
    fn move_socket_counts(&self) -> io::Result<()> {
        for family in IpFamily::BOTH {
            let name = MapName::LOADS[family].name;
            let Some(map) = self.replaced.iter().find(|map| map.own.name == name) else { continue };
            let Some((_, value)) = map.conversion() else { continue };
            let (old, new) = (RawArray::open(&map.old.fd)?, Loads::open(&self.maps, family)?);
            for id in 0..old.capacity().min(map.own.capacity) {
                let entry = old.read(id);
                if let Some(load) = sys::values(&value.apply(&entry)).next() {
                    new.add_sockets(id, &load)?;
                    // An agent that continues after this one adds nothing twice.
                    old.write(id, &vec![0; entry.len()]);
                }
            }
        }
        Ok(())
    }

    /// Stores the earlier programs where those of the conversion find them, and replaces them in
    /// their links.
    fn attach(&mut self) -> io::Result<()> {
        let earlier = self.earlier_programs()?;
        let mut arrays: Vec<(String, u32, &str)> =
            vec![("PREDECESSORS_XDP".into(), 0, self.programs.xdp_name())];
        arrays.extend(
            (0..).zip(handover::TC_PROGRAMS).map(|(index, name)| ("PREDECESSORS_TC".into(), index, name)),
        );
        for (program, _, hook) in hooks::CGROUP {
            let hook = hook.trim_start_matches("cgroup-").to_uppercase();
            arrays.push((format!("PREDECESSORS_{hook}"), 0, program));
        }
        for (array, index, program) in arrays {
            let earlier = earlier.iter().find(|(name, _)| name == truncated(program));
            // `bind` needs no predecessor: it writes no map.
            if let (Some((_, earlier)), Ok(array)) = (earlier, self.maps.fd(&array)) {
                sys::update(array, &index, &(earlier.as_raw_fd() as u32), 0)?;
            }
        }
        if !self.source.has_links() {
            return Ok(());
        }
        let links = Links::new(self.source.links());
        let (mut count, mut reached) = (0, Ok(()));
        let attached = links.replace_all(&mut self.programs, || {
            count += 1;
            if count == 2 {
                reached = ConversionStep::PartlyAttached.reached();
            }
        });
        attached.map_err(io::Error::other)?;
        reached
    }

    /// Returns the programs that use the maps of the source, by their truncated names.
    fn earlier_programs(&self) -> io::Result<Vec<(String, OwnedFd)>> {
        let Some(connections) = self.replaced.iter().find(|map| map.own.name == "FLOWS_V4") else {
            return self.programs_with(&self.source.map("FLOWS_V4"));
        };
        programs_with_map(connections.old.id)
    }

    fn programs_with(&self, path: &Path) -> io::Result<Vec<(String, OwnedFd)>> {
        open_id(path)?.map_or_else(|| Ok(Vec::new()), programs_with_map)
    }

    /// Copies the entries that programs have written, while the programs of both generations serve.
    fn copy_while_both_serve(&self, tables: &mut CopiedTables) -> io::Result<Copied> {
        let mut copied = Copied::default();
        if self.phase.get() < handover::OPENING {
            copied = self.repeat_passes(tables)?;
            ConversionStep::Copied.reached()?;
            tables.reserve()?;
            self.phase.set(handover::OPENING);
        } else {
            tables.reserve()?;
        }
        ConversionStep::Opening.reached()?;
        thread::sleep(PROGRAM_RUN);
        let last = self.repeat_passes(tables)?;
        self.complete_filter()?;
        self.phase.set(handover::DONE);
        tables.release()?;
        Ok(Copied { connections: copied.connections + last.connections, ..last })
    }

    /// Sets the bits that the copied entries and connections need. The programs use the filter when
    /// the conversion is done.
    fn complete_filter(&self) -> io::Result<()> {
        first_filter_needs::complete(&self.maps, &Filter::open(&self.maps)?, sys::monotonic_ns())
    }

    /// Copies until there is nothing left to copy.
    fn repeat_passes(&self, tables: &mut CopiedTables) -> io::Result<Copied> {
        let mut sum = Copied::default();
        for _ in 0..PASSES {
            let earlier_programs_open = self.phase.get() < handover::OPENING;
            let copied = tables.pass(&self.options, earlier_programs_open)?;
            sum = Copied { connections: sum.connections + copied.connections, ..copied };
            if copied.connections == 0 || (earlier_programs_open && copied.connections <= FEW) {
                break;
            }
        }
        Ok(sum)
    }

    fn tables(&self) -> io::Result<CopiedTables> {
        let mut tables = CopiedTables {
            v4: self.connections("FLOWS_V4", "FLOW_INDEX_V4")?,
            v6: self.connections("FLOWS_V6", "FLOW_INDEX_V6")?,
            written_by_programs: Vec::new(),
        };
        for map in self.replaced.iter().filter(|map| WRITTEN_BY_PROGRAMS.contains(&map.own.name.as_str())) {
            match ProgramWrittenMap::new(map, &self.maps)? {
                Some(map) => tables.written_by_programs.push(map),
                None => log::warn!("map {} is not converted: {}", map.own.name, map.unsupported()),
            }
        }
        Ok(tables)
    }

    fn connections<A>(&self, records: &str, index: &str) -> io::Result<Option<ConnectionCopy<A>>>
    where
        A: crate::address::MapAddress + PartialEq,
    {
        let find = |name| self.replaced.iter().find(|map| map.own.name == name);
        let (Some(records), Some(index)) = (find(records), find(index)) else { return Ok(None) };
        let old_index = PinnedMap {
            fd: index.old.fd.try_clone()?,
            key: index.old.key.clone(),
            value: index.old.value.clone(),
            ..index.old
        };
        match OldTable::new((&records.old, &records.own), (old_index, &index.own))? {
            Some(table) => {
                if !table.lost_fields().is_empty() {
                    let fields = table.lost_fields().join(", ");
                    log::info!("map {}: this version does not have the fields {fields}", records.own.name);
                }
                let copy = ConnectionCopy::new(table, &self.maps)?;
                copy.free_abandoned()?;
                Ok(Some(copy))
            }
            None => {
                log::warn!("the connections in {} are lost: {}", records.own.name, records.unsupported());
                Ok(None)
            }
        }
    }

    /// Logs the maps of the source that this version does not have.
    fn log_unreadable(&self) -> io::Result<()> {
        for entry in fs::read_dir(self.source.maps())? {
            let path = entry?.path();
            let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            if !self.staging.map(&name).exists() {
                log::warn!("removing the map {}: this version has no such map", path.display());
            }
        }
        Ok(())
    }
}

/// Pins maps of the source that fit in the staging folder. Returns the others, as far as the source
/// has them.
fn share_maps(source: &Pins, staging: &Pins, own: Vec<OwnMap>) -> io::Result<Vec<Replaced>> {
    let mut pairs = Vec::new();
    for own in own {
        if let Some(old) = PinnedMap::open(&source.map(&own.name), &own)? {
            pairs.push(Replaced { own, old });
        }
    }
    let differs = |map: &Replaced| map.old.difference(&map.own).is_some();
    let is_connections = |map: &Replaced| CONNECTIONS.contains(&map.own.name.as_str());
    let new_connections = pairs.iter().any(|map| is_connections(map) && differs(map));
    let mut replaced = Vec::new();
    for map in pairs {
        if differs(&map) || (new_connections && is_connections(&map)) {
            replaced.push(map);
        } else {
            sys::pin(map.old.fd.as_fd(), &staging.map(&map.own.name))?;
        }
    }
    Ok(replaced)
}

impl Replaced {
    /// Returns the conversion of keys and values, or `None` if this version cannot read the map.
    fn conversion(&self) -> Option<(FieldCopy, FieldCopy)> {
        if self.old.shape.map_type != self.own.shape.map_type {
            return None;
        }
        let value = FieldCopy::new(&self.old.value, &self.own.value)?;
        Some((FieldCopy::new(&self.old.key, &self.own.key)?, value))
    }

    fn unsupported(&self) -> String {
        format!("it has {}, this version has {}", self.old.shape, self.own.shape)
    }

    /// Copies all entries. Returns how many do not fit.
    fn copy_all(&self, maps: &MapHandles) -> io::Result<usize> {
        let unsupported = || io::Error::new(io::ErrorKind::Unsupported, self.unsupported());
        let (key, value) = self.conversion().ok_or_else(unsupported)?;
        let new = maps.get(&self.own.name)?;
        let map_type = self.own.shape.map_type;
        if map_type == bpf_map_type::BPF_MAP_TYPE_ARRAY as u32 {
            let (old, new) = (RawArray::open(&self.old.fd)?, RawArray::open(&new)?);
            let common = old.capacity().min(new.capacity());
            for index in 0..common {
                let entry = old.read(index);
                if entry.iter().any(|byte| *byte != 0) {
                    new.write(index, &value.apply(&entry));
                }
            }
            let is_used = |index: &u32| old.read(*index).iter().any(|byte| *byte != 0);
            return Ok((common..old.capacity()).filter(is_used).count());
        }
        if map_type == bpf_map_type::BPF_MAP_TYPE_PERCPU_ARRAY as u32 {
            self.copy_per_cpu(&value, new.as_fd())?;
            return Ok(0);
        }
        if map_type == bpf_map_type::BPF_MAP_TYPE_SK_STORAGE as u32 {
            return Err(io::Error::new(
                io::ErrorKind::Unsupported,
                "entries of socket storage can be written only with a descriptor of the socket",
            ));
        }
        let mut entries = Vec::new();
        sys::for_each_bytes(self.old.fd.as_fd(), |old_key, old_value| {
            entries.push((key.apply(old_key), value.apply(old_value)));
        })?;
        let mut lost = 0;
        for (key, value) in entries {
            match sys::update_bytes(new.as_fd(), &key, &value, 0) {
                Ok(()) => {}
                Err(error) if matches!(error.raw_os_error(), Some(libc::E2BIG | libc::ENOSPC)) => lost += 1,
                Err(error) => return Err(error),
            }
        }
        Ok(lost)
    }

    /// Copies the values of all CPUs, for the entries that both maps have.
    fn copy_per_cpu(&self, value: &FieldCopy, new: std::os::fd::BorrowedFd<'_>) -> io::Result<()> {
        let cpus = sys::possible_cpus()?;
        let (old_size, own_size) =
            (value.old_size().next_multiple_of(8), self.own.value.size.next_multiple_of(8));
        for index in 0..self.old.capacity.min(self.own.capacity) {
            let key = index.to_ne_bytes();
            let Some(old) = sys::lookup_bytes(self.old.fd.as_fd(), &key, old_size * cpus)? else { continue };
            let mut values = Vec::with_capacity(own_size * cpus);
            for old in old.chunks_exact(old_size) {
                let mut converted = value.apply(&old[..value.old_size()]);
                converted.resize(own_size, 0);
                values.extend(converted);
            }
            sys::update_bytes(new, &key, &values, 0)?;
        }
        Ok(())
    }
}

/// A map that programs write, apart from connections.
struct ProgramWrittenMap {
    old: OwnedFd,
    new: std::sync::Arc<OwnedFd>,
    key: FieldCopy,
    value: FieldCopy,
}

impl ProgramWrittenMap {
    fn new(map: &Replaced, maps: &MapHandles) -> io::Result<Option<Self>> {
        let Some((key, value)) = map.conversion() else { return Ok(None) };
        let (old, new) = (map.old.fd.try_clone()?, maps.get(&map.own.name)?);
        Ok(Some(Self { old, new, key, value }))
    }

    /// Copies all entries. With `replace`, entries that are copied already are written again: the
    /// earlier programs may have changed them. Without, programs write the new map, and their
    /// entries stay.
    fn pass(&self, replace: bool) -> io::Result<()> {
        let mut entries = Vec::new();
        sys::for_each_bytes(self.old.as_fd(), |key, value| {
            entries.push((self.key.apply(key), self.value.apply(value)));
        })?;
        for (key, value) in entries {
            let flags = if replace { 0 } else { sys::NO_EXIST };
            match sys::update_bytes(self.new.as_fd(), &key, &value, flags) {
                Err(error) if error.raw_os_error() == Some(libc::EEXIST) => {}
                // Programs use all elements of the LRU map at this moment.
                Err(error) if error.raw_os_error() == Some(libc::ENOMEM) => {}
                result => result?,
            }
        }
        Ok(())
    }
}

/// The maps that are copied in passes.
struct CopiedTables {
    v4: Option<ConnectionCopy<[u8; 4]>>,
    v6: Option<ConnectionCopy<[u8; 16]>>,
    written_by_programs: Vec<ProgramWrittenMap>,
}

impl CopiedTables {
    fn pass(&mut self, options: &LoadOptions, replace: bool) -> io::Result<Copied> {
        let now = sys::monotonic_ns();
        let mut copied = Copied::default();
        let mut add = |family: Copied| {
            copied.connections += family.connections;
            copied.lost += family.lost;
            copied.displaced += family.displaced;
        };
        if let Some(v4) = &mut self.v4 {
            add(v4.pass(now, &options.flow_timeouts)?);
        }
        if let Some(v6) = &mut self.v6 {
            add(v6.pass(now, &options.flow_timeouts)?);
        }
        self.written_by_programs.iter().try_for_each(|map| map.pass(replace))?;
        Ok(copied)
    }

    fn reserve(&mut self) -> io::Result<()> {
        self.v4.as_mut().map_or(Ok(()), ConnectionCopy::reserve)?;
        self.v6.as_mut().map_or(Ok(()), ConnectionCopy::reserve)
    }

    fn release(&mut self) -> io::Result<()> {
        self.v4.as_mut().map_or(Ok(()), ConnectionCopy::release)?;
        self.v6.as_mut().map_or(Ok(()), ConnectionCopy::release)
    }
}

/// Returns the loaded programs that use a map, by their truncated names. If several have one name,
/// the first one comes first: programs of `lb explain` were loaded later than those of the agent.
fn programs_with_map(id: u32) -> io::Result<Vec<(String, OwnedFd)>> {
    let mut found = Vec::new();
    for program in sys::programs() {
        let program = program?;
        if sys::program_map_ids(program.as_fd())?.contains(&id) {
            found.push((sys::program_name(&sys::program_info(program.as_fd())?), program));
        }
    }
    Ok(found)
}

/// Returns the id of a pinned map, or `None` if there is none.
fn open_id(path: &Path) -> io::Result<Option<u32>> {
    match sys::open_pin(path) {
        Ok(map) => Ok(Some(sys::map_info(map.as_fd())?.id)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

/// Moves the maps of a staging folder to where they belong, and the links too. Then removes the
/// folders of all other versions, and last the staging folder.
fn publish(staging: &Pins) -> io::Result<()> {
    let Some(target) = staging.target() else { return Ok(()) };
    target.create()?;
    for (index, name) in (0..).zip(names(&staging.maps())?) {
        fs::rename(staging.map(&name), target.map(&name))?;
        if index == 3 {
            ConversionStep::PartlyPublished.reached()?;
        }
    }
    for other in target.all()?.into_iter().filter(|other| *other != target && other != staging) {
        if other.target().is_none() {
            for name in names(&other.links())? {
                fs::rename(other.links().join(&name), target.links().join(&name))?;
            }
        }
    }
    ConversionStep::Published.reached()?;
    remove_siblings(&target)?;
    remove(staging)
}

/// Removes the folders of other versions. No program that is attached uses them.
fn remove_siblings(pins: &Pins) -> io::Result<()> {
    for other in pins.all()?.into_iter().filter(|other| other != pins && *other != pins.staging()) {
        log::info!(
            "removing {}: it belongs to another version and is not used any more",
            other.root().display()
        );
        remove(&other)?;
    }
    Ok(())
}

fn remove_if_present(pins: &Pins) -> io::Result<()> {
    if pins.root().exists() { remove(pins) } else { Ok(()) }
}

/// Removes a folder of pins. `HANDOVER` comes last: as long as it exists, the next agent continues.
fn remove(pins: &Pins) -> io::Result<()> {
    let phase = pins.handover("HANDOVER");
    for folder in [pins.links(), pins.maps(), pins.handover("")] {
        for name in names(&folder)? {
            let path = folder.join(name);
            if path != phase {
                fs::remove_file(path)?;
            }
        }
    }
    match fs::remove_file(&phase) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    fs::remove_dir_all(pins.root())
}

/// Returns the names of the files in a folder, sorted. Returns none if the folder does not exist.
fn names(folder: &Path) -> io::Result<Vec<String>> {
    let entries = match fs::read_dir(folder) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries?,
    };
    let mut names = Vec::new();
    for entry in entries {
        names.push(entry?.file_name().to_string_lossy().into_owned());
    }
    names.sort();
    Ok(names)
}
