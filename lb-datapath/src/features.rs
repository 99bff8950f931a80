//! Detects optional features of this kernel. Each feature is tried, because vendors backport
//! features: the version of a kernel is not enough.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use aya_obj::generated::{bpf_attach_type, bpf_prog_type};

use crate::hooks;
use crate::sys;

/// The optional features of this kernel.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Features {
    /// The kernel release (`uname -r`).
    pub kernel: String,
    /// XDP programs accept frames with several buffers, like jumbo frames. Otherwise drivers refuse
    /// XDP on devices with a large MTU.
    pub xdp_frags: bool,
    /// tc programs can be links (tcx). Otherwise they are clsact filters.
    pub tcx: bool,
    /// `bpf_fib_lookup` returns the source address of a route. Otherwise the primary address of the
    /// device is used.
    pub fib_source: bool,
    /// A socket program can set the error of a refused call. Otherwise the error is EPERM.
    pub set_retval: bool,
    /// Programs can read the clock with tick resolution. Otherwise they read the exact clock, which
    /// is slower.
    pub coarse_clock: bool,
    /// Programs can read the MTU of a device. Otherwise IPv4 packets that do not fit their path are
    /// not fragmented.
    pub check_mtu: bool,
    /// The types of the kernel are in /sys. Otherwise sockets are not closed.
    pub btf: bool,
    /// An iterator program can identify a socket. Otherwise sockets are not closed.
    pub iterator_cookie: bool,
    /// Programs are compiled to machine code. Otherwise they are interpreted.
    pub jit: bool,
    /// The cookie of this network namespace. Without it, NodePorts are not served at localhost and
    /// their ports are not protected.
    pub netns_cookie: Option<u64>,
}

impl Features {
    /// Probes the features that need none of the programs of Sluice. Assumes that the kernel has
    /// all others. Needs the privileges to load programs.
    pub fn probe() -> Self {
        Self {
            xdp_frags: xdp_frags().is_ok(),
            tcx: tcx(),
            fib_source: fib_source().unwrap_or(false),
            set_retval: set_retval().is_ok(),
            coarse_clock: coarse_clock().is_ok(),
            check_mtu: check_mtu().is_ok(),
            jit: jit().unwrap_or(true),
            ..Self::without_loading()
        }
    }

    /// Detects the features that are visible without privileges. Assumes that the kernel has those
    /// that are probed by loading a program.
    pub fn without_loading() -> Self {
        Self {
            kernel: rustix::system::uname().release().to_string_lossy().into_owned(),
            xdp_frags: true,
            tcx: true,
            fib_source: true,
            set_retval: true,
            coarse_clock: true,
            check_mtu: true,
            btf: Path::new("/sys/kernel/btf/vmlinux").exists(),
            // Found out when the iterator program is loaded. A smaller program would need its own
            // types.
            iterator_cookie: true,
            jit: true,
            netns_cookie: sys::namespace_cookie().ok(),
        }
    }

