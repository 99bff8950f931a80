//! The loaded programs, their maps and where they are attached.

use std::io;
use std::os::fd::BorrowedFd;
use std::path::Path;

use lb_common::layout::FlowTimeouts;

use crate::endpoints::Endpoints;
use crate::features::Features;
use crate::flows::{self, FlowUsage};
use crate::handles::MapHandles;
use crate::host_maps::HostMaps;
use crate::inspect;
use crate::links::{self, AttachError, Attached, Links};
use crate::pins::Pins;
use crate::programs::{DatapathLog, LoadError, LoadOptions, ProgramStatistics, Programs};
use crate::refusal::Refusal;
use crate::service_tables::ServiceTables;
use crate::settings;
use crate::sys::{self, TestRun};

/// The loaded programs and their maps.
pub struct Datapath {
    pub(crate) programs: Programs,
    pub(crate) maps: MapHandles,
    host: HostMaps,
    links: Option<Links>,
}

impl Datapath {
    /// Loads the programs on the maps pinned by an earlier agent, or on new ones, which are pinned.
    /// Nothing is attached yet: an earlier agent's programs go on until [`Datapath::attach_device`]
    /// replaces them.
    pub fn load(pins: &Pins, options: &LoadOptions) -> Result<Self, LoadError> {
        pins.create().map_err(|source| LoadError::PinFolder { path: pins.root().to_owned(), source })?;
        let programs = Programs::load(options, Some(pins))?;
        let datapath = Self::new(programs, Some(Links::new(pins.links())))?;
        datapath.publish(options)?;
        Ok(datapath)
    }

    /// Loads the programs on maps of their own, for tests and benchmarks. They cannot be attached.
    pub fn load_private(options: &LoadOptions) -> Result<Self, LoadError> {
        let datapath = Self::new(Programs::load_for_tests(options)?, None)?;
        datapath.publish(options)?;
        Ok(datapath)
    }

    pub(crate) fn new(programs: Programs, links: Option<Links>) -> Result<Self, LoadError> {
        let maps = programs.map_handles()?;
        let failed = |source| LoadError::Map { map: "of the host".into(), source };
        let host = HostMaps::new(&maps).map_err(failed)?;
        Ok(Self { programs, maps, host, links })
    }

    /// Writes the options that other processes and the programs read from maps.
    pub(crate) fn publish(&self, options: &LoadOptions) -> Result<(), LoadError> {
        settings::publish(&self.maps, options, self.features().netns_cookie)?;
        self.set_flow_timeouts(&options.flow_timeouts)
    }

    /// The kernel features that were found, for the log.
    pub fn features(&self) -> &Features {
        &self.programs.features
    }

    /// Programs that this kernel refuses, by name.
    pub fn refusals(&self) -> &[Refusal] {
        &self.programs.refusals
    }

    /// Whether calls at sockets can be served.
    pub fn can_serve_sockets(&self) -> bool {
        self.programs.serves_sockets()
    }

    /// Whether packets can be served on devices with Ethernet headers.
    pub fn can_serve_packets(&self) -> bool {
        links::refused(&self.programs, false).is_none()
    }

    /// The maps of services and endpoints.
    pub fn tables(&self) -> Result<ServiceTables, LoadError> {
        let failed = |source| LoadError::Map { map: "of services".into(), source };
        ServiceTables::new(&self.maps).map_err(failed)
    }

    /// The maps, for reading.
    pub fn maps(&self) -> inspect::Maps {
        inspect::Maps::of(&self.maps)
    }

    /// Attaches the socket programs to a cgroup-v2 folder, or replaces what is attached there.
    pub fn attach_cgroup(&mut self, cgroup: &Path) -> Result<(), AttachError> {
        let links = self.links.as_mut().ok_or(AttachError::Private)?;
        links.attach_cgroup(&self.programs, cgroup)
    }

    /// Detaches the socket programs from where they are attached, if they are.
    pub fn detach_cgroup(&mut self) -> Result<(), AttachError> {
        self.links()?.detach_cgroup()
    }

    /// Attaches to a device, or replaces what is attached. With `xdp`, XDP and tc; else tc alone.
    /// `layer3`: the device's frames start with the IP header.
    pub fn attach_device(
        &mut self,
        ifindex: u32,
        name: &str,
        xdp: bool,
        layer3: bool,
    ) -> Result<Attached, AttachError> {
        let links = self.links.as_mut().ok_or(AttachError::Private)?;
        links.attach_device(&mut self.programs, ifindex, name, xdp, layer3)
    }

    /// Detaches from a device; it may be gone.
    pub fn detach_device(&mut self, ifindex: u32) -> Result<(), AttachError> {
        self.links()?.detach_device(ifindex)
    }

    /// Interface indices that an earlier agent attached to.
    pub fn attached_devices(&mut self) -> Result<Vec<u32>, AttachError> {
        self.links()?.attached_devices()
    }

    fn links(&mut self) -> Result<&mut Links, AttachError> {
        self.links.as_mut().ok_or(AttachError::Private)
    }

    /// The maps of facts about this host.
    pub fn host(&self) -> &HostMaps {
        &self.host
    }

    /// What connected sockets were given, for a thread of its own.
    pub fn endpoints(&self) -> io::Result<Endpoints> {
        Endpoints::new(&self.programs, &self.maps)
    }

    /// Returns what is in the flow table, and which ids its connections name. `now_ns`: see
    /// [`crate::monotonic_ns`].
    pub fn flow_usage(&self, now_ns: u64) -> io::Result<FlowUsage> {
        flows::usage(&self.maps, now_ns)
    }

    /// Sets how long connections may be silent.
    fn set_flow_timeouts(&self, timeouts: &FlowTimeouts) -> Result<(), LoadError> {
        let failed = |source| LoadError::Map { map: "FLOW_TIMEOUTS".into(), source };
        flows::set_timeouts(&self.maps, timeouts).map_err(failed)
    }

    /// Lets time pass for connections, for tests: see [`flows::age`].
    pub fn age_flows(&self, seconds: u64) -> io::Result<()> {
        flows::age(&self.maps, seconds)
    }

    /// Forgets connections and session affinity, for tests and benchmarks that begin anew.
    /// Connections that are translated break.
    pub fn forget_flows(&self) -> io::Result<()> {
        flows::forget(&self.maps)
    }

    /// Runs a program on a packet without attaching it (`BPF_PROG_TEST_RUN`), `repeat` times.
    /// `context`: a `struct xdp_md` or `struct __sk_buff` as bytes, or empty.
    pub fn test_run(&self, program: &str, packet: &[u8], context: &[u8], repeat: u32) -> io::Result<TestRun> {
        sys::test_run(self.program(program)?, packet, context, repeat)
    }

    /// The programs' own log; it can be taken once.
    pub fn take_log(&mut self) -> Result<DatapathLog, LoadError> {
        self.programs.take_log()
    }

    /// Size and verification cost of each program.
    pub fn program_statistics(&self) -> io::Result<Vec<ProgramStatistics>> {
        self.programs.statistics()
    }

    fn program(&self, name: &str) -> io::Result<BorrowedFd<'_>> {
        self.programs
            .get(name)
            .ok_or_else(|| io::Error::new(io::ErrorKind::NotFound, format!("no program {name}")))
    }
}
