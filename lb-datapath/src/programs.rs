//! Loads the programs: settings, map sizes, reuse of pinned maps, verification.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::{Path, PathBuf};

use aya::programs::{CgroupSock, CgroupSockAddr, Program, ProgramFd, SchedClassifier, Xdp};
use aya::{Btf, Ebpf, EbpfLoader};
use aya_log::EbpfLogger;
use aya_obj::Object;
use rustix::process::{Resource, Rlimit, setrlimit};

use lb_common::layout::FlowTimeouts;

use crate::features::Features;
use crate::handles::MapHandles;
use crate::own_maps::{Shape, is_of_events, is_of_handover, is_pinned, map_sizes, shape};
use crate::pins::Pins;
use crate::refused_program::RefusedProgram;
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

/// The program that ends connections that are over. The agent runs it.
pub(crate) const SWEEP: &str = "lb_sweep";

/// An XDP program that does almost nothing. Benchmarks compare the other programs with it.
const FLOOR: &str = "lb_floor";

/// The programs that `lb explain` runs: for a packet that arrives at a device, and for a call at a
/// socket.
pub(crate) const PACKET_RECORDER: &str = "lb_tc_ingress";
pub(crate) const CALL_RECORDER: &str = "lb_explain_call";

/// The options with which the programs are loaded.
#[derive(Debug, Clone)]
pub struct LoadOptions {
    /// The least sizes of the maps. Pinned maps that have more entries stay larger.
    pub sizes: MapSizes,
    /// The memory in bytes up to which maps become larger than `sizes`.
    pub map_memory: usize,
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
    /// The time in milliseconds for which XDP sends packets to a neighbour before it leaves one to
    /// the kernel, which then checks the neighbour. With 0, XDP leaves none.
    pub neighbour_check_ms: u32,
    /// Whether the kernel accepts packets of this node's own that arrive by the loopback device.
    /// Then it fragments IPv4 packets that do not fit their path.
    pub kernel_fragments: bool,
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
    Refused(Box<RefusedProgram>),
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
    /// To serve while the maps of an earlier agent are converted.
    Convert,
}

impl Purpose {
    /// Returns whether this program is loaded.
    fn loads(self, program: &str, features: &Features) -> bool {
        let xdp_of_other_kernels = if features.xdp_frags { XDP_LINEAR } else { XDP };
        match self {
            Self::Serve => ![xdp_of_other_kernels, CALL_RECORDER, FLOOR].contains(&program),
            Self::Test => ![xdp_of_other_kernels, CALL_RECORDER].contains(&program),
            Self::Record => [PACKET_RECORDER, CALL_RECORDER].contains(&program),
            Self::Convert => {
                ![xdp_of_other_kernels, CALL_RECORDER, FLOOR, ITERATOR, SWEEP].contains(&program)
            }
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
    kernel_fragments: u8,
    recording: u8,
    converting: u8,
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
            kernel_fragments: (options.kernel_fragments && features.check_mtu).into(),
            recording: (purpose == Purpose::Record).into(),
            converting: (purpose == Purpose::Convert).into(),
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
            .override_global("KERNEL_FRAGMENTS", &self.kernel_fragments, true)
            .override_global("RECORDING", &self.recording, true)
            .override_global("CONVERTING", &self.converting, true)
            .override_global("AYA_LOG_LEVEL", &self.log_level, false);
    }
}

/// Creates the maps. With `pins`, pinned maps are reused, and new ones are pinned.
fn create_maps(
    options: &LoadOptions,
    features: &Features,
    btf: Option<&Btf>,
    pins: Option<&Pins>,
    purpose: Purpose,
) -> Result<Ebpf, LoadError> {
    let globals = Globals::new(options, features, purpose);
    let object = object()?;
    let mut loader = EbpfLoader::new();
    loader.btf(btf);
    globals.set_in(&mut loader);
    if let Some(pins) = pins {
        pin_maps(&mut loader, &object, pins, purpose)?;
    }
    for (name, size) in map_sizes(&options.sizes) {
        loader.map_max_entries(name, size);
    }
    loader.load(programs_object()).map_err(|error| LoadError::Load(Box::new(error)))
}

/// Parses the compiled programs.
pub(crate) fn object() -> Result<Object, LoadError> {
    Object::parse(programs_object()).map_err(|error| LoadError::Object(error.to_string()))
}

/// Sets the path of the pin of each map. Fails if a pinned map does not fit.
fn pin_maps<'a>(
    loader: &mut EbpfLoader<'a>,
    object: &'a Object,
    pins: &Pins,
    purpose: Purpose,
) -> Result<(), LoadError> {
    for (name, map) in &object.maps {
        let path = match purpose {
            Purpose::Convert if is_of_handover(name) => pins.handover(name),
            Purpose::Record if is_of_events(name) => continue,
            _ if is_pinned(name) => pins.map(name),
            _ => continue,
        };
        let is_there = fits(&path, shape(map))?;
        if !is_there && purpose == Purpose::Record {
            return Err(LoadError::NoMaps(pins.root().to_owned()));
        }
        loader.map_pin_path(name, path);
    }
    Ok(())
}

/// Returns whether a map is pinned at `path`. Returns an error if it has another shape.
fn fits(path: &Path, expected: Shape) -> Result<bool, LoadError> {
    let failed = |source| LoadError::Map { map: path.display().to_string(), source };
    let map = match sys::open_pin(path) {
        Ok(map) => map,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
        Err(error) => return Err(failed(error)),
    };
    let info = sys::map_info(map.as_fd()).map_err(failed)?;
    let found = Shape {
        map_type: info.type_,
        key_size: info.key_size,
        value_size: info.value_size,
        flags: info.map_flags,
    };
    if found != expected {
        let (found, expected) = (found.to_string(), expected.to_string());
        return Err(LoadError::Layout { path: path.to_owned(), found, expected });
    }
    Ok(true)
}

/// Loads the programs for this purpose. Returns those that the kernel refuses.
fn load_programs(
    ebpf: &mut Ebpf,
    features: &mut Features,
    btf: Option<&Btf>,
    purpose: Purpose,
) -> Vec<RefusedProgram> {
    let mut programs: Vec<_> =
        ebpf.programs_mut().filter(|(name, _)| purpose.loads(name, features)).collect();
    // A fixed order, because refused programs are reported in this order.
    programs.sort_by_key(|(name, _)| *name);
    let mut refusals = Vec::new();
    for (name, program) in programs {
        let Err(error) = load_program(program, btf) else { continue };
        let refusal = RefusedProgram::new(name, &features.kernel, &error);
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
    pub refusals: Vec<RefusedProgram>,
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

    /// Loads the programs that serve while the maps of an earlier agent are converted. Their maps
    /// are pinned in the staging folder `pins`.
    pub fn load_converting(options: &LoadOptions, pins: &Pins) -> Result<Self, LoadError> {
        Self::load_for(options, Some(pins), Purpose::Convert)
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
        Program::CgroupSock(program) => CgroupSock::load(program),
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
        | Map::ProgramArray(data)
        | Map::Unsupported(data) => data.fd().as_fd(),
        _ => unreachable!("lb-ebpf has maps of the kinds above only (lb-ebpf/src/maps.rs)"),
    }
}
