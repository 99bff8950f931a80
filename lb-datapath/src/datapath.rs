//! The loaded programs, their maps and their attachments.

use std::io;
use std::os::fd::BorrowedFd;
use std::path::Path;
use std::sync::Arc;

use lb_common::layout::FlowTimeouts;

use crate::conversion::{self, GrowError, NewGeneration};
use crate::drift::{Drift, DriftKind};
use crate::endpoints::Endpoints;
use crate::features::Features;
use crate::first_filter::Filter;
use crate::first_filter_needs;
use crate::flows;
use crate::handles::MapHandles;
use crate::host_maps::HostMaps;
use crate::inspect;
use crate::links::{self, AttachError, Attached, Links, TargetDevice};
use crate::pin_repair;
use crate::pins::Pins;
use crate::programs::{DatapathLog, LoadError, LoadOptions, ProgramStatistics, Programs};
use crate::refused_program::RefusedProgram;
use crate::service_tables::ServiceTables;
use crate::settings;
use crate::sizes::MapSizes;
use crate::sweeper::Sweeper;
use crate::sys::{self, TestRun};

/// The loaded programs and their maps.
pub struct Datapath {
    pub(crate) programs: Programs,
    pub(crate) maps: MapHandles,
    filter: Arc<Filter>,
    host: HostMaps,
    links: Option<Links>,
    /// Where the maps are pinned. `None` if they are private.
    pins: Option<Pins>,
    sizes: MapSizes,
}

impl Datapath {
    /// Loads the programs on the pinned maps of an earlier agent, or on new maps that get pinned.
    /// Maps of another layout or size are converted before.
    /// Attaches nothing: the programs of an earlier agent run until [`Datapath::attach_device`]
    /// replaces them.
    pub fn load(pins: &Pins, options: &LoadOptions) -> Result<Self, LoadError> {
        pins.create().map_err(|source| LoadError::PinFolder { path: pins.root().to_owned(), source })?;
        let sizes = conversion::convert(pins, options)?;
        let options = LoadOptions { sizes, ..options.clone() };
        let mut programs = Programs::load(&options, Some(pins))?;
        conversion::remove_others(pins, &mut programs)?;
        Self::on_pins(programs, pins, Links::new(pins.links()), &options)
    }

    /// Replaces the maps by those of `new`, while the programs serve. No connection is lost.
    /// Descriptors of the earlier maps and programs must be replaced too: those of
    /// [`Datapath::tables`], [`Datapath::maps`], [`Datapath::endpoints`],
    /// [`Datapath::sweeper`] and [`Datapath::take_log`].
    pub fn move_to(&mut self, new: NewGeneration) -> Result<(), GrowError> {
        let options = new.options();
        let programs = new.replace(&mut self.programs)?;
        self.attach_again(programs, &options).map_err(GrowError::Interrupted)
    }

    /// Replaces the programs that are attached, on maps that are pinned already.
    fn attach_again(&mut self, mut programs: Programs, options: &LoadOptions) -> Result<(), LoadError> {
        let failed = |error: AttachError| LoadError::Map {
            map: "of services".into(),
            source: io::Error::other(error),
        };
        let pins = self.pins.clone().ok_or_else(|| failed(AttachError::Private))?;
        let links = self.links.take().unwrap_or_else(|| Links::new(pins.links()));
        links.replace_all(&mut programs, || {}).map_err(failed)?;
        *self = Self::on_pins(programs, &pins, links, options)?;
        Ok(())
    }

    fn on_pins(
        programs: Programs,
        pins: &Pins,
        links: Links,
        options: &LoadOptions,
    ) -> Result<Self, LoadError> {
        let mut datapath = Self::new(programs, Some(links), options.sizes)?;
        let failed = |source| LoadError::Map { map: "FILTER".into(), source };
        first_filter_needs::complete(&datapath.maps, &datapath.filter, sys::monotonic_ns())
            .map_err(failed)?;
        datapath.pins = Some(pins.clone());
        datapath.publish(options)?;
        Ok(datapath)
    }

