//! Attaches programs. Each attachment is a pinned link (cgroup, XDP, tcx). On kernels without tcx,
//! tc programs are clsact filters with a fixed priority and handle.
//!
//! | pin | attachment |
//! |---|---|
//! | `cgroup-connect4` … | socket programs of the one cgroup |
//! | `xdp-<ifindex>` | XDP program of a device |
//! | `tc-ingress-<ifindex>`, `tc-egress-<ifindex>` | tc programs of a device |

use std::fs::{File, Metadata};
use std::io;
use std::os::fd::{AsFd as _, AsRawFd as _, BorrowedFd, OwnedFd};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use aya::programs::tc::{NlOptions, SchedClassifierLink, TcAttachOptions, TcError, TcHandle};
use aya::programs::{ProgramError, SchedClassifier, TcAttachType, tc};
use aya_obj::generated::bpf_link_info;

use crate::attachments::program_name;
use crate::drift::{Drift, DriftKind};
use crate::filters::{TcFilter, tc_filters};
use crate::hooks;
use crate::programs::Programs;
use crate::sys;

/// Native XDP: the driver runs the program (`XDP_FLAGS_DRV_MODE`). Generic XDP is slower than tc,
/// so it is not used.
const XDP_NATIVE: u32 = 1 << 2;
/// First in the chain (`BPF_F_BEFORE`), as with clsact. A program of a CNI may end the chain, so
/// that programs behind it see no packets.
const TCX_FIRST: u32 = 1 << 3;
/// The priority of clsact filters. They run before the filters of the CNI.
const CLSACT_PRIORITY: u16 = 1;
/// The handle of clsact filters: the letters "SLCE" identify filters of Sluice.
const CLSACT_HANDLE: TcHandle = TcHandle::new(0x534c, 0x4345);

#[derive(Debug, thiserror::Error)]
pub enum AttachError {
    #[error("programs on private maps cannot be attached")]
    Private,
    #[error("cannot open cgroup {path}: {source}")]
    OpenCgroup { path: PathBuf, source: io::Error },
    #[error("cannot attach {hook} to cgroup {path}: {source}{}", cgroup_hint(source))]
    Cgroup { hook: &'static str, path: PathBuf, source: io::Error },
    #[error("cannot attach {hook} to {device}: {source}")]
    Device { hook: &'static str, device: String, source: io::Error },
    #[error(
        "cannot attach a clsact filter to {device}: {source} (the kernel needs CONFIG_NET_SCH_INGRESS and \
         CONFIG_NET_CLS_BPF: try `modprobe --all sch_ingress cls_bpf`)"
    )]
    Clsact { device: String, source: Box<ProgramError> },
    #[error("this kernel has no tc filters")]
    NoFilters,
    #[error("{path}: {source}")]
    Pin { path: PathBuf, source: io::Error },
}

fn cgroup_hint(error: &io::Error) -> &'static str {
    match error.raw_os_error() {
        Some(libc::EBADF) => " (is it a cgroup-v2 folder? `mount -t cgroup2`)",
        Some(libc::EINVAL) => " (is it a cgroup-v2 folder, and does the kernel have CONFIG_CGROUP_BPF?)",
        Some(libc::EPERM) => " (a program that allows no others is attached above or below it)",
        _ => "",
    }
}

/// The result of attaching to a device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Attached {
    Programs {
        /// Whether an XDP program is attached. If not, tc programs translate all packets.
        xdp: bool,
        /// The hooks, and the reason if XDP is not used, for the log.
        how: String,
    },
    /// No program can be attached, for this reason. The programs of an earlier agent stay attached.
    Nothing { reason: String },
}

/// The reason why nothing is attached on a kernel that has neither tcx nor clsact filters.
const NO_FILTERS: &str = "the kernel has no tc filters (CONFIG_NET_SCH_INGRESS, CONFIG_NET_CLS_BPF); remedy: \
                          `modprobe --all sch_ingress cls_bpf`, then restart the agent";

/// The attachments of one agent.
pub struct Links {
    folder: PathBuf,
    /// The kernel has shown that it has no tc filters.
    no_filters: bool,
}

