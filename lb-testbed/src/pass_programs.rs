//! The smallest programs of another owner: they pass every packet.
//!
//! The one for XDP serves the XDP data path. `XDP_TX` puts frames into the ring of the peer veth
//! device. The peer processes them at once only if it has an XDP program of its own
//! (`veth_xdp_flush` in drivers/net/veth.c). With GRO alone it accepts the frames, but processes
//! them with the next ordinary frame.

use std::ffi::CString;
use std::io;
use std::mem::size_of_val;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use anyhow::{Context, Result};

/// `r0 = XDP_PASS; exit`.
const XDP_PASS: [u64; 2] = [0x0000_0002_0000_00b7, 0x95];
const PROG_TYPE_XDP: u32 = 6;
/// `r0 = -1; exit`: the next program or filter decides.
const TC_NEXT: [u64; 2] = [0xffff_ffff_0000_00b7, 0x95];
const PROG_TYPE_SCHED_CLS: u32 = 3;
const BPF_PROG_LOAD: libc::c_long = 5;
const BPF_OBJ_PIN: libc::c_long = 6;
const BPF_LINK_CREATE: libc::c_long = 28;
const BPF_TCX_INGRESS: u32 = 46;
const BPF_F_BEFORE: u32 = 1 << 3;

/// The first fields of `union bpf_attr` for `BPF_PROG_LOAD`. The kernel treats missing ones as
/// zero.
#[repr(C)]
struct ProgLoad {
    prog_type: u32,
    instruction_count: u32,
    instructions: u64,
    license: u64,
}

/// The fields of `union bpf_attr` for `BPF_OBJ_PIN`.
#[repr(C)]
struct ObjPin {
    path: u64,
    fd: u32,
    flags: u32,
}

/// The fields of `union bpf_attr` for `BPF_LINK_CREATE`.
#[repr(C)]
struct LinkCreate {
    prog_fd: u32,
    target_ifindex: u32,
    attach_type: u32,
    flags: u32,
}

/// Loads the XDP program and pins it at `path`, which must be in a BPF file system.
pub fn pin_xdp(path: &Path) -> Result<()> {
    pin(&load(PROG_TYPE_XDP, &XDP_PASS)?, path)
}

/// Loads the tc program and pins it at `path`, which must be in a BPF file system.
pub fn pin_tc(path: &Path) -> Result<()> {
    pin(&load(PROG_TYPE_SCHED_CLS, &TC_NEXT)?, path)
}

/// Attaches the tc program at ingress of a device of the calling thread's network namespace, before
/// all others, as a tcx link. Dropping the descriptor detaches it.
pub fn attach_first(ifindex: u32) -> Result<OwnedFd> {
    let program = load(PROG_TYPE_SCHED_CLS, &TC_NEXT)?;
    let link = LinkCreate {
        prog_fd: program.as_raw_fd() as u32,
        target_ifindex: ifindex,
        attach_type: BPF_TCX_INGRESS,
        flags: BPF_F_BEFORE,
    };
    // SAFETY: there are no pointers in the attributes.
    let fd = unsafe { bpf(BPF_LINK_CREATE, &link) }.context("attach a tc program")?;
    // SAFETY: the kernel has just returned this descriptor, so nothing else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as i32) })
}

fn load(prog_type: u32, instructions: &'static [u64; 2]) -> Result<OwnedFd> {
    let load = ProgLoad {
        prog_type,
        instruction_count: instructions.len() as u32,
        instructions: instructions.as_ptr() as u64,
        license: c"GPL".as_ptr() as u64,
    };
    // SAFETY: the pointers in the attributes point to constants.
    let fd = unsafe { bpf(BPF_PROG_LOAD, &load) }.context("load a program (it needs root)")?;
    // SAFETY: the kernel has just returned this descriptor, so nothing else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as i32) })
}

fn pin(program: &OwnedFd, path: &Path) -> Result<()> {
    let name = CString::new(path.as_os_str().as_bytes())?;
    let pin = ObjPin { path: name.as_ptr() as u64, fd: program.as_raw_fd() as u32, flags: 0 };
    // SAFETY: the path outlives the call.
    unsafe { bpf(BPF_OBJ_PIN, &pin) }.with_context(|| format!("pin {}", path.display()))?;
    Ok(())
}

/// Calls `bpf(2)`.
///
/// # Safety
/// Pointers in `attributes` must be valid for the accesses that the command makes.
unsafe fn bpf<T>(command: libc::c_long, attributes: &T) -> io::Result<libc::c_long> {
    // SAFETY: the attributes are valid for the given size. The caller guarantees the rest.
    let result = unsafe {
        libc::syscall(libc::SYS_bpf, command, std::ptr::from_ref(attributes), size_of_val(attributes))
    };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}
