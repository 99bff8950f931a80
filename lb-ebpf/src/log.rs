//! Log lines of the programs, through aya-log. The level is a read-only global that the agent sets
//! before loading (`--datapath-log`). While it is off, the verifier removes every call in this
//! file, and logging costs nothing.
//!
//! Each line is written by a subprogram of its own, so that its temporaries take no stack of the
//! pipeline.

use aya_log_ebpf::macro_support::{Level, level_enabled};
use aya_log_ebpf::{debug, trace, warn};
use lb_common::layout::FlowKey;
use lb_common::reason::Reason;

use crate::maps::Maps;
use crate::translation::Translation;

/// Logs that a packet was dropped (`warn`).
#[inline(always)]
pub fn dropped<F: Maps>(key: &FlowKey<F::Addr>, reason: Reason) {
    if level_enabled(Level::Warn) {
        log_dropped::<F>(key, reason as u32);
    }
}

#[inline(never)]
fn log_dropped<F: Maps>(key: &FlowKey<F::Addr>, reason: u32) {
    warn!(
        (),
        "dropped, reason {}: protocol {} {:i} {} -> {:i} {}",
        reason,
        key.protocol,
        key.src_addr,
        key.src_port,
        key.dst_addr,
        key.dst_port
    );
}

/// Logs that a connection was opened (`debug`).
#[inline(always)]
pub fn opened<F: Maps>(key: &FlowKey<F::Addr>, flow: &Translation<F::Addr>) {
    if level_enabled(Level::Debug) {
        log_opened::<F>(key, flow);
    }
}

#[inline(never)]
fn log_opened<F: Maps>(key: &FlowKey<F::Addr>, flow: &Translation<F::Addr>) {
    debug!(
        (),
        "opened: protocol {} {:i} {} -> {:i} {}",
        key.protocol,
        key.src_addr,
        key.src_port,
        flow.new_dst_addr,
        flow.new_dst_port
    );
}

/// Logs that a packet was translated (`trace`: one line per packet).
#[inline(always)]
pub fn translated<F: Maps>(key: &FlowKey<F::Addr>, flow: &Translation<F::Addr>) {
    if level_enabled(Level::Trace) {
        log_translated::<F>(key, flow);
    }
}

#[inline(never)]
fn log_translated<F: Maps>(key: &FlowKey<F::Addr>, flow: &Translation<F::Addr>) {
    trace!(
        (),
        "translated: {:i} {} -> {:i} {} became {:i} {} -> {:i} {}",
        key.src_addr,
        key.src_port,
        key.dst_addr,
        key.dst_port,
        flow.new_src_addr,
        flow.new_src_port,
        flow.new_dst_addr,
        flow.new_dst_port
    );
}
