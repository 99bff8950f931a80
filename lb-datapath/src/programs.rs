//! Loads the programs: settings, map sizes, reuse of pinned maps, verification.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use aya::programs::{CgroupSockAddr, Program, ProgramFd, SchedClassifier, Xdp};
use aya::{Btf, Ebpf, EbpfLoader};
use aya_log::EbpfLogger;
use aya_obj::Object;
use rustix::process::{Resource, Rlimit, setrlimit};

use lb_common::layout::FlowTimeouts;

use crate::features::Features;
use crate::handles::MapHandles;
use crate::pins::Pins;
use crate::refusal::Refusal;
use crate::sizes::MapSizes;
use crate::sys;

/// Returns the compiled kernel programs (lb-ebpf). build.rs compiles them.
#[cfg(not(feature = "object-from-file"))]
fn programs_object() -> &'static [u8] {
    static OBJECT: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/lb-ebpf.o"));
    OBJECT
}

/// Returns the content of the file that the variable `SLUICE_OBJECT` names.
#[cfg(feature = "object-from-file")]
fn programs_object() -> &'static [u8] {
    static OBJECT: std::sync::LazyLock<Vec<u8>> = std::sync::LazyLock::new(|| {
        let path = std::env::var("SLUICE_OBJECT").expect("SLUICE_OBJECT names an object");
        std::fs::read(&path).unwrap_or_else(|error| panic!("{path}: {error}"))
    });
    &OBJECT
}

/// The XDP program, and its variant for kernels without multi-buffer frames.
const XDP: &str = "lb_xdp";
const XDP_LINEAR: &str = "lb_xdp_linear";

/// The iterator program that lists connected sockets.
pub(crate) const ITERATOR: &str = "lb_connected";

/// An XDP program that does almost nothing. Benchmarks compare the other programs with it.
const FLOOR: &str = "lb_floor";

/// The programs that `lb explain` runs: for a packet that arrives at a device, and for a call at a
/// socket.
pub(crate) const PACKET_RECORDER: &str = "lb_tc_ingress";
pub(crate) const CALL_RECORDER: &str = "lb_explain_call";

/// Maps that are not pinned: no other process reads them, and they need not outlive the programs.
const UNPINNED: [&str; 10] = [
    "SCRATCH_V4",
    "SCRATCH_V6",
    "FLOW_KEYS_V4",
    "FLOW_KEYS_V6",
    "ROUTES_V4",
    "ROUTES_V6",
    "NEIGHBOUR_CHECKS",
    "ANSWER_LIMITS",
    "AYA_LOGS",
    "RECORD",
];

/// The options with which the programs are loaded.
#[derive(Debug, Clone)]
pub struct LoadOptions {
    pub sizes: MapSizes,
    /// First and last port for rewritten source addresses.
    pub snat_ports: (u16, u16),
    /// The timeouts of idle connections.
    pub flow_timeouts: FlowTimeouts,
    /// The log level of the programs: 0 off, 1 error … 5 trace.
    pub log_level: u8,
    pub tc_attach: TcAttach,
    /// Whether processes in this network namespace are prevented from binding the ports of
    /// NodePorts.
    pub protect_node_ports: bool,
    /// Whether socket programs translate only for processes in this network namespace.
    pub host_sockets_only: bool,
    /// For how many milliseconds XDP sends packets to a neighbour before it leaves one to the
    /// kernel, which then checks the neighbour. 0: it leaves none.
    pub neighbour_check_ms: u32,
}

/// How tc programs are attached.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum TcAttach {
    /// As tcx links if the kernel supports them, otherwise as clsact filters.
    #[default]
    Auto,
    /// As tcx links, before the programs of others. Fails if the kernel does not support them.
    Tcx,
    /// As filters on a clsact queueing discipline, on any kernel.
    Clsact,
}

#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    #[error(
        "cannot make {path}: {source} (is a BPF file system mounted there? `mount -t bpf bpf /sys/fs/bpf`)"
    )]
    PinFolder { path: PathBuf, source: io::Error },
    #[error("the kernel programs inside this binary are damaged: {0}")]
    Object(String),
    #[error("loading the kernel programs: {0}")]
    Load(#[from] Box<aya::EbpfError>),
    #[error("{0}")]
    Refused(Box<Refusal>),
    #[error("the log of the kernel programs: {0}")]
    Log(String),
    #[error("there are no maps of a running Sluice in {}", .0.display())]
    NoMaps(PathBuf),
    #[error("map {map}: {source}")]
    Map { map: String, source: io::Error },
    #[error(
        "the pinned map {path} has another layout ({found}, this version of lb has {expected}): \
         stop what uses it, run `lb cleanup` and start again"
    )]
    Layout { path: PathBuf, found: String, expected: String },
}