/// A hook for tc programs.
struct TcHook {
    name: &'static str,
    tcx: u32,
    clsact: TcAttachType,
    /// Programs for devices with and without Ethernet headers.
    programs: [&'static str; 2],
}

const TC_INGRESS: TcHook = TcHook {
    name: "tc-ingress",
    tcx: hooks::TCX_INGRESS,
    clsact: TcAttachType::Ingress,
    programs: ["lb_tc_ingress", "lb_tc_ingress_l3"],
};

const TC_EGRESS: TcHook = TcHook {
    name: "tc-egress",
    tcx: hooks::TCX_EGRESS,
    clsact: TcAttachType::Egress,
    programs: ["lb_tc_egress", "lb_tc_egress_l3"],
};

/// A device to attach to.
#[derive(Debug, Clone, Copy)]
pub struct TargetDevice<'a> {
    pub ifindex: u32,
    pub name: &'a str,
    /// Whether XDP is attached too, if the driver supports it.
    pub xdp: bool,
    /// Whether frames begin with the IP header.
    pub layer3: bool,
}

impl Links {
    pub fn new(folder: PathBuf) -> Self {
        Self { folder, no_filters: false }
    }

    fn pin_path(&self, hook: &str, ifindex: u32) -> PathBuf {
        self.folder.join(format!("{hook}-{ifindex}"))
    }

    pub fn attach_cgroup(&mut self, programs: &Programs, path: &Path) -> Result<(), AttachError> {
        let open = |source| AttachError::OpenCgroup { path: path.to_owned(), source };
        let cgroup = File::open(path).map_err(open)?;
        let at = cgroup_at(&cgroup.metadata().map_err(open)?);
        for (program, attach_type, hook) in hooks::CGROUP {
            let failed = |source| AttachError::Cgroup { hook, path: path.to_owned(), source };
            // The kernel refuses this program. Sockets are served without it.
            let Some(program) = programs.get(program) else { continue };
            replace(&self.folder.join(hook), program, &at, || {
                sys::create_link(program, cgroup.as_raw_fd() as u32, attach_type, 0)
            })
            .map_err(failed)?;
        }
        Ok(())
    }

    pub fn detach_cgroup(&mut self) -> Result<(), AttachError> {
        hooks::CGROUP.iter().try_for_each(|(_, _, hook)| remove_pin(&self.folder.join(hook)))
    }

    /// Attaches to a device, or replaces what is attached.
    ///
    /// The egress program comes first. With ingress alone, requests would be translated and their
    /// replies would not. If the egress program cannot be attached, the others are detached.
    pub fn attach_device(
        &mut self,
        programs: &mut Programs,
        device: TargetDevice<'_>,
    ) -> Result<Attached, AttachError> {
        if let Some(refused) = refused(programs, device.layer3) {
            return Ok(Attached::Nothing { reason: format!("the kernel refuses {refused}") });
        }
        if let Err(error) = self.attach_tc(programs, &TC_EGRESS, device) {
            if matches!(error, AttachError::NoFilters) {
                self.no_filters = true;
                return Ok(Attached::Nothing { reason: NO_FILTERS.to_owned() });
            }
            // The link of an earlier agent stays if its program could not be replaced.
            if sys::open_pin(&self.pin_path(TC_EGRESS.name, device.ifindex)).is_err() {
                self.detach_ingress(device)?;
            }
            return Err(error);
        }
        self.attach_tc(programs, &TC_INGRESS, device)?;
        let (mut with_xdp, mut how) = (false, String::new());
        if device.xdp {
            match self.attach_xdp(programs, device.ifindex) {
                Ok(()) => (with_xdp, how) = (true, "XDP and ".into()),
                Err(error) => how = format!("(no XDP: {}) ", xdp_reason(&error)),
            }
        } else {
            remove_pin(&self.pin_path("xdp", device.ifindex))?;
        }
        if programs.tcx {
            detach_clsact(device.ifindex);
            how.push_str("tcx");
            for hook in [&TC_INGRESS, &TC_EGRESS] {
                how.push_str(&other_programs(hook, device.name));
            }
        } else {
            how.push_str("clsact");
        }
        Ok(Attached::Programs { xdp: with_xdp, how })
    }

