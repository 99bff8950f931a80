//! Events for `lb monitor`: connections that are opened and closed, packets and calls that are
//! refused, packets that are dropped.
//!
//! The programs read one word of `MONITOR`, and only where they have an event to report. The word
//! is the time at which the lease of the reader ends. The reader renews it, so a reader that was
//! killed costs nothing some seconds later. Each CPU reports a limited number of events of each
//! kind.

use aya_ebpf::helpers::generated::bpf_ktime_get_ns;
use lb_common::event::{Event, event_end, event_kind, event_path};
use lb_common::family::{Family, V4, V6};
use lb_common::layout::{FlowKey, flow_phase};
use lb_common::reason::Reason;

use crate::maps::{EVENT_BUDGETS, EVENTS, MONITOR, Maps};
use crate::record::recording;
use crate::translation::Translation;

/// The time between two events of a kind on one CPU, on average.
const INTERVAL_NS: u64 = 200_000;
/// The number of events of a kind that may follow each other without a pause.
const BURST: u64 = 1_000;

/// Returns whether a process reads events.
#[inline(always)]
pub fn is_watched() -> bool {
    if recording() {
        return false;
    }
    match MONITOR.get_ptr(0) {
        // SAFETY: an element of an array; one aligned word.
        Some(monitor) => unsafe { (&raw const (*monitor).until_ns).read_volatile() != 0 },
        None => false,
    }
}

/// Reports that a packet has opened a connection.
#[inline(always)]
pub fn opened<F: Maps>(
    key: &FlowKey<F::Addr>,
    flow: &Translation<F::Addr>,
    service_id: u32,
    backend_id: u32,
    path: u8,
) {
    if is_watched() {
        report_opened::<F>(key, flow, (service_id as u64) << 32 | backend_id as u64, path as u64);
    }
}

/// Reports that a packet was answered with an error.
#[inline(always)]
pub fn refused<F: Maps>(key: &FlowKey<F::Addr>, reason: Reason, path: u8) {
    if is_watched() {
        report_packet::<F>(key, event_kind::REFUSED as u64, reason as u64, path as u64);
    }
}

/// Reports that a packet was dropped.
#[inline(always)]
pub fn dropped<F: Maps>(key: &FlowKey<F::Addr>, reason: Reason, path: u8) {
    if is_watched() {
        report_packet::<F>(key, event_kind::DROPPED as u64, reason as u64, path as u64);
    }
}

/// Reports the end of the connection in a record. `end` is one of [`event_end`], or 0: as the
/// connection's state describes it.
#[inline(always)]
pub fn closed<F: Events>(number: u32, end: u8, path: u8) {
    if is_watched() {
        F::report_closed(number, end, path);
    }
}

/// Reserves an event of a kind and lets `fill` write it. Every field that `fill` leaves out is
/// zero.
#[inline(always)]
pub fn report(kind: u8, fill: impl FnOnce(&mut Event)) {
    let time_ns = lb_event_budget(kind as u64);
    if time_ns == 0 {
        return;
    }
    let Some(mut entry) = EVENTS.reserve(0) else {
        if let Some(budget) = EVENT_BUDGETS.get_ptr_mut(kind as u32) {
            // SAFETY: an element of this CPU. If a packet interrupts a socket program between load
            // and store, one count is lost.
            unsafe { (*budget).lost += 1 };
        }
        return;
    };
    // SAFETY: memory of the map that is this program's own until it is submitted. Any bytes are a
    // valid event.
    let event = unsafe { &mut *entry.as_mut_ptr() };
    (event.time_ns, event.kind) = (time_ns, kind);
    (event.netns_cookie, event.socket_cookie) = (0, 0);
    (event.service_id, event.backend_id) = (0, 0);
    (event.path, event.reason, event.protocol, event.is_v6, event.pad) = (0, 0, 0, 0, [0; 3]);
    (event.client_port, event.service_port, event.source_port, event.backend_port) = (0, 0, 0, 0);
    (event.client_addr, event.service_addr) = ([0; 16], [0; 16]);
    (event.source_addr, event.backend_addr) = ([0; 16], [0; 16]);
    fill(event);
    entry.submit(0);
}