/// Type, key size, value size and flags of a map. They must agree before a pinned map is reused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Shape {
    map_type: u32,
    key_size: u32,
    value_size: u32,
    flags: u32,
}

impl std::fmt::Display for Shape {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { map_type, key_size, value_size, flags } = self;
        write!(f, "type {map_type}, {key_size} byte keys, {value_size} byte values, flags {flags:#x}")
    }
}

/// Size and verification cost of a program.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ProgramStatistics {
    pub name: String,
    /// The number of instructions that the verifier checked, over all paths. 0 on kernels before
    /// 5.16.
    pub verified_instructions: u32,
    /// The size in bytes of eBPF, after the rewrites of the verifier.
    pub translated_bytes: u32,
    /// The size in bytes of machine code.
    pub machine_code_bytes: u32,
}

/// The reader of the programs' log. Its descriptor (`AsFd`) is readable when there are records.
/// [`EbpfLogger::flush`] writes them to the log.
pub type DatapathLog = EbpfLogger<&'static dyn log::Log>;

/// The purpose for which programs are loaded.
#[derive(Copy, Clone, PartialEq, Eq)]
enum Purpose {
    Serve,
    /// For tests and benchmarks.
    Test,
    /// For `lb explain`.
    Record,
}

impl Purpose {
    /// Returns whether this program is loaded.
    fn wants(self, program: &str, features: &Features) -> bool {
        let xdp_of_other_kernels = if features.xdp_frags { XDP_LINEAR } else { XDP };
        match self {
            Self::Serve => ![xdp_of_other_kernels, CALL_RECORDER, FLOOR].contains(&program),
            Self::Test => ![xdp_of_other_kernels, CALL_RECORDER].contains(&program),
            Self::Record => [PACKET_RECORDER, CALL_RECORDER].contains(&program),
        }
    }
}

/// The read-only globals of the programs (lb-ebpf/src/settings.rs).
struct Globals {
    snat_port_first: u16,
    snat_port_count: u16,
    flow_records: u32,
    fib_source: u8,
    set_retval: u8,
    coarse_clock: u8,
    xdp_frags: u8,
    protect_node_ports: u8,
    netns_cookie: u64,
    host_sockets_only: u8,
    neighbour_check_ms: u32,
    recording: u8,
    log_level: u8,
}

impl Globals {
    fn new(options: &LoadOptions, features: &Features, purpose: Purpose) -> Self {
        let (first, last) = options.snat_ports;
        Self {
            snat_port_first: first,
            snat_port_count: last - first + 1,
            flow_records: options.sizes.max_flows,
            fib_source: features.fib_source.into(),
            set_retval: features.set_retval.into(),
            coarse_clock: features.coarse_clock.into(),
            xdp_frags: features.xdp_frags.into(),
            protect_node_ports: options.protect_node_ports.into(),
            netns_cookie: features.netns_cookie.unwrap_or(0),
            host_sockets_only: options.host_sockets_only.into(),
            neighbour_check_ms: options.neighbour_check_ms,
            recording: (purpose == Purpose::Record).into(),
            log_level: options.log_level,
        }
    }

    fn set_in<'a>(&'a self, loader: &mut EbpfLoader<'a>) {
        loader
            .override_global("SNAT_PORT_FIRST", &self.snat_port_first, true)
            .override_global("SNAT_PORT_COUNT", &self.snat_port_count, true)
            .override_global("FLOW_RECORDS", &self.flow_records, true)
            .override_global("HAS_FIB_SOURCE", &self.fib_source, true)
            .override_global("HAS_SET_RETVAL", &self.set_retval, true)
            .override_global("HAS_COARSE_CLOCK", &self.coarse_clock, true)
            .override_global("HAS_XDP_FRAGS", &self.xdp_frags, true)
            .override_global("PROTECT_NODE_PORTS", &self.protect_node_ports, true)
            .override_global("NODE_NETNS_COOKIE", &self.netns_cookie, true)
            .override_global("HOST_SOCKETS_ONLY", &self.host_sockets_only, true)
            .override_global("NEIGHBOUR_CHECK_MS", &self.neighbour_check_ms, true)
            .override_global("RECORDING", &self.recording, true)
            .override_global("AYA_LOG_LEVEL", &self.log_level, false);
    }
}

