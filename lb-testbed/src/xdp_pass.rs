//! The smallest XDP program: it passes every frame.
//!
//! `XDP_TX` puts frames into the ring of the peer veth device. The peer processes them at once only
//! if it has an XDP program of its own (`veth_xdp_flush` in drivers/net/veth.c). With GRO alone it
//! accepts the frames, but processes them with the next ordinary frame.

use std::ffi::CString;
use std::io;
use std::mem::size_of_val;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use anyhow::{Context, Result};

/// `r0 = XDP_PASS; exit`.
const INSTRUCTIONS: [u64; 2] = [0x0000_0002_0000_00b7, 0x95];
const PROG_TYPE_XDP: u32 = 6;
const BPF_PROG_LOAD: libc::c_long = 5;
const BPF_OBJ_PIN: libc::c_long = 6;

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

/// Loads the program and pins it at `path`, which must be in a BPF file system.
pub fn load_and_pin(path: &Path) -> Result<()> {
    let load = ProgLoad {
        prog_type: PROG_TYPE_XDP,
        instruction_count: INSTRUCTIONS.len() as u32,
        instructions: INSTRUCTIONS.as_ptr() as u64,
        license: c"GPL".as_ptr() as u64,
    };
    // SAFETY: the pointers in the attributes point to constants.
    let fd = unsafe { bpf(BPF_PROG_LOAD, &load) }.context("load an XDP program (it needs root)")?;
    // SAFETY: the kernel has just returned this descriptor, so nothing else owns it.
    let program = unsafe { OwnedFd::from_raw_fd(fd as i32) };
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
