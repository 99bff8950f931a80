//! The hand-over from the programs of an earlier generation, while the agent converts their maps
//! (`docs/ARCHITECTURE.md`, "A change of layout"). The maps of this generation do not have all
//! connections yet. Packets and calls that they cannot decide go to the earlier programs, which run
//! on the earlier maps, by a tail call.
//!
//! In programs that do not convert, the verifier removes all of this, because there the global
//! `CONVERTING` is a constant zero.

use aya_ebpf::EbpfContext;
use aya_ebpf::btf_maps::{Array, ProgramArray};
use aya_ebpf::macros::btf_map;
use lb_common::layout::handover;

use crate::settings::CONVERTING;
use crate::verdict::Verdict;

/// The phase of the conversion, one of [`handover`]. Written by the agent. Pinned while it
/// converts.
#[btf_map]
pub static HANDOVER: Array<u32, 1, { aya_ebpf::bindings::BPF_F_MMAPABLE as usize }> = Array::new();

/// The earlier programs. The programs of one array must have the same attach type, so there are
/// several arrays. Written by the agent. Pinned while it converts.
#[btf_map]
pub static PREDECESSORS_XDP: ProgramArray<1> = ProgramArray::new();
/// In the order of [`handover::TC_PROGRAMS`].
#[btf_map]
pub static PREDECESSORS_TC: ProgramArray<{ handover::TC_PROGRAMS.len() }> = ProgramArray::new();
#[btf_map]
pub static PREDECESSORS_CONNECT4: ProgramArray<1> = ProgramArray::new();
#[btf_map]
pub static PREDECESSORS_CONNECT6: ProgramArray<1> = ProgramArray::new();
#[btf_map]
pub static PREDECESSORS_SENDMSG4: ProgramArray<1> = ProgramArray::new();
#[btf_map]
pub static PREDECESSORS_SENDMSG6: ProgramArray<1> = ProgramArray::new();
#[btf_map]
pub static PREDECESSORS_RECVMSG4: ProgramArray<1> = ProgramArray::new();
#[btf_map]
pub static PREDECESSORS_RECVMSG6: ProgramArray<1> = ProgramArray::new();
#[btf_map]
pub static PREDECESSORS_GETPEERNAME4: ProgramArray<1> = ProgramArray::new();
#[btf_map]
pub static PREDECESSORS_GETPEERNAME6: ProgramArray<1> = ProgramArray::new();

#[inline(always)]
fn phase() -> u32 {
    if CONVERTING.load() == 0 {
        return handover::DONE;
    }
    match HANDOVER.get_ptr(0) {
        // SAFETY: an element of an array; one aligned word.
        Some(phase) => unsafe { phase.read_volatile() },
        None => handover::DONE,
    }
}

/// Returns whether new connections are opened by the earlier programs.
#[inline(always)]
pub fn earlier_programs_open() -> bool {
    phase() < handover::OPENING
}

/// Returns the verdict for a packet that belongs to no connection in these maps and opens none.
#[inline(always)]
pub fn unknown() -> Verdict {
    if phase() < handover::DONE { Verdict::HandOver } else { Verdict::Pass }
}

/// Returns whether the earlier maps may have entries that these lack.
#[inline(always)]
pub fn is_going_on() -> bool {
    phase() < handover::DONE
}

/// Runs an earlier program instead of this one. Returns only if there is none.
#[inline(always)]
pub fn hand_over<C: EbpfContext, const N: usize>(context: &C, programs: &ProgramArray<N>, index: u32) {
    // SAFETY: this program holds nothing that must be released.
    unsafe { programs.tail_call(context, index) };
}
