//! Read-only settings, written by the agent into `.rodata` before the programs are loaded. The verifier knows their
//! values and removes what they switch off, so that a helper this kernel lacks is never reached.

use aya_ebpf::Global;

/// First port of the range that sources are rewritten to, host order.
#[unsafe(no_mangle)]
pub static SNAT_PORT_FIRST: Global<u16> = Global::new(61_000);

/// Number of ports of that range.
#[unsafe(no_mangle)]
pub static SNAT_PORT_COUNT: Global<u16> = Global::new(4_536);

/// `bpf_fib_lookup` can tell the source address of a route (`BPF_FIB_LOOKUP_SRC`, Linux 6.7).
#[unsafe(no_mangle)]
pub static HAS_FIB_SOURCE: Global<u8> = Global::new(0);

/// A socket program can choose the error of the call (`bpf_set_retval` in sock_addr programs, Linux 5.18).
#[unsafe(no_mangle)]
pub static HAS_SET_RETVAL: Global<u8> = Global::new(0);

/// Processes of the node may not bind NodePorts (`--protect-node-ports`).
#[unsafe(no_mangle)]
pub static PROTECT_NODE_PORTS: Global<u8> = Global::new(1);

/// Cookie of the network namespace the agent runs in: there `localhost:nodePort` is served and NodePorts are protected. Zero: nowhere.
#[unsafe(no_mangle)]
pub static NODE_NETNS_COOKIE: Global<u64> = Global::new(0);

/// The programs record what they decide instead of acting (`lb explain`), see `record.rs`.
#[unsafe(no_mangle)]
pub static RECORDING: Global<u8> = Global::new(0);

/// Nonzero: sockets are translated only in the network namespace of [`NODE_NETNS_COOKIE`]; in pods something else, a service
/// mesh perhaps, must see the Service's address.
#[unsafe(no_mangle)]
pub static HOST_SOCKETS_ONLY: Global<u8> = Global::new(0);
