//! Read-only settings. The agent writes them into `.rodata` before it loads the programs. The
//! verifier uses their values and removes code that they switch off, so that a program never calls
//! a helper that this kernel lacks.
//!
//! Each setting is `#[used]`. Otherwise the compiler may merge it with another constant of the same
//! value. It did so with the key of a map, and the agent's value of the setting became the key
//! (LLVM's `ConstantMerge` leaves used globals alone).

use aya_ebpf::Global;

/// First port of the range that source ports are rewritten to.
#[used]
#[unsafe(no_mangle)]
pub static SNAT_PORT_FIRST: Global<u16> = Global::new(1_024);

/// Number of ports of that range.
#[used]
#[unsafe(no_mangle)]
pub static SNAT_PORT_COUNT: Global<u16> = Global::new(28_976);

/// Number of records in `FLOWS_V4` and in `FLOWS_V6`: the size that the maps were made with.
#[used]
#[unsafe(no_mangle)]
pub static FLOW_RECORDS: Global<u32> = Global::new(65_536);

/// Nonzero: `bpf_fib_lookup` returns the source address of a route (`BPF_FIB_LOOKUP_SRC`, Linux
/// 6.7).
#[used]
#[unsafe(no_mangle)]
pub static HAS_FIB_SOURCE: Global<u8> = Global::new(0);

/// The time in milliseconds for which XDP sends packets to a neighbour before it leaves one to the
/// kernel, which then checks whether the neighbour still exists. With zero, XDP leaves none.
#[used]
#[unsafe(no_mangle)]
pub static NEIGHBOUR_CHECK_MS: Global<u32> = Global::new(0);

/// Nonzero: packets that arrive by the loopback device may have a source of this node
/// (`accept_local`), and programs can read the MTU of a device (`bpf_check_mtu`, Linux 5.12). Then
/// the kernel fragments packets that do not fit their path.
#[used]
#[unsafe(no_mangle)]
pub static KERNEL_FRAGMENTS: Global<u8> = Global::new(0);

/// Nonzero: a socket program can choose the error of the call (`bpf_set_retval` in sock_addr
/// programs, Linux 5.18).
#[used]
#[unsafe(no_mangle)]
pub static HAS_SET_RETVAL: Global<u8> = Global::new(0);

/// Nonzero: programs can read the clock at tick resolution (`bpf_ktime_get_coarse_ns`, Linux 5.11).
#[used]
#[unsafe(no_mangle)]
pub static HAS_COARSE_CLOCK: Global<u8> = Global::new(0);

/// Nonzero: XDP frames may have several buffers (`bpf_xdp_get_buff_len`, Linux 5.18).
#[used]
#[unsafe(no_mangle)]
pub static HAS_XDP_FRAGS: Global<u8> = Global::new(0);

/// Nonzero: processes of the node may not bind NodePorts (`--protect-node-ports`).
#[used]
#[unsafe(no_mangle)]
pub static PROTECT_NODE_PORTS: Global<u8> = Global::new(1);

/// Cookie of the network namespace that the agent runs in, where `localhost:nodePort` is served and
/// NodePorts are protected. Zero: in no namespace.
#[used]
#[unsafe(no_mangle)]
pub static NODE_NETNS_COOKIE: Global<u64> = Global::new(0);

/// Nonzero: the programs record their decisions (`lb explain`), see `record.rs`.
#[used]
#[unsafe(no_mangle)]
pub static RECORDING: Global<u8> = Global::new(0);

/// Nonzero: the agent converts the maps of an earlier generation, see `handover.rs`.
#[used]
#[unsafe(no_mangle)]
pub static CONVERTING: Global<u8> = Global::new(0);

/// Nonzero: calls are translated only in the network namespace of [`NODE_NETNS_COOKIE`]. A service
/// mesh in the pods redirects connections by the Service's address.
#[used]
#[unsafe(no_mangle)]
pub static HOST_SOCKETS_ONLY: Global<u8> = Global::new(0);