/// Returns the time if an event of this kind may be reported, otherwise 0.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn lb_event_budget(kind: u64) -> u64 {
    let (Some(monitor), Some(budget)) = (MONITOR.get_ptr_mut(0), EVENT_BUDGETS.get_ptr_mut(kind as u32))
    else {
        return 0;
    };
    // SAFETY: the helper has no preconditions. Elements of arrays are never freed. The budget is
    // this CPU's: if a packet interrupts a socket program meanwhile, one event more is reported.
    unsafe {
        let now = bpf_ktime_get_ns();
        if (&raw const (*monitor).until_ns).read_volatile() < now {
            // The reader is gone. If it renews the word in this instant, it writes it again a
            // second later.
            (&raw mut (*monitor).until_ns).write_volatile(0);
            return 0;
        }
        if (*monitor).kinds & 1 << (kind & 31) == 0 {
            return 0;
        }
        let earliest = now.saturating_sub(BURST * INTERVAL_NS);
        let due = if (*budget).next_ns > earliest { (*budget).next_ns } else { earliest };
        if due > now {
            (*budget).limited += 1;
            return 0;
        }
        (*budget).next_ns = due + INTERVAL_NS;
        now
    }
}

/// Writes an address of a packet.
#[inline(always)]
fn set<F: Family>(to: &mut [u8; 16], addr: F::Addr) {
    // SAFETY: an address has at most 16 bytes.
    unsafe { to.as_mut_ptr().cast::<F::Addr>().write_unaligned(addr) };
}

#[inline(never)]
fn report_opened<F: Maps>(key: &FlowKey<F::Addr>, flow: &Translation<F::Addr>, ids: u64, path: u64) {
    report(event_kind::OPENED, |event| {
        event.path = path as u8;
        event.protocol = key.protocol;
        event.is_v6 = F::IS_V6 as u8;
        (event.service_id, event.backend_id) = ((ids >> 32) as u32, ids as u32);
        (event.client_port, event.service_port) = (key.src_port, key.dst_port);
        (event.source_port, event.backend_port) = (flow.new_src_port, flow.new_dst_port);
        set::<F>(&mut event.client_addr, key.src_addr);
        set::<F>(&mut event.service_addr, key.dst_addr);
        set::<F>(&mut event.source_addr, flow.new_src_addr);
        set::<F>(&mut event.backend_addr, flow.new_dst_addr);
    });
}

#[inline(never)]
fn report_packet<F: Maps>(key: &FlowKey<F::Addr>, kind: u64, reason: u64, path: u64) {
    report(kind as u8, |event| {
        (event.path, event.reason) = (path as u8, reason as u8);
        event.protocol = key.protocol;
        event.is_v6 = F::IS_V6 as u8;
        (event.client_port, event.service_port) = (key.src_port, key.dst_port);
        set::<F>(&mut event.client_addr, key.src_addr);
        set::<F>(&mut event.service_addr, key.dst_addr);
    });
}

/// Reports the end of a connection. The record is read without a lock: if it is given to another
/// connection meanwhile, this one event has fields of that connection.
#[inline(always)]
fn report_end<F: Maps>(number: u32, end: u8, path: u8) {
    let Some(flow) = F::flows().get(number) else { return };
    // A connection that changes nothing has no endpoint (`flow::keep_answer`).
    if flow.backend_id == 0 {
        return;
    }
    report(event_kind::CLOSED, |event| {
        event.path = path;
        event.reason = match end {
            0 if flow.phase == flow_phase::RESET => event_end::RESET,
            0 => event_end::FINISHED,
            end => end,
        };
        event.protocol = flow.protocol;
        event.is_v6 = F::IS_V6 as u8;
        (event.service_id, event.backend_id) = (flow.service_id, flow.backend_id);
        (event.client_port, event.service_port) = (flow.client_port, flow.service_port);
        (event.source_port, event.backend_port) = (flow.source_port, flow.backend_port);
        set::<F>(&mut event.client_addr, flow.client_addr);
        set::<F>(&mut event.service_addr, flow.service_addr);
        set::<F>(&mut event.source_addr, flow.source_addr);
        set::<F>(&mut event.backend_addr, flow.backend_addr);
    });
}

/// The functions that the verifier checks separately, by family.
pub trait Events: Maps {
    /// See [`closed`].
    fn report_closed(number: u32, end: u8, path: u8);
}

macro_rules! events {
    ($($family:ty: $closed:ident;)*) => { $(
        #[unsafe(no_mangle)]
        #[inline(never)]
        extern "C" fn $closed(number: u64, end: u64, path: u64) -> u64 {
            report_end::<$family>(number as u32, end as u8, path as u8);
            0
        }

        impl Events for $family {
            #[inline(always)]
            fn report_closed(number: u32, end: u8, path: u8) {
                $closed(number as u64, end as u64, path as u64);
            }
        }
    )* };
}

events! {
    V4: lb_closed_v4;
    V6: lb_closed_v6;
}

/// The path of a packet that a hook for packets handles. `COMPLETE` as in
/// [`Frame`](crate::frame::Frame).
#[inline(always)]
pub fn path_of(complete: bool) -> u8 {
    if complete { event_path::TC } else { event_path::XDP }
}