    /// Returns the sizes of the maps.
    pub fn sizes(&self) -> MapSizes {
        self.sizes
    }

    /// Loads the programs on private maps, for tests and benchmarks. They cannot be attached.
    pub fn load_private(options: &LoadOptions) -> Result<Self, LoadError> {
        let datapath = Self::new(Programs::load_for_tests(options)?, None, options.sizes)?;
        datapath.publish(options)?;
        Ok(datapath)
    }

    pub(crate) fn new(programs: Programs, links: Option<Links>, sizes: MapSizes) -> Result<Self, LoadError> {
        let maps = programs.map_handles()?;
        let failed = |source| LoadError::Map { map: "of the host".into(), source };
        let filter = Filter::open(&maps).map_err(failed)?;
        let host = HostMaps::new(&maps, Arc::clone(&filter)).map_err(failed)?;
        Ok(Self { programs, maps, filter, host, links, pins: None, sizes })
    }

    /// Writes the options that programs and other processes read from maps.
    pub(crate) fn publish(&self, options: &LoadOptions) -> Result<(), LoadError> {
        settings::publish(&self.maps, options, self.features().netns_cookie)?;
        self.set_flow_timeouts(&options.flow_timeouts)
    }

    /// Returns the detected kernel features.
    pub fn features(&self) -> &Features {
        &self.programs.features
    }

    /// Returns the programs that this kernel refuses, by name.
    pub fn refusals(&self) -> &[RefusedProgram] {
        &self.programs.refusals
    }

    /// Returns whether connections can be translated at the socket.
    pub fn can_serve_sockets(&self) -> bool {
        self.programs.serves_sockets()
    }

    /// Returns whether packets can be translated on devices with Ethernet headers.
    pub fn can_serve_packets(&self) -> bool {
        links::refused(&self.programs, false).is_none()
    }

    /// Returns the maps of services and endpoints.
    pub fn tables(&self) -> Result<ServiceTables, LoadError> {
        let failed = |source| LoadError::Map { map: "of services".into(), source };
        ServiceTables::new(&self.maps, Arc::clone(&self.filter)).map_err(failed)
    }

    /// Returns the maps, for reading.
    pub fn maps(&self) -> inspect::AgentMaps {
        inspect::AgentMaps::of(&self.maps)
    }

    /// Attaches the socket programs to a cgroup-v2 folder, or replaces the attached ones.
    pub fn attach_cgroup(&mut self, cgroup: &Path) -> Result<(), AttachError> {
        let links = self.links.as_mut().ok_or(AttachError::Private)?;
        links.attach_cgroup(&self.programs, cgroup)
    }

    /// Detaches the socket programs, if they are attached.
    pub fn detach_cgroup(&mut self) -> Result<(), AttachError> {
        self.links()?.detach_cgroup()
    }

    /// Attaches to a device, or replaces what is attached.
    pub fn attach_device(&mut self, device: TargetDevice<'_>) -> Result<Attached, AttachError> {
        let links = self.links.as_mut().ok_or(AttachError::Private)?;
        links.attach_device(&mut self.programs, device)
    }

    /// Detaches the programs from a device. The device may be removed already.
    pub fn detach_device(&mut self, ifindex: u32) -> Result<(), AttachError> {
        self.links()?.detach_device(ifindex)
    }

    /// Returns the indices of the devices to which an earlier agent has attached programs.
    pub fn attached_devices(&mut self) -> Result<Vec<u32>, AttachError> {
        self.links()?.attached_devices()
    }

    /// Compares the programs of a device with those that [`Datapath::attach_device`] has attached.
    /// `device.xdp` is whether it has attached XDP. Returns nothing for a device that was removed
    /// or renamed.
    pub fn check_device(&self, device: TargetDevice<'_>) -> io::Result<Vec<Drift>> {
        self.links.as_ref().map_or(Ok(Vec::new()), |links| links.check_device(&self.programs, device))
    }