/// Creates the maps. With `pins`, pinned maps are reused, and new ones are pinned. A pinned map of
/// another size is replaced by a new one with the same entries.
fn create_maps(
    options: &LoadOptions,
    features: &Features,
    btf: Option<&Btf>,
    pins: Option<&Pins>,
    purpose: Purpose,
) -> Result<Ebpf, LoadError> {
    let globals = Globals::new(options, features, purpose);
    let mut sizes: Vec<(&str, u32)> = map_sizes(&options.sizes).to_vec();
    let object = Object::parse(programs_object()).map_err(|error| LoadError::Object(error.to_string()))?;
    let mut loader = EbpfLoader::new();
    loader.btf(btf);
    globals.set_in(&mut loader);
    let outgrown = match pins {
        Some(pins) => pin_maps(&mut loader, &object, &mut sizes, pins, purpose)?,
        None => Vec::new(),
    };
    for (name, size) in sizes {
        loader.map_max_entries(name, size);
    }
    match loader.load(programs_object()) {
        Ok(ebpf) => {
            outgrown.iter().try_for_each(Outgrown::copy_into_successor)?;
            Ok(ebpf)
        }
        Err(error) => {
            outgrown.into_iter().for_each(Outgrown::put_back);
            Err(LoadError::Load(Box::new(error)))
        }
    }
}

/// Sets the path of the pin of each map. Returns the pinned maps that have another size.
fn pin_maps<'a>(
    loader: &mut EbpfLoader<'a>,
    object: &'a Object,
    sizes: &mut [(&str, u32)],
    pins: &Pins,
    purpose: Purpose,
) -> Result<Vec<Outgrown>, LoadError> {
    let mut outgrown = Vec::new();
    for (name, map) in &object.maps {
        // Constants (.rodata, .rodata.cst16) belong to one load, and the kernel refuses names with
        // a dot for pins.
        if name.starts_with('.') || UNPINNED.contains(&name.as_str()) {
            continue;
        }
        let path = pins.map(name);
        let wanted = sizes.iter_mut().find(|(sized, _)| sized == name);
        match (reusable(&path, map)?, wanted) {
            (None, _) if purpose == Purpose::Record => {
                return Err(LoadError::NoMaps(pins.root().to_owned()));
            }
            (Some(pinned), Some((_, size))) if *size != pinned.capacity && purpose == Purpose::Serve => {
                outgrown.push(Outgrown::set_aside(path.clone(), pinned.fd)?);
            }
            _ => {}
        }
        loader.map_pin_path(name, path);
    }
    Ok(outgrown)
}

/// Loads the programs for this purpose. Returns those that the kernel refuses.
fn load_programs(
    ebpf: &mut Ebpf,
    features: &mut Features,
    btf: Option<&Btf>,
    purpose: Purpose,
) -> Vec<Refusal> {
    let mut programs: Vec<_> =
        ebpf.programs_mut().filter(|(name, _)| purpose.wants(name, features)).collect();
    // A fixed order, because refused programs are reported in this order.
    programs.sort_by_key(|(name, _)| *name);
    let mut refusals = Vec::new();
    for (name, program) in programs {
        let Err(error) = load_program(program, btf) else { continue };
        let refusal = Refusal::new(name, &features.kernel, &error);
        if name == ITERATOR && refusal.lacks("bpf_get_socket_cookie") {
            features.iterator_cookie = false;
        } else {
            refusals.push(refusal);
        }
    }
    refusals
}

/// The loaded programs.
pub struct Programs {
    ebpf: Ebpf,
    pub features: Features,
    /// The programs that the kernel has refused, by name.
    pub refusals: Vec<Refusal>,
    /// Whether tc programs are attached as links, not as filters.
    pub tcx: bool,
}

impl Programs {
    /// Loads all programs. With `pins`, pinned maps are reused and new ones are pinned.
    pub fn load(options: &LoadOptions, pins: Option<&Pins>) -> Result<Self, LoadError> {
        Self::load_for(options, pins, Purpose::Serve)
    }

    /// Loads all programs on private maps, and the program with which benchmarks compare.
    pub fn load_for_tests(options: &LoadOptions) -> Result<Self, LoadError> {
        Self::load_for(options, None, Purpose::Test)
    }

    /// Loads the programs of `lb explain`, which record their decisions. With `pins`, all pinned
    /// maps must exist, and they are not changed.
    pub fn load_recorder(options: &LoadOptions, pins: Option<&Pins>) -> Result<Self, LoadError> {
        Self::load_for(options, pins, Purpose::Record)
    }

