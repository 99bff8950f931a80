//! The programs that `cargo xtask bench forward` measures with: a generator of frames, a counter of
//! what leaves the node, and the least that a Service proxy in XDP can do.
#![no_std]
#![no_main]

use aya_ebpf::bindings::xdp_action::{XDP_ABORTED, XDP_DROP, XDP_PASS, XDP_TX};
use aya_ebpf::macros::{map, xdp};
use aya_ebpf::maps::{Array, DevMap, PerCpuArray};
use aya_ebpf::programs::XdpContext;
use lb_common::checksum::{difference, sum4, sum16, update, update_udp};
use lb_common::traffic::{
    CLIENTS_V4, CLIENTS_V6, Counts, DEVICES, FRAME, FRAMES, FloorRewrite, NODE_PORT, Plan, SEEN, TARGET_PORT,
    WORDS,
};

/// The frames that the generator sends.
#[map]
static BENCH_FRAMES: Array<[u32; WORDS]> = Array::with_max_entries(FRAMES, 0);
/// The frames to endpoints, as they leave the node. The key is the number of the connection.
#[map]
static BENCH_SEEN: Array<[u32; WORDS]> = Array::with_max_entries(SEEN, 0);
#[map]
static BENCH_PLAN: Array<Plan> = Array::with_max_entries(1, 0);
#[map]
static BENCH_COUNTS: PerCpuArray<Counts> = PerCpuArray::with_max_entries(1, 0);
/// The devices whose peers receive frames.
#[map]
static BENCH_DEVICES: DevMap = DevMap::with_max_entries(DEVICES, 0);
#[map]
static BENCH_FLOOR: Array<FloorRewrite> = Array::with_max_entries(1, 0);

const ETHERTYPE: usize = 12;
const IPV4: [u8; 2] = [0x08, 0x00];
const IPV6: [u8; 2] = [0x86, 0xdd];
const UDP: u8 = 17;

/// Offsets of fields in a frame of one family.
struct Offsets {
    protocol: usize,
    source: usize,
    destination: usize,
    source_port: usize,
    destination_port: usize,
    checksum: usize,
    payload: usize,
}

const V4: Offsets = Offsets {
    protocol: 23,
    source: 26,
    destination: 30,
    source_port: 34,
    destination_port: 36,
    checksum: 40,
    payload: 42,
};
const V4_HEADER_CHECKSUM: usize = 24;
const V4_TTL: usize = 22;
const V6: Offsets = Offsets {
    protocol: 20,
    source: 22,
    destination: 38,
    source_port: 54,
    destination_port: 56,
    checksum: 60,
    payload: 62,
};
const V6_HOP_LIMIT: usize = 21;

/// Sends the next frame to a device. `BPF_PROG_TEST_RUN` runs it with live frames: the memory of a
/// frame that a node has received comes back changed, so the whole frame is written each time.
#[xdp]
pub fn lb_generate(context: XdpContext) -> u32 {
    generate(&context).unwrap_or(XDP_ABORTED)
}

fn generate(context: &XdpContext) -> Option<u32> {
    // SAFETY: one thread runs the generator, and the benchmark writes the plan while it does not
    // run.
    let plan = unsafe { &mut *BENCH_PLAN.get_ptr_mut(0)? };
    let frame = BENCH_FRAMES.get(plan.first.wrapping_add(plan.next))?;
    plan.next = if plan.next.wrapping_add(1) < plan.count { plan.next.wrapping_add(1) } else { 0 };
    // SAFETY: the packet is as long as a frame.
    unsafe { *packet::<[u32; WORDS]>(context)? = *frame };
    Some(BENCH_DEVICES.redirect(plan.device, XDP_DROP.into()).unwrap_or(XDP_DROP))
}

/// Counts and drops what leaves the node for an endpoint or a client. It runs at the other end of
/// the node's link. Other packets pass.
#[xdp]
pub fn lb_count(context: XdpContext) -> u32 {
    count(&context).unwrap_or(XDP_PASS)
}

fn count(context: &XdpContext) -> Option<u32> {
    let frame = packet::<[u8; FRAME]>(context)?;
    // SAFETY: the packet is as long as a frame.
    let bytes = unsafe { &*frame };
    let (offsets, to_client) = match [bytes[ETHERTYPE], bytes[ETHERTYPE + 1]] {
        IPV4 => {
            let [first, second] = [bytes[V4.destination], bytes[V4.destination + 1]];
            // The prefix has 15 bits.
            (V4, [first, second & !1] == CLIENTS_V4)
        }
        IPV6 => (V6, field::<4>(bytes, V6.destination)? == CLIENTS_V6),
        _ => return None,
    };
    if *bytes.get(offsets.protocol)? != UDP {
        return None;
    }
    // SAFETY: each CPU changes its own value.
    let counts = unsafe { &mut *BENCH_COUNTS.get_ptr_mut(0)? };
    if to_client {
        counts.replies = counts.replies.wrapping_add(1);
    } else if field::<2>(bytes, offsets.destination_port)? == TARGET_PORT.to_be_bytes() {
        counts.requests = counts.requests.wrapping_add(1);
        // SAFETY: as in `generate`.
        if unsafe { (*BENCH_PLAN.get_ptr(0)?).keep } != 0 {
            let connection = u32::from_be_bytes(field::<4>(bytes, offsets.payload)?);
            // SAFETY: the packet is as long as a frame, and this read needs no alignment.
            let words = unsafe { frame.cast::<[u32; WORDS]>().read_unaligned() };
            // SAFETY: the value is of the array, and this run keeps one frame of each connection.
            unsafe { *BENCH_SEEN.get_ptr_mut(connection)? = words };
        }
    } else {
        return None;
    }
    Some(XDP_DROP)
}