    fn attach_tc(
        &self,
        programs: &mut Programs,
        hook: &TcHook,
        device: TargetDevice<'_>,
    ) -> Result<(), AttachError> {
        let program = hook.programs[usize::from(device.layer3)];
        if programs.tcx {
            return self.attach_tcx(programs, hook, program, device.ifindex).map_err(|source| {
                AttachError::Device { hook: hook.name, device: device.name.to_owned(), source }
            });
        }
        attach_clsact(programs, hook, program, device)?;
        // An earlier agent may have used tcx. Two programs would see each packet.
        remove_pin(&self.pin_path(hook.name, device.ifindex))
    }

    /// Detaches the programs that translate requests: XDP and tc ingress.
    fn detach_ingress(&self, device: TargetDevice<'_>) -> Result<(), AttachError> {
        for hook in ["xdp", TC_INGRESS.name] {
            remove_pin(&self.pin_path(hook, device.ifindex))?;
        }
        // It is no error if there is no filter.
        let _ = clsact_link(&TC_INGRESS, device.name).map(aya::programs::Link::detach);
        Ok(())
    }

    fn attach_xdp(&self, programs: &Programs, ifindex: u32) -> io::Result<()> {
        let program = program_fd(programs, programs.xdp_name())?;
        replace(&self.pin_path("xdp", ifindex), program, xdp_at(ifindex), || {
            sys::create_link(program, ifindex, hooks::XDP, XDP_NATIVE)
        })
    }

    fn attach_tcx(&self, programs: &Programs, hook: &TcHook, program: &str, ifindex: u32) -> io::Result<()> {
        let program = program_fd(programs, program)?;
        // A program of another owner may have been attached before it. Then the link is made again:
        // for some microseconds no program of Sluice is attached.
        let attached = tcx_at(ifindex);
        let first = || sys::query_programs(ifindex, hook.tcx, 0).map(|ids| ids.first().copied());
        let at =
            |info: &bpf_link_info| attached(info) && first().is_ok_and(|first| first == Some(info.prog_id));
        replace(&self.pin_path(hook.name, ifindex), program, at, || {
            sys::create_link(program, ifindex, hook.tcx, TCX_FIRST)
        })
    }

    pub fn detach_device(&mut self, ifindex: u32) -> Result<(), AttachError> {
        for hook in ["xdp", "tc-ingress", "tc-egress"] {
            remove_pin(&self.pin_path(hook, ifindex))?;
        }
        detach_clsact(ifindex);
        Ok(())
    }

    /// Replaces the programs in all pinned links and in all filters, wherever they are attached.
    /// Attaches no program where there was none. Calls `replaced` after each of them.
    pub fn replace_all(
        &self,
        programs: &mut Programs,
        mut replaced: impl FnMut(),
    ) -> Result<usize, AttachError> {
        let mut count = 0;
        for path in self.pins()? {
            let failed = |source| AttachError::Pin { path: path.clone(), source };
            let link = sys::open_pin(&path).map_err(failed)?;
            let Some(name) = program_for(&path, link.as_fd(), programs) else { continue };
            let Some(program) = programs.get(name) else { continue };
            match sys::update_link(link.as_fd(), program) {
                Ok(()) => {
                    count += 1;
                    replaced();
                }
                // The device or the cgroup is removed.
                Err(error) if error.raw_os_error() == Some(libc::ENOLINK) => {}
                Err(source) => return Err(failed(source)),
            }
        }
        for device in sys::device_indices().into_iter().filter_map(sys::device_name) {
            let layer3 = !sys::has_ethernet(&device).unwrap_or(true);
            for hook in [&TC_INGRESS, &TC_EGRESS] {
                if replace_clsact(programs, hook, hook.programs[usize::from(layer3)], &device) {
                    count += 1;
                    replaced();
                }
            }
        }
        Ok(count)
    }