    fn load_for(options: &LoadOptions, pins: Option<&Pins>, purpose: Purpose) -> Result<Self, LoadError> {
        unlimited_locked_memory();
        let mut features = Features::probe();
        let btf = Btf::from_sys_fs().ok();
        let mut ebpf = create_maps(options, &features, btf.as_ref(), pins, purpose)?;
        let mut refusals = load_programs(&mut ebpf, &mut features, btf.as_ref(), purpose);
        if purpose == Purpose::Record
            && let Some(refusal) = refusals.pop()
        {
            return Err(LoadError::Refused(Box::new(refusal)));
        }
        let tcx = match options.tc_attach {
            TcAttach::Auto => features.tcx,
            TcAttach::Tcx => true,
            TcAttach::Clsact => false,
        };
        Ok(Self { ebpf, features, refusals, tcx })
    }

    pub fn get(&self, name: &str) -> Option<BorrowedFd<'_>> {
        self.ebpf.program(name).and_then(|program| program_fd(program)).map(AsFd::as_fd)
    }

    /// Returns whether all required socket programs are loaded. `getpeername` is not required.
    pub fn serves_sockets(&self) -> bool {
        const NEEDED: [&str; 6] =
            ["lb_connect4", "lb_connect6", "lb_sendmsg4", "lb_sendmsg6", "lb_recvmsg4", "lb_recvmsg6"];
        NEEDED.iter().all(|name| self.get(name).is_some())
    }

    /// Returns the name of the XDP program for this kernel.
    pub fn xdp_name(&self) -> &'static str {
        if self.features.xdp_frags { XDP } else { XDP_LINEAR }
    }

    /// Returns a tc program, to attach it as a clsact filter.
    pub fn classifier(&mut self, name: &str) -> Result<&mut SchedClassifier, aya::programs::ProgramError> {
        match self.ebpf.program_mut(name) {
            Some(Program::SchedClassifier(program)) => Ok(program),
            _ => Err(aya::programs::ProgramError::UnexpectedProgramType),
        }
    }

    /// Returns the reader of the programs' log, which writes to the `log` crate. `tracing` collects
    /// these records. This can be called only once.
    pub fn take_log(&mut self) -> Result<DatapathLog, LoadError> {
        EbpfLogger::init(&mut self.ebpf).map_err(|error| LoadError::Log(error.to_string()))
    }

    pub fn map_handles(&self) -> Result<MapHandles, LoadError> {
        let mut handles = MapHandles::default();
        for (name, map) in self.ebpf.maps() {
            let fd = map_fd(map).try_clone_to_owned();
            handles.insert(name, fd.map_err(|source| LoadError::Map { map: name.to_owned(), source })?);
        }
        Ok(handles)
    }

    pub fn statistics(&self) -> io::Result<Vec<ProgramStatistics>> {
        let mut all = Vec::new();
        for (name, program) in self.ebpf.programs() {
            let Some(fd) = program_fd(program) else { continue };
            let info = sys::program_info(fd.as_fd())?;
            all.push(ProgramStatistics {
                name: name.to_owned(),
                verified_instructions: info.verified_insns,
                translated_bytes: info.xlated_prog_len,
                machine_code_bytes: info.jited_prog_len,
            });
        }
        all.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(all)
    }
}

/// Raises the limit of locked memory. Before Linux 5.11, maps and programs count as locked memory,
/// and the default limit is 64 KiB.
fn unlimited_locked_memory() {
    let unlimited = Rlimit { current: None, maximum: None };
    // Without the privilege for this, loading fails too, with a better error.
    let _ = setrlimit(Resource::Memlock, unlimited);
}

fn load_program(program: &mut Program, btf: Option<&Btf>) -> Result<(), aya::programs::ProgramError> {
    match program {
        Program::Xdp(program) => Xdp::load(program),
        Program::SchedClassifier(program) => SchedClassifier::load(program),
        Program::CgroupSockAddr(program) => CgroupSockAddr::load(program),
        Program::Iter(program) => match btf {
            Some(btf) => program.load("bpf_sk_storage_map", btf),
            None => Ok(()), // Features::missing() reports it.
        },
        _ => Ok(()),
    }
}

fn program_fd(program: &Program) -> Option<&ProgramFd> {
    program.fd().ok()
}