/// The least that a Service proxy can do: it rewrites one address, one port and the MAC addresses
/// with constants, corrects the checksums and sends the packet back. No lookup of a Service, no
/// state, no way back for more than one endpoint.
#[xdp]
pub fn lb_bench_floor(context: XdpContext) -> u32 {
    rewrite(&context).unwrap_or(XDP_PASS)
}

fn rewrite(context: &XdpContext) -> Option<u32> {
    let floor = BENCH_FLOOR.get(0)?;
    // SAFETY: the packet is as long as a frame.
    let bytes = unsafe { &mut *packet::<[u8; FRAME]>(context)? };
    let is_reply = match [bytes[ETHERTYPE], bytes[ETHERTYPE + 1]] {
        IPV4 if bytes[V4.protocol] == UDP => {
            let is_reply = is_reply(bytes, &V4)?;
            let (at, new) =
                if is_reply { (V4.source, floor.node_v4) } else { (V4.destination, floor.endpoint_v4) };
            let (old, ttl) = (sum4(field(bytes, at)?), bytes[V4_TTL]);
            set(bytes, at, new)?;
            bytes[V4_TTL] = ttl.wrapping_sub(1);
            // The time to live is the first byte of its word.
            let change =
                difference(old.wrapping_add(ttl.into()), sum4(new).wrapping_add(bytes[V4_TTL].into()));
            let checksum = update(u16::from_ne_bytes(field(bytes, V4_HEADER_CHECKSUM)?), change);
            set(bytes, V4_HEADER_CHECKSUM, checksum.to_ne_bytes())?;
            set_port(bytes, &V4, is_reply, difference(old, sum4(new)))?;
            is_reply
        }
        IPV6 if bytes[V6.protocol] == UDP => {
            let is_reply = is_reply(bytes, &V6)?;
            let (at, new) =
                if is_reply { (V6.source, floor.node_v6) } else { (V6.destination, floor.endpoint_v6) };
            let old = sum16(field(bytes, at)?);
            set(bytes, at, new)?;
            bytes[V6_HOP_LIMIT] = bytes[V6_HOP_LIMIT].wrapping_sub(1);
            set_port(bytes, &V6, is_reply, difference(old, sum16(new)))?;
            is_reply
        }
        _ => return None,
    };
    let own: [u8; 6] = field(bytes, 0)?;
    set(bytes, 6, own)?;
    set(bytes, 0, if is_reply { floor.gateway } else { floor.next_node })?;
    Some(XDP_TX)
}

/// Returns whether a datagram comes from an endpoint. Returns `None` if it is not for the nodePort
/// either.
fn is_reply(bytes: &[u8; FRAME], offsets: &Offsets) -> Option<bool> {
    if field(bytes, offsets.source_port)? == TARGET_PORT.to_be_bytes() {
        Some(true)
    } else if field(bytes, offsets.destination_port)? == NODE_PORT.to_be_bytes() {
        Some(false)
    } else {
        None
    }
}

/// Rewrites the port, and the UDP checksum after the addresses changed by `change` (see
/// [`difference`]).
fn set_port(bytes: &mut [u8; FRAME], offsets: &Offsets, is_reply: bool, change: u64) -> Option<()> {
    let (at, old, new) = if is_reply {
        (offsets.source_port, TARGET_PORT, NODE_PORT)
    } else {
        (offsets.destination_port, NODE_PORT, TARGET_PORT)
    };
    set(bytes, at, new.to_be_bytes())?;
    let ports = difference(old.to_be().into(), new.to_be().into());
    let checksum = u16::from_ne_bytes(field(bytes, offsets.checksum)?);
    set(bytes, offsets.checksum, update_udp(checksum, change.wrapping_add(ports)).to_ne_bytes())
}

/// Returns the start of a packet that is at least as long as a frame. `T` is not longer than one.
#[inline(always)]
fn packet<T>(context: &XdpContext) -> Option<*mut T> {
    let start = context.data();
    (start + FRAME <= context.data_end()).then_some(start as *mut T)
}

#[inline(always)]
fn field<const N: usize>(bytes: &[u8; FRAME], at: usize) -> Option<[u8; N]> {
    bytes.get(at..at.wrapping_add(N))?.try_into().ok()
}

#[inline(always)]
fn set<const N: usize>(bytes: &mut [u8; FRAME], at: usize, value: [u8; N]) -> Option<()> {
    bytes.get_mut(at..at.wrapping_add(N))?.copy_from_slice(&value);
    Some(())
}

/// The compiler requires it. The build refuses an object in which any path leads here.
#[panic_handler]
fn panic(_info: &core::panic::PanicInfo) -> ! {
    loop {}
}

/// The build requires it.
#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 4] = *b"GPL\0";