    /// Compares the programs of a device with those that [`Links::attach_device`] has attached.
    pub fn check_device(&self, programs: &Programs, device: TargetDevice<'_>) -> io::Result<Vec<Drift>> {
        let mut found = Vec::new();
        if self.no_filters
            || refused(programs, device.layer3).is_some()
            || sys::device_name(device.ifindex).as_deref() != Some(device.name)
        {
            return Ok(found);
        }
        if device.xdp {
            let program = program_id(programs, programs.xdp_name())?;
            let fault = link_fault(&self.pin_path("xdp", device.ifindex), program, xdp_at(device.ifindex));
            found.extend(fault.map(|fault| {
                Drift::new(DriftKind::Xdp, format!("the XDP program of {} {fault}", device.name))
            }));
        }
        for hook in [&TC_EGRESS, &TC_INGRESS] {
            let program = program_id(programs, hook.programs[usize::from(device.layer3)])?;
            let fault = match programs.tcx {
                true => self.tcx_fault(hook, program, device.ifindex)?,
                false => clsact_fault(hook, program, device.ifindex)?,
            };
            found.extend(fault.map(|fault| {
                let (kind, fault) = match fault {
                    TcFault::Absent(fault) => (DriftKind::Tc, fault),
                    TcFault::Behind(other) => (DriftKind::TcOrder, format!("runs after {other}")),
                };
                Drift::new(kind, format!("the {} program of {} {fault}", hook.name, device.name))
            }));
        }
        Ok(found)
    }

    fn tcx_fault(&self, hook: &TcHook, program: u32, ifindex: u32) -> io::Result<Option<TcFault>> {
        if let Some(fault) = link_fault(&self.pin_path(hook.name, ifindex), program, tcx_at(ifindex)) {
            return Ok(Some(TcFault::Absent(fault)));
        }
        let attached = sys::query_programs(ifindex, hook.tcx, 0)?;
        let first = attached.first().filter(|first| **first != program);
        Ok(first.map(|first| TcFault::Behind(program_name(*first))))
    }

    /// Compares the socket programs of a cgroup with those that [`Links::attach_cgroup`] has
    /// attached.
    pub fn check_cgroup(&self, programs: &Programs, path: &Path) -> Result<Vec<Drift>, AttachError> {
        let open = |source| AttachError::OpenCgroup { path: path.to_owned(), source };
        let at = cgroup_at(&path.metadata().map_err(open)?);
        let mut found = Vec::new();
        for (name, _, hook) in hooks::CGROUP {
            // The kernel may have refused this program.
            let Ok(program) = program_id(programs, name) else { continue };
            let fault = link_fault(&self.folder.join(hook), program, &at);
            found
                .extend(fault.map(|fault| {
                    Drift::new(DriftKind::Socket, format!("the socket program {name} {fault}"))
                }));
        }
        Ok(found)
    }

    /// Returns the paths of all pins.
    fn pins(&self) -> Result<Vec<PathBuf>, AttachError> {
        let failed = |source| AttachError::Pin { path: self.folder.clone(), source };
        let mut pins = Vec::new();
        for entry in std::fs::read_dir(&self.folder).map_err(failed)? {
            pins.push(entry.map_err(failed)?.path());
        }
        pins.sort();
        Ok(pins)
    }

    pub fn attached_devices(&mut self) -> Result<Vec<u32>, AttachError> {
        let mut devices = Vec::new();
        for path in self.pins()? {
            let name = file_name(&path);
            devices.extend(name.rsplit_once('-').and_then(|(_, index)| index.parse::<u32>().ok()));
        }
        devices.sort_unstable();
        devices.dedup();
        Ok(devices)
    }
}

/// Returns the tc program that devices with Ethernet headers (with `layer3`, without them) need and
/// that the kernel has refused. XDP alone is not enough, because replies of local endpoints pass
/// tc.
pub fn refused(programs: &Programs, layer3: bool) -> Option<&'static str> {
    let needed = [&TC_INGRESS, &TC_EGRESS].map(|hook| hook.programs[usize::from(layer3)]);
    needed.into_iter().find(|program| programs.get(program).is_none())
}