fn map_fd(map: &aya::maps::Map) -> BorrowedFd<'_> {
    use aya::maps::Map;
    match map {
        Map::Array(data)
        | Map::PerCpuArray(data)
        | Map::HashMap(data)
        | Map::LruHashMap(data)
        | Map::LpmTrie(data)
        | Map::SkStorage(data)
        | Map::RingBuf(data)
        | Map::Unsupported(data) => data.fd().as_fd(),
        _ => unreachable!("lb-ebpf has maps of the kinds above only (lb-ebpf/src/maps.rs)"),
    }
}

/// The number of addresses that a node can have in each IP family.
const NODE_ADDRESSES: u32 = 1024;

/// Returns the maps whose size depends on the configuration.
fn map_sizes(sizes: &MapSizes) -> [(&'static str, u32); 21] {
    // The engine limits the addresses of Services. The addresses of the node need extra room.
    let addresses = sizes.max_services + NODE_ADDRESSES;
    // Each connection has one entry for each direction.
    let index = sizes.max_flows * 2;
    [
        ("SERVICES_V4", sizes.max_services),
        ("SERVICES_V6", sizes.max_services),
        ("SERVICE_NAMES", sizes.max_services),
        ("CURSORS", sizes.max_services),
        ("ADDRESSES_V4", addresses),
        ("ADDRESSES_V6", addresses),
        ("SLOTS", sizes.max_slots),
        ("BACKENDS_V4", sizes.max_backends),
        ("BACKENDS_V6", sizes.max_backends),
        ("FLOWS_V4", sizes.max_flows),
        ("FLOWS_V6", sizes.max_flows),
        ("FLOW_INDEX_V4", index),
        ("FLOW_INDEX_V6", index),
        ("FRAGMENTS_V4", sizes.max_fragments),
        ("FRAGMENTS_V6", sizes.max_fragments),
        ("SOCKET_PEERS_V4", sizes.max_socket_peers),
        ("SOCKET_PEERS_V6", sizes.max_socket_peers),
        ("SOURCE_RANGES_V4", sizes.max_source_ranges),
        ("SOURCE_RANGES_V6", sizes.max_source_ranges),
        ("AFFINITY", sizes.max_affinity),
        ("AYA_LOGS", 1 << 17),
    ]
}

/// A pinned map that can be reused.
struct Pinned {
    fd: OwnedFd,
    capacity: u32,
}

/// Returns the map pinned at `path`, if there is one. Returns an error if it does not match `map`.
fn reusable(path: &Path, map: &aya_obj::maps::Map) -> Result<Option<Pinned>, LoadError> {
    let failed = |source| LoadError::Map { map: path.display().to_string(), source };
    let fd = match sys::open_pin(path) {
        Ok(fd) => fd,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(failed(error)),
    };
    let info = sys::map_info(fd.as_fd()).map_err(failed)?;
    let found = Shape {
        map_type: info.type_,
        key_size: info.key_size,
        value_size: info.value_size,
        flags: info.map_flags,
    };
    let expected = Shape {
        map_type: map.map_type(),
        key_size: map.key_size(),
        value_size: map.value_size(),
        flags: map.map_flags(),
    };
    if found != expected {
        let (found, expected) = (found.to_string(), expected.to_string());
        return Err(LoadError::Layout { path: path.to_owned(), found, expected });
    }
    Ok(Some(Pinned { fd, capacity: info.max_entries }))
}

/// A pinned map that is replaced by one of another size, because the configuration has changed.
struct Outgrown {
    path: PathBuf,
    old: OwnedFd,
}

impl Outgrown {
    /// Moves the pin of the map, so that the loader creates a new map. Attached programs keep the
    /// old map.
    fn set_aside(path: PathBuf, old: OwnedFd) -> Result<Self, LoadError> {
        std::fs::remove_file(&path)
            .map_err(|source| LoadError::Map { map: path.display().to_string(), source })?;
        Ok(Self { path, old })
    }

    fn put_back(self) {
        // The new map may be pinned already. The attached programs use the old one.
        let _ = std::fs::remove_file(&self.path);
        let _ = sys::pin(self.old.as_fd(), &self.path);
    }

    /// Copies the entries. Entries that the old programs write during the copy, and those that
    /// exceed the new size, are lost. They belong to new connections, which clients open again.
    fn copy_into_successor(&self) -> Result<(), LoadError> {
        let failed = |source| LoadError::Map { map: self.path.display().to_string(), source };
        let new = sys::open_pin(&self.path).map_err(failed)?;
        sys::copy_entries(self.old.as_fd(), new.as_fd()).map_err(failed)
    }
}
