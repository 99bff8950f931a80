//! Attaching. Every attachment is a link (cgroup, XDP, tcx) pinned under a name that says what it
//! is, or, on kernels without tcx, a clsact filter with a fixed priority and handle.
//!
//! | pin | attachment |
//! |---|---|
//! | `cgroup-connect4` … | socket programs of the one cgroup |
//! | `xdp-<ifindex>` | XDP program of a device |
//! | `tc-ingress-<ifindex>`, `tc-egress-<ifindex>` | tc programs of a device |

use std::fs::File;
use std::io;
use std::os::fd::{AsFd as _, AsRawFd as _, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use aya::programs::tc::{NlOptions, SchedClassifierLink, TcAttachOptions, TcHandle};
use aya::programs::{TcAttachType, tc};

use crate::hooks;
use crate::programs::Programs;
use crate::sys;

/// Native XDP: the driver runs the program (`XDP_FLAGS_DRV_MODE`). Generic XDP is slower than tc
/// and never used.
const XDP_NATIVE: u32 = 1 << 2;
/// First in the chain (`BPF_F_BEFORE`): a CNI's programs see packets after translation.
const TCX_FIRST: u32 = 1 << 3;
/// Priority of clsact filters: before those of CNIs.
const CLSACT_PRIORITY: u16 = 1;
/// Handle of clsact filters: "SLCE" tells whose they are.
const CLSACT_HANDLE: TcHandle = TcHandle::new(0x534c, 0x4345);

#[derive(Debug, thiserror::Error)]
pub enum AttachError {
    #[error("programs loaded privately cannot be attached")]
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
    Clsact { device: String, source: Box<aya::programs::ProgramError> },
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

/// What was attached to a device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Attached {
    Programs {
        /// With XDP. It may have been asked for in vain: tc does all the work then.
        xdp: bool,
        /// The hooks, and why XDP had to be left out, for the log.
        how: String,
    },
    /// The kernel has refused this program, without which packets cannot be served. What an earlier
    /// agent attached stays.
    Nothing { refused: &'static str },
}

/// The attachments of one agent.
pub struct Links {
    folder: PathBuf,
}

/// What a tc program is attached to.
struct TcHook {
    name: &'static str,
    tcx: u32,
    flags: u32,
    clsact: TcAttachType,
    /// Programs for devices with and without Ethernet headers.
    programs: [&'static str; 2],
}

const TC_HOOKS: [TcHook; 2] = [
    TcHook {
        name: "tc-ingress",
        tcx: hooks::TCX_INGRESS,
        flags: TCX_FIRST,
        clsact: TcAttachType::Ingress,
        programs: ["lb_tc_ingress", "lb_tc_ingress_l3"],
    },
    TcHook {
        name: "tc-egress",
        tcx: hooks::TCX_EGRESS,
        flags: 0, // last: after a CNI's programs, so that they see the endpoint's own address
        clsact: TcAttachType::Egress,
        programs: ["lb_tc_egress", "lb_tc_egress_l3"],
    },
];

impl Links {
    pub fn new(folder: PathBuf) -> Self {
        Self { folder }
    }

    fn pin_path(&self, hook: &str, ifindex: u32) -> PathBuf {
        self.folder.join(format!("{hook}-{ifindex}"))
    }

    pub fn attach_cgroup(&mut self, programs: &Programs, path: &Path) -> Result<(), AttachError> {
        let open = |source| AttachError::OpenCgroup { path: path.to_owned(), source };
        let cgroup = File::open(path).map_err(open)?;
        let id = std::os::unix::fs::MetadataExt::ino(&cgroup.metadata().map_err(open)?);
        for (program, attach_type, hook) in hooks::CGROUP {
            let failed = |source| AttachError::Cgroup { hook, path: path.to_owned(), source };
            // The kernel refuses it, and sockets are served without it.
            let Some(program) = programs.get(program) else { continue };
            let here = |link: BorrowedFd<'_>| {
                // SAFETY: the active member for links of this type; the pin's name says which it
                // is. The cgroup's id is its inode number (kernfs, 64-bit).
                sys::link_info(link).is_ok_and(|info| unsafe { info.__bindgen_anon_1.cgroup.cgroup_id } == id)
            };
            replace(&self.folder.join(hook), program, here, || {
                sys::create_link(program, cgroup.as_raw_fd() as u32, attach_type, 0)
            })
            .map_err(failed)?;
        }
        Ok(())
    }

    pub fn detach_cgroup(&mut self) -> Result<(), AttachError> {
        hooks::CGROUP.iter().try_for_each(|(_, _, hook)| remove_pin(&self.folder.join(hook)))
    }

    pub fn attach_device(
        &mut self,
        programs: &mut Programs,
        ifindex: u32,
        name: &str,
        xdp: bool,
        layer3: bool,
    ) -> Result<Attached, AttachError> {
        if let Some(refused) = refused(programs, layer3) {
            return Ok(Attached::Nothing { refused });
        }
        let (mut with_xdp, mut how) = (false, String::new());
        if xdp {
            match self.attach_xdp(programs, ifindex) {
                Ok(()) => (with_xdp, how) = (true, "XDP and ".into()),
                Err(error) => how = format!("(no XDP: {}) ", xdp_reason(&error)),
            }
        } else {
            remove_pin(&self.pin_path("xdp", ifindex))?;
        }
        for hook in &TC_HOOKS {
            let program = hook.programs[usize::from(layer3)];
            if programs.tcx {
                self.attach_tcx(programs, hook, program, ifindex).map_err(|source| AttachError::Device {
                    hook: hook.name,
                    device: name.to_owned(),
                    source,
                })?;
            } else {
                attach_clsact(programs, hook, program, name)?;
                // An earlier agent may have attached the other way; a packet that both see is
                // translated by the first.
                remove_pin(&self.pin_path(hook.name, ifindex))?;
            }
        }
        if programs.tcx {
            detach_clsact(ifindex);
        }
        how.push_str(if programs.tcx { "tcx" } else { "clsact" });
        Ok(Attached::Programs { xdp: with_xdp, how })
    }

    fn attach_xdp(&self, programs: &Programs, ifindex: u32) -> io::Result<()> {
        let program = program_fd(programs, programs.xdp_name())?;
        let here = |link: BorrowedFd<'_>| {
            // SAFETY: the active member for links of this type. Zero: the device is gone.
            sys::link_info(link).is_ok_and(|info| unsafe { info.__bindgen_anon_1.xdp.ifindex } == ifindex)
        };
        replace(&self.pin_path("xdp", ifindex), program, here, || {
            sys::create_link(program, ifindex, hooks::XDP, XDP_NATIVE)
        })
    }

    fn attach_tcx(&self, programs: &Programs, hook: &TcHook, program: &str, ifindex: u32) -> io::Result<()> {
        let program = program_fd(programs, program)?;
        let here = |link: BorrowedFd<'_>| {
            // SAFETY: the active member for links of this type. Zero: the device is gone.
            sys::link_info(link).is_ok_and(|info| unsafe { info.__bindgen_anon_1.tcx.ifindex } == ifindex)
        };
        replace(&self.pin_path(hook.name, ifindex), program, here, || {
            sys::create_link(program, ifindex, hook.tcx, hook.flags)
        })
    }

    pub fn detach_device(&mut self, ifindex: u32) -> Result<(), AttachError> {
        for hook in ["xdp", "tc-ingress", "tc-egress"] {
            remove_pin(&self.pin_path(hook, ifindex))?;
        }
        detach_clsact(ifindex);
        Ok(())
    }

    pub fn attached_devices(&mut self) -> Result<Vec<u32>, AttachError> {
        let failed = |source| AttachError::Pin { path: self.folder.clone(), source };
        let mut devices = Vec::new();
        for entry in std::fs::read_dir(&self.folder).map_err(failed)? {
            let name = entry.map_err(failed)?.file_name().to_string_lossy().into_owned();
            devices.extend(name.rsplit_once('-').and_then(|(_, index)| index.parse::<u32>().ok()));
        }
        devices.sort_unstable();
        devices.dedup();
        Ok(devices)
    }
}