/// Returns, as text for the log, which programs of others are attached to a tcx hook before or
/// after ours. The text is empty if there are none.
fn other_programs(hook: &TcHook, device: &str) -> String {
    // Only the log uses the names, so an error is not reported.
    let Ok((_, programs)) = SchedClassifier::query_tcx(device, hook.clsact) else { return String::new() };
    let names: Vec<String> =
        programs.iter().map(|program| program.name_as_str().unwrap_or("?").to_owned()).collect();
    describe_others(hook, &names)
}

/// Returns the text of [`other_programs`] for the names of all programs in their order.
fn describe_others(hook: &TcHook, names: &[String]) -> String {
    let is_ours = |name: &String| hook.programs.iter().any(|ours| truncated(ours) == name);
    let Some(own) = names.iter().position(is_ours) else { return String::new() };
    let mut text = String::new();
    for (others, place) in [(&names[..own], "before"), (&names[own + 1..], "after")] {
        if !others.is_empty() {
            text.push_str(&format!(", {} with {} {place} it", hook.name, others.join(", ")));
        }
    }
    text
}

/// Describes why the kernel refused to attach the XDP program.
fn xdp_reason(error: &io::Error) -> String {
    if error.kind() == io::ErrorKind::NotFound {
        return "the kernel refuses the program".into();
    }
    match error.raw_os_error() {
        Some(libc::EBUSY | libc::EEXIST) => "another XDP program is attached".into(),
        Some(libc::EOPNOTSUPP) => "the driver has no native XDP".into(),
        Some(libc::EINVAL | libc::ERANGE) => {
            "the driver refuses it (MTU or queues too large for XDP?)".into()
        }
        _ => error.to_string(),
    }
}

fn program_fd<'a>(programs: &'a Programs, name: &str) -> io::Result<BorrowedFd<'a>> {
    programs.get(name).ok_or_else(|| io::Error::new(io::ErrorKind::NotFound, format!("no program {name}")))
}

/// Returns whether an XDP link is attached to a device. The name of its pin shows its type.
fn xdp_at(ifindex: u32) -> impl Fn(&bpf_link_info) -> bool {
    // SAFETY: the active member for links of this type. It is 0 if the device is removed.
    move |info| unsafe { info.__bindgen_anon_1.xdp.ifindex } == ifindex
}

/// Returns whether a tcx link is attached to a device. The name of its pin shows its type.
fn tcx_at(ifindex: u32) -> impl Fn(&bpf_link_info) -> bool {
    // SAFETY: the active member for links of this type. It is 0 if the device is removed.
    move |info| unsafe { info.__bindgen_anon_1.tcx.ifindex } == ifindex
}

/// Returns whether a link is attached to the cgroup with this folder. The name of its pin shows its
/// type.
fn cgroup_at(folder: &Metadata) -> impl Fn(&bpf_link_info) -> bool + use<> {
    // The id of a cgroup is its inode number (kernfs, 64-bit).
    let id = folder.ino();
    // SAFETY: the active member for links of this type.
    move |info| unsafe { info.__bindgen_anon_1.cgroup.cgroup_id } == id
}