    /// Describes each missing feature with its consequence.
    pub fn missing(&self) -> Vec<&'static str> {
        [
            (
                self.xdp_frags,
                "no multi-buffer XDP (Linux 5.18): devices with jumbo frames are served by tc alone",
            ),
            (
                self.tcx,
                "no tcx (Linux 6.6): tc programs attach as clsact filters, which other agents may remove",
            ),
            (
                self.fib_source,
                "no source address from FIB lookups (Linux 6.7): the primary address of the outgoing device is used",
            ),
            (
                self.set_retval,
                "no bpf_set_retval (Linux 5.18): connecting to a Service without endpoints, and binding a NodePort, fails \
                 with EPERM",
            ),
            (
                self.coarse_clock,
                "no bpf_ktime_get_coarse_ns (Linux 5.11): the programs read the exact clock, which takes longer",
            ),
            (
                self.check_mtu,
                "no bpf_check_mtu (Linux 5.12): IPv4 packets that do not fit the path to an endpoint are not fragmented; \
                 their sender receives an ICMP error",
            ),
            (
                self.btf,
                "no BTF (CONFIG_DEBUG_INFO_BTF): sockets of this node are not closed when their endpoint is gone, when its \
                 drain is overdue, or at their maximum age",
            ),
            (
                self.iterator_cookie,
                "no bpf_get_socket_cookie in iterators (Linux 5.12): sockets of this node are not closed when their endpoint \
                 is gone, when its drain is overdue, or at their maximum age",
            ),
            (
                self.jit,
                "no BPF compiler in use (CONFIG_BPF_JIT, sysctl net.core.bpf_jit_enable): tc and XDP programs are refused, and \
                 calls at sockets take several times longer",
            ),
            (
                self.netns_cookie.is_some(),
                "no SO_NETNS_COOKIE (Linux 5.14): NodePorts are not served at localhost, nor protected, and --socket-hooks=host \
                 serves no process",
            ),
        ]
        .into_iter()
        .filter_map(|(present, sentence)| (!present).then_some(sentence))
        .collect()
    }
}

/// Registers, by their numbers (Documentation/bpf/standardization/instruction-set.rst).
const R0: u64 = 0;
const R1: u64 = 1;
const R2: u64 = 2;
const R3: u64 = 3;
const R4: u64 = 4;
const R5: u64 = 5;
/// The end of the stack.
const R10: u64 = 10;

const EXIT: u64 = 0x95;

/// `register = value`.
const fn set(register: u64, value: i32) -> u64 {
    0xb7 | register << 8 | (value as u32 as u64) << 32
}

/// `register = other`.
const fn copy(register: u64, other: u64) -> u64 {
    0xbf | register << 8 | other << 12
}

/// `register += value`.
const fn add(register: u64, value: i32) -> u64 {
    0x07 | register << 8 | (value as u32 as u64) << 32
}

/// Writes eight zero bytes at `offset` from the end of the stack.
const fn clear(offset: i16) -> u64 {
    0x7a | R10 << 8 | (offset as u16 as u64) << 16
}

/// Calls a helper by its number in include/uapi/linux/bpf.h.
const fn call(helper: u32) -> u64 {
    0x85 | (helper as u64) << 32
}

/// `BPF_F_XDP_HAS_FRAGS`.
const HAS_FRAGS: u32 = 1 << 5;

fn xdp_frags() -> io::Result<OwnedFd> {
    const XDP_PASS: i32 = 2;
    sys::load_program(bpf_prog_type::BPF_PROG_TYPE_XDP, 0, HAS_FRAGS, &[set(R0, XDP_PASS), EXIT])
}

/// Returns whether the kernel has tcx. Tries to attach to a device that does not exist: only a
/// kernel with tcx looks for the device.
fn tcx() -> bool {
    const NO_DEVICE: u32 = i32::MAX as u32;
    let program = sys::load_program(bpf_prog_type::BPF_PROG_TYPE_SCHED_CLS, 0, 0, &[set(R0, 0), EXIT]);
    let attached =
        program.and_then(|program| sys::create_link(program.as_fd(), NO_DEVICE, hooks::TCX_INGRESS, 0));
    attached.is_err_and(|error| error.raw_os_error() == Some(libc::ENODEV))
}

/// Returns whether `bpf_fib_lookup` has the flag `BPF_FIB_LOOKUP_SRC`. Calls it with this flag and
/// with an unknown address family. The kernel checks the flags first, so EINVAL means that it does
/// not have the flag (net/core/filter.c, `bpf_skb_fib_lookup`).
fn fib_source() -> io::Result<bool> {
    const BPF_FIB_LOOKUP: u32 = 69;
    const BPF_FIB_LOOKUP_SRC: i32 = 1 << 4;
    /// Size of `struct bpf_fib_lookup`.
    const PARAMETERS: i16 = 64;
    let mut program: Vec<u64> = (1..=PARAMETERS / 8).map(|i| clear(-8 * i)).collect();
    program.extend([
        copy(R2, R10),
        add(R2, -i32::from(PARAMETERS)),
        set(R3, PARAMETERS.into()),
        set(R4, BPF_FIB_LOOKUP_SRC),
        call(BPF_FIB_LOOKUP),
        EXIT,
    ]);
    let program = sys::load_program(bpf_prog_type::BPF_PROG_TYPE_SCHED_CLS, 0, 0, &program)?;
    let frame = [0; 64];
    let run = sys::test_run(program.as_fd(), &frame, &[], 1)?;
    Ok(run.return_code.cast_signed() != -libc::EINVAL)
}