/// The tc program that the kernel has refused and that devices with (`layer3`: without) Ethernet
/// headers need. XDP alone serves nothing: replies of endpoints here pass tc.
pub fn refused(programs: &Programs, layer3: bool) -> Option<&'static str> {
    let needed = TC_HOOKS.iter().map(|hook| hook.programs[usize::from(layer3)]);
    needed.into_iter().find(|program| programs.get(program).is_none())
}

/// Why the kernel would not take the XDP program, in words.
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

/// Puts `program` into the link pinned at `path` if that is attached where it shall be (`here`),
/// without a gap; else makes a new link and pins it.
fn replace(
    path: &Path,
    program: BorrowedFd<'_>,
    here: impl Fn(BorrowedFd<'_>) -> bool,
    create: impl FnOnce() -> io::Result<OwnedFd>,
) -> io::Result<()> {
    match sys::open_pin(path) {
        Ok(link) if here(link.as_fd()) => return sys::update_link(link.as_fd(), program),
        // Of another cgroup, or of a device that is gone.
        Ok(_) => std::fs::remove_file(path)?,
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(error),
    }
    sys::pin(create()?.as_fd(), path)
}

/// Removing the pin of a link detaches it.
fn remove_pin(path: &Path) -> Result<(), AttachError> {
    match std::fs::remove_file(path) {
        Err(source) if source.kind() != io::ErrorKind::NotFound => {
            Err(AttachError::Pin { path: path.to_owned(), source })
        }
        _ => Ok(()),
    }
}

/// Attaches a filter that stays when this process ends, or puts the program in the place of an
/// earlier one.
fn attach_clsact(
    programs: &mut Programs,
    hook: &TcHook,
    program: &str,
    device: &str,
) -> Result<(), AttachError> {
    let failed = |source| AttachError::Clsact { device: device.to_owned(), source: Box::new(source) };
    // An error means that the queueing discipline is there already; if it is not, attaching says
    // so.
    let _ = tc::qdisc_add_clsact(device);
    let program = programs.classifier(program).map_err(failed)?;
    let options = NlOptions { priority: CLSACT_PRIORITY, handle: CLSACT_HANDLE, classid: None };
    let link = match clsact_link(hook, device) {
        Ok(link) => program.attach_to_link(link),
        Err(error) => Err(error.into()),
    };
    let id = match link {
        Ok(id) => id,
        // There was none to replace.
        Err(_) => program
            .attach_with_options(device, hook.clsact, TcAttachOptions::Netlink(options))
            .map_err(failed)?,
    };
    // Dropping the link would detach the filter.
    std::mem::forget(program.take_link(id).map_err(failed)?);
    Ok(())
}

/// A filter of ours, as an earlier agent attached it.
fn clsact_link(hook: &TcHook, device: &str) -> io::Result<SchedClassifierLink> {
    SchedClassifierLink::attached(device, hook.clsact, CLSACT_PRIORITY, CLSACT_HANDLE, None)
}

/// Removes the filters of ours from a device that may be gone.
fn detach_clsact(ifindex: u32) {
    let Some(device) = sys::device_name(ifindex) else { return };
    for hook in &TC_HOOKS {
        // That there is none is what we want.
        let _ = clsact_link(hook, &device).map(aya::programs::Link::detach);
    }
}