/// Replaces the program in the link pinned at `path` without a gap, if the link has the right
/// target (`at`). Otherwise creates and pins a new link.
fn replace(
    path: &Path,
    program: BorrowedFd<'_>,
    at: impl Fn(&bpf_link_info) -> bool,
    create: impl FnOnce() -> io::Result<OwnedFd>,
) -> io::Result<()> {
    match sys::open_pin(path) {
        Ok(link) if sys::link_info(link.as_fd()).is_ok_and(|info| at(&info)) => {
            return sys::update_link(link.as_fd(), program);
        }
        // The link belongs to another cgroup or to a removed device, or is at the wrong place.
        Ok(link) => {
            // It is no error if nothing is attached. The kernel may release a link whose pin is
            // removed only later.
            let _ = sys::detach_link(link.as_fd());
            std::fs::remove_file(path)?;
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(error),
    }
    sys::pin(create()?.as_fd(), path)
}

/// What is wrong with a tc program.
enum TcFault {
    Absent(String),
    /// This program runs before it.
    Behind(String),
}

/// Describes what is wrong with the link pinned at `path`. `at` returns whether it is attached to
/// its target.
fn link_fault(path: &Path, program: u32, at: impl Fn(&bpf_link_info) -> bool) -> Option<String> {
    match sys::open_pin(path).and_then(|link| sys::link_info(link.as_fd())) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            Some("is not attached: the pin of its link is missing".into())
        }
        Err(error) => Some(format!("has no link that can be read: {error}")),
        Ok(info) if !at(&info) => Some("is not attached: its link was detached".into()),
        Ok(info) if info.prog_id != program => {
            Some(format!("was replaced by {} in its link", program_name(info.prog_id)))
        }
        Ok(_) => None,
    }
}

/// The filter of Sluice at a hook.
struct OwnFilter {
    /// The id of its program.
    program: Option<u32>,
    /// The name of the program of the filter that runs before it.
    before: Option<String>,
}

fn own_filter(hook: &TcHook, ifindex: u32) -> io::Result<Option<OwnFilter>> {
    let filters = tc_filters(ifindex, hook.clsact == TcAttachType::Ingress)?;
    let own =
        |filter: &TcFilter| filter.handle == u32::from(CLSACT_HANDLE) && filter.priority() == CLSACT_PRIORITY;
    let Some(position) = filters.iter().position(own) else { return Ok(None) };
    let name = |filter: &TcFilter| {
        filter.program.as_ref().map_or_else(|| "a filter".to_owned(), |program| program.name.clone())
    };
    Ok(Some(OwnFilter {
        program: filters[position].program.as_ref().map(|program| program.id),
        before: filters[..position].first().map(name),
    }))
}

fn clsact_fault(hook: &TcHook, program: u32, ifindex: u32) -> io::Result<Option<TcFault>> {
    Ok(match own_filter(hook, ifindex)? {
        None => Some(TcFault::Absent("is not attached: its filter is missing".into())),
        Some(own) if own.program != Some(program) => {
            let other = own.program.map_or_else(|| "nothing".to_owned(), program_name);
            Some(TcFault::Absent(format!("was replaced by {other} in its filter")))
        }
        Some(own) => own.before.map(TcFault::Behind),
    })
}

fn program_id(programs: &Programs, name: &str) -> io::Result<u32> {
    Ok(sys::program_info(program_fd(programs, name)?)?.id)
}

fn file_name(path: &Path) -> String {
    path.file_name().unwrap_or_default().to_string_lossy().into_owned()
}