fn set_retval() -> io::Result<OwnedFd> {
    const BPF_SET_RETVAL: u32 = 187;
    const CONNECT: u32 = bpf_attach_type::BPF_CGROUP_INET4_CONNECT as u32;
    let program = [set(R1, -libc::ECONNREFUSED), call(BPF_SET_RETVAL), set(R0, 0), EXIT];
    sys::load_program(bpf_prog_type::BPF_PROG_TYPE_CGROUP_SOCK_ADDR, CONNECT, 0, &program)
}

fn coarse_clock() -> io::Result<OwnedFd> {
    const BPF_KTIME_GET_COARSE_NS: u32 = 160;
    let program = [call(BPF_KTIME_GET_COARSE_NS), set(R0, 0), EXIT];
    sys::load_program(bpf_prog_type::BPF_PROG_TYPE_SCHED_CLS, 0, 0, &program)
}

fn check_mtu() -> io::Result<OwnedFd> {
    const BPF_CHECK_MTU: u32 = 163;
    const RESULT: i16 = -8;
    let program = [
        clear(RESULT),
        set(R2, 0),
        copy(R3, R10),
        add(R3, RESULT.into()),
        set(R4, 0),
        set(R5, 0),
        call(BPF_CHECK_MTU),
        EXIT,
    ];
    sys::load_program(bpf_prog_type::BPF_PROG_TYPE_SCHED_CLS, 0, 0, &program)
}

/// Returns whether the kernel has compiled a program. The sysctl `net.core.bpf_jit_enable` does not
/// show that: it is absent from kernels without the compiler, and from other network namespaces.
fn jit() -> io::Result<bool> {
    let program = sys::load_program(bpf_prog_type::BPF_PROG_TYPE_SCHED_CLS, 0, 0, &[set(R0, 0), EXIT])?;
    Ok(sys::program_info(program.as_fd())?.jited_prog_len > 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn instructions_are_encoded_as_the_kernel_reads_them() {
        assert_eq!(set(R0, 2).to_le_bytes(), [0xb7, 0, 0, 0, 2, 0, 0, 0]);
        assert_eq!(set(R1, -111).to_le_bytes(), [0xb7, 1, 0, 0, 0x91, 0xff, 0xff, 0xff]);
        assert_eq!(copy(R2, R10).to_le_bytes(), [0xbf, 0xa2, 0, 0, 0, 0, 0, 0]);
        assert_eq!(clear(-8).to_le_bytes(), [0x7a, 0x0a, 0xf8, 0xff, 0, 0, 0, 0]);
        assert_eq!(call(69).to_le_bytes(), [0x85, 0, 0, 0, 69, 0, 0, 0]);
    }

    #[test]
    fn missing_features_are_described_with_their_consequence() {
        let all = Features {
            kernel: "7.3.4".to_owned(),
            xdp_frags: true,
            tcx: true,
            fib_source: true,
            set_retval: true,
            coarse_clock: true,
            check_mtu: true,
            btf: true,
            iterator_cookie: true,
            jit: true,
            netns_cookie: Some(1),
        };
        assert_eq!(all.missing(), [""; 0]);
        let without = Features { tcx: false, netns_cookie: None, ..all };
        assert!(
            matches!(without.missing()[..], [tcx, cookie] if tcx.contains("tcx") && cookie.contains("localhost"))
        );
    }
}