    /// Compares the socket programs of a cgroup with those that [`Datapath::attach_cgroup`] has
    /// attached.
    pub fn check_cgroup(&self, cgroup: &Path) -> Result<Vec<Drift>, AttachError> {
        self.links.as_ref().map_or(Ok(Vec::new()), |links| links.check_cgroup(&self.programs, cgroup))
    }

    /// Pins the maps again whose pins are missing or lead to another object. Returns what it found.
    pub fn repair_pins(&self) -> Result<Vec<Drift>, AttachError> {
        self.pins.as_ref().map_or(Ok(Vec::new()), |pins| pin_repair::repair(pins, &self.maps))
    }

    fn links(&mut self) -> Result<&mut Links, AttachError> {
        self.links.as_mut().ok_or(AttachError::Private)
    }

    /// Returns the maps that describe this host.
    pub fn host(&self) -> &HostMaps {
        &self.host
    }

    /// Returns the endpoints of connected sockets, for use in another thread.
    pub fn endpoints(&self) -> io::Result<Endpoints> {
        Endpoints::new(&self.programs, &self.maps)
    }

    /// Returns the flow table and the maps that are compared with it, for use in another thread.
    pub fn sweeper(&self) -> io::Result<Sweeper> {
        Sweeper::new(&self.programs, &self.maps, &self.filter)
    }

    /// Repairs the first filter if another program has changed it. Returns what it found.
    pub fn repair_filter(&self) -> io::Result<Vec<Drift>> {
        Ok(match self.filter.repair()? {
            0 => Vec::new(),
            lines => vec![Drift::new(DriftKind::MapEntry, format!("{lines} lines of the first filter"))],
        })
    }

    /// Sets the timeouts of idle connections.
    pub fn set_flow_timeouts(&self, timeouts: &FlowTimeouts) -> Result<(), LoadError> {
        let failed = |source| LoadError::Map { map: "FLOW_TIMEOUTS".into(), source };
        flows::set_timeouts(&self.maps, timeouts).map_err(failed)
    }

    /// Makes all connections older, for tests. See [`flows::age`].
    pub fn age_flows(&self, seconds: u64) -> io::Result<()> {
        flows::age(&self.maps, seconds)
    }

    /// Sets when the programs may send the next ICMP error or reset, in nanoseconds of
    /// `CLOCK_MONOTONIC`, for tests.
    pub fn set_next_answer(&self, at_ns: u64) -> io::Result<()> {
        let map = self.maps.fd("ANSWER_LIMITS")?;
        let cpus = sys::possible_cpus()?;
        [0, 1].into_iter().try_for_each(|kind| sys::update_per_cpu(map, kind, at_ns, cpus))
    }

    /// Removes all connections and session affinities, for tests and benchmarks. Open connections
    /// break.
    pub fn forget_flows(&self) -> io::Result<()> {
        flows::forget(&self.maps)
    }

    /// Runs a program `repeat` times on a packet, without attaching it (`BPF_PROG_TEST_RUN`).
    /// `context` has the bytes of a `struct xdp_md` or `struct __sk_buff`, or is empty.
    pub fn test_run(&self, program: &str, packet: &[u8], context: &[u8], repeat: u32) -> io::Result<TestRun> {
        sys::test_run(self.program(program)?, packet, context, repeat)
    }

    /// Returns the log of the programs. It can be taken only once.
    pub fn take_log(&mut self) -> Result<DatapathLog, LoadError> {
        self.programs.take_log()
    }

    /// Returns size and verification cost of each program.
    pub fn program_statistics(&self) -> io::Result<Vec<ProgramStatistics>> {
        self.programs.statistics()
    }

    pub(crate) fn program(&self, name: &str) -> io::Result<BorrowedFd<'_>> {
        self.programs
            .get(name)
            .ok_or_else(|| io::Error::new(io::ErrorKind::NotFound, format!("no program {name}")))
    }
}