/// Returns the program that belongs into a pinned link. On a device it depends on the program that
/// is attached now, which is made for devices with or without Ethernet headers.
fn program_for(path: &Path, link: BorrowedFd<'_>, programs: &Programs) -> Option<&'static str> {
    let name = file_name(path);
    if let Some((program, _, _)) = hooks::CGROUP.iter().find(|(_, _, pin)| *pin == name) {
        return Some(program);
    }
    let (hook, _) = name.rsplit_once('-')?;
    if hook == "xdp" {
        return Some(programs.xdp_name());
    }
    let hook = [&TC_INGRESS, &TC_EGRESS].into_iter().find(|known| known.name == hook)?;
    let id = sys::link_info(link).ok()?.prog_id;
    let attached = sys::program_info(sys::program_by_id(id).ok()?.as_fd()).ok()?;
    let attached = sys::program_name(&attached);
    hook.programs.into_iter().find(|program| truncated(program) == attached)
}

/// Returns the name of a program as the kernel stores it.
pub fn truncated(program: &str) -> &str {
    program.get(..15).unwrap_or(program)
}

/// Replaces the program of a filter. Returns false if there is no filter.
fn replace_clsact(programs: &mut Programs, hook: &TcHook, program: &str, device: &str) -> bool {
    let (Ok(program), Ok(link)) = (programs.classifier(program), clsact_link(hook, device)) else {
        return false;
    };
    let Ok(id) = program.attach_to_link(link) else { return false };
    // Dropping the link would detach the filter.
    program.take_link(id).map(std::mem::forget).is_ok()
}

/// Removes the pin of a link. The kernel then detaches the program.
fn remove_pin(path: &Path) -> Result<(), AttachError> {
    match std::fs::remove_file(path) {
        Err(source) if source.kind() != io::ErrorKind::NotFound => {
            Err(AttachError::Pin { path: path.to_owned(), source })
        }
        _ => Ok(()),
    }
}

/// Attaches a filter that stays when this process ends, or replaces the program of an earlier one.
fn attach_clsact(
    programs: &mut Programs,
    hook: &TcHook,
    program: &str,
    target: TargetDevice<'_>,
) -> Result<(), AttachError> {
    let device = target.name;
    let failed = |source| AttachError::Clsact { device: device.to_owned(), source: Box::new(source) };
    // Another error means that the queueing discipline exists. If it does not, attaching fails.
    if tc::qdisc_add_clsact(device).is_err_and(|error| is_unknown_kind(&error)) {
        return Err(AttachError::NoFilters);
    }
    // The kernel puts a new filter before the others of its priority. It replaces one in place.
    if own_filter(hook, target.ifindex).is_ok_and(|own| own.is_some_and(|own| own.before.is_some())) {
        let _ = clsact_link(hook, device).map(aya::programs::Link::detach);
    }
    let program = programs.classifier(program).map_err(failed)?;
    let options = NlOptions { priority: CLSACT_PRIORITY, handle: CLSACT_HANDLE, classid: None };
    let link = match clsact_link(hook, device) {
        Ok(link) => program.attach_to_link(link),
        Err(error) => Err(error.into()),
    };
    let id = match link {
        Ok(id) => id,
        // There was no filter to replace.
        Err(_) => {
            let attached =
                program.attach_with_options(device, hook.clsact, TcAttachOptions::Netlink(options));
            attached.map_err(|error| match &error {
                ProgramError::TcError(cause) if is_unknown_kind(cause) => AttachError::NoFilters,
                _ => failed(error),
            })?
        }
    };
    // Dropping the link would detach the filter.
    std::mem::forget(program.take_link(id).map_err(failed)?);
    Ok(())
}

/// Returns whether the kernel lacks the kind of queueing discipline or filter of a request
/// (net/sched/sch_api.c, `qdisc_create`; net/sched/cls_api.c, `tcf_proto_lookup_ops`). A device
/// that was removed gives another error.
fn is_unknown_kind(error: &TcError) -> bool {
    matches!(error, TcError::NetlinkError(error) if error.raw_os_error() == Some(libc::ENOENT))
}

/// Returns the filter that an earlier agent has attached. Does not check that it exists.
fn clsact_link(hook: &TcHook, device: &str) -> io::Result<SchedClassifierLink> {
    SchedClassifierLink::attached(device, hook.clsact, CLSACT_PRIORITY, CLSACT_HANDLE, None)
}

/// Removes the filters of Sluice from a device. The device may be removed already.
fn detach_clsact(ifindex: u32) {
    let Some(device) = sys::device_name(ifindex) else { return };
    for hook in [&TC_INGRESS, &TC_EGRESS] {
        // It is no error if there is no filter.
        let _ = clsact_link(hook, &device).map(aya::programs::Link::detach);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_log_names_programs_of_others_and_their_place() {
        let names = |list: &[&str]| list.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>();
        let text = |list: &[&str]| describe_others(&TC_INGRESS, &names(list));
        assert_eq!(text(&["lb_tc_ingress"]), "");
        assert_eq!(
            text(&["lb_tc_ingress_l", "cil_from_netdev"]),
            ", tc-ingress with cil_from_netdev after it"
        );
        assert_eq!(
            text(&["a", "b", "lb_tc_ingress", "c"]),
            ", tc-ingress with a, b before it, tc-ingress with c after it"
        );
        assert_eq!(text(&["cil_from_netdev"]), "", "ours was detached meanwhile");
    }
}
