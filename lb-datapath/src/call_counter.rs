//! Counts the helper calls of a program, for tests. The program is loaded a second time on the same
//! maps, with instructions behind each call of a helper that count it. So the counts are those of
//! real runs.

use std::collections::HashSet;
use std::io;
use std::os::fd::{AsFd as _, AsRawFd as _, OwnedFd};

use aya_obj::generated::{
    BPF_F_XDP_HAS_FRAGS, bpf_attach_type, bpf_func_id, bpf_insn, bpf_map_type, bpf_prog_type,
};
use aya_obj::{Map, ProgramSection};

use crate::datapath::Datapath;
use crate::programs;
use crate::sys::{self, Described, TestRun};

/// The calls of one run, by kind.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Calls {
    /// Lookups in arrays. The kernel inlines them.
    pub arrays: u64,
    /// Lookups in hashes and tries.
    pub hashes: u64,
    /// Entries that are written or removed.
    pub writes: u64,
    /// Calls of all other helpers, except tail calls.
    pub others: u64,
}

impl Calls {
    /// Returns the number of calls of all kinds.
    pub fn total(self) -> u64 {
        self.arrays + self.hashes + self.writes + self.others
    }
}

/// The kind of a call, see [`Calls`].
#[derive(Clone, Copy)]
enum Kind {
    Array,
    Hash,
    Write,
    Other,
}

/// A program that counts its helper calls.
pub struct CallCounter {
    program: OwnedFd,
    /// An array with one element: one number for each place that calls a helper.
    counts: OwnedFd,
    /// The kind of the call at each of these places.
    places: Vec<Kind>,
}

impl Datapath {
    /// Loads an XDP or tc program a second time, so that it counts its helper calls.
    pub fn load_call_counter(&self, name: &str) -> io::Result<CallCounter> {
        let failed = |error: &dyn std::fmt::Display| io::Error::other(format!("{name}: {error}"));
        let mut object = programs::object().map_err(|error| failed(&error))?;
        let maps: Vec<(String, Map)> = object.maps.drain().collect();
        let mut descriptors = Vec::new();
        for (name, map) in &maps {
            descriptors.push((name.as_str(), self.maps.fd(name)?.as_raw_fd(), map));
        }
        let text: HashSet<usize> = object.functions.keys().map(|(section, _)| *section).collect();
        object.relocate_maps(descriptors.into_iter(), &text).map_err(|error| failed(&error))?;
        object.relocate_calls(&text).map_err(|error| failed(&error))?;
        let program = object.programs.get(name).ok_or_else(|| failed(&"no such program"))?;
        let function = object
            .functions
            .get(&program.function_key())
            .ok_or_else(|| failed(&"the program has no function"))?;
        let original = &function.instructions;
        let calls: Vec<usize> = (0..original.len()).filter(|at| is_counted(&original[*at])).collect();
        let counts = sys::create_array((calls.len() * size_of::<u64>()) as u32)?;
        let places = calls.iter().map(|call| self.kind(original, *call)).collect::<io::Result<_>>()?;
        let instructions = with_counts(original, &calls, counts.as_raw_fd());
        let functions: Vec<[u32; 2]> = function
            .func_info
            .func_info
            .iter()
            .map(|info| [moved(&calls, info.insn_off as usize) as u32, info.type_id])
            .collect();
        let (kind, attach_type, flags) = match program.section {
            ProgramSection::Xdp { frags, .. } => {
                let flags = if frags { BPF_F_XDP_HAS_FRAGS } else { 0 };
                (bpf_prog_type::BPF_PROG_TYPE_XDP, bpf_attach_type::BPF_XDP as u32, flags)
            }
            ProgramSection::SchedClassifier => (bpf_prog_type::BPF_PROG_TYPE_SCHED_CLS, 0, 0),
            _ => return Err(failed(&"neither an XDP nor a tc program")),
        };
        let btf = sys::program_btf(self.program(name)?)?;
        let described = Described { btf: btf.as_fd(), functions: &functions };
        let program = sys::load_described(kind, attach_type, flags, &instructions, &described)
            .map_err(|error| failed(&error))?;
        Ok(CallCounter { program, counts, places })
    }

    /// Returns the kind of the helper call at this instruction.
    fn kind(&self, instructions: &[bpf_insn], at: usize) -> io::Result<Kind> {
        const LOOKUP: i32 = bpf_func_id::BPF_FUNC_map_lookup_elem as i32;
        const UPDATE: i32 = bpf_func_id::BPF_FUNC_map_update_elem as i32;
        const DELETE: i32 = bpf_func_id::BPF_FUNC_map_delete_elem as i32;
        match instructions[at].imm {
            LOOKUP => {}
            UPDATE | DELETE => return Ok(Kind::Write),
            _ => return Ok(Kind::Other),
        }
        // The map is the first argument. Where it is not visible, the lookup counts as the dearer
        // kind.
        let sets_argument =
            instructions[..at].iter().rev().take_while(|before| before.code != CALL).find(|before| {
                matches!(before.code & CLASS, CLASS_LD | CLASS_LDX | CLASS_ALU | CLASS_ALU_64)
                    && before.code != 0
                    && before.dst_reg() == 1
            });
        let Some(load) = sets_argument.filter(|load| load.code == LOAD_64 && load.src_reg() == PSEUDO_MAP)
        else {
            return Ok(Kind::Hash);
        };
        const ARRAYS: [bpf_map_type; 2] =
            [bpf_map_type::BPF_MAP_TYPE_ARRAY, bpf_map_type::BPF_MAP_TYPE_PERCPU_ARRAY];
        for (_, map) in self.maps.iter().filter(|(_, map)| map.as_raw_fd() == load.imm) {
            let map_type = sys::map_info(map)?.type_;
            if ARRAYS.iter().any(|array| *array as u32 == map_type) {
                return Ok(Kind::Array);
            }
        }
        Ok(Kind::Hash)
    }
}

impl CallCounter {
    /// Runs the program once on a packet, as [`Datapath::test_run`] does, and returns its calls.
    pub fn run(&self, packet: &[u8], context: &[u8]) -> io::Result<(TestRun, Calls)> {
        let key = 0u32.to_ne_bytes();
        let size = self.places.len() * size_of::<u64>();
        sys::update_bytes(self.counts.as_fd(), &key, &vec![0; size], 0)?;
        let run = sys::test_run(self.program.as_fd(), packet, context, 1)?;
        let counts = sys::lookup_bytes(self.counts.as_fd(), &key, size)?.ok_or(io::ErrorKind::NotFound)?;
        let mut calls = Calls::default();
        for (kind, count) in self.places.iter().zip(sys::values::<u64>(&counts)) {
            match kind {
                Kind::Array => calls.arrays += count,
                Kind::Hash => calls.hashes += count,
                Kind::Write => calls.writes += count,
                Kind::Other => calls.others += count,
            }
        }
        Ok((run, calls))
    }
}

// Instructions (Documentation/bpf/standardization/instruction-set.rst).
const LOAD_64: u8 = 0x18;
const LOAD: u8 = 0x79;
const STORE: u8 = 0x7b;
const ADD: u8 = 0x07;
const CALL: u8 = 0x85;
const EXIT: u8 = 0x95;
const JUMP_FAR: u8 = 0x06;
/// Classes of instructions: the lower bits of the opcode.
const CLASS: u8 = 7;
const CLASS_LD: u8 = 0;
const CLASS_LDX: u8 = 1;
const CLASS_ALU: u8 = 4;
const CLASS_JUMP: u8 = 5;
const CLASS_JUMP_32: u8 = 6;
const CLASS_ALU_64: u8 = 7;
/// `BPF_PSEUDO_CALL`, `BPF_PSEUDO_FUNC`, `BPF_PSEUDO_MAP_FD`, `BPF_PSEUDO_MAP_VALUE`.
const PSEUDO_CALL: u8 = 1;
const PSEUDO_FUNCTION: u8 = 4;
const PSEUDO_MAP: u8 = 1;
const PSEUDO_MAP_VALUE: u8 = 2;

/// The number of instructions that count a call.
const COUNTING: usize = 5;

/// Returns the instructions that add one to the number of a place. After a helper call the
/// registers 1 to 5 are unused.
fn counting(counts: i32, place: usize) -> [u64; COUNTING] {
    [
        insn(LOAD_64, 1, PSEUDO_MAP_VALUE, counts),
        insn(0, 0, 0, (place * size_of::<u64>()) as i32),
        insn(LOAD, 2, 1, 0),
        insn(ADD, 2, 0, 1),
        insn(STORE, 1, 2, 0),
    ]
}

/// Returns the new position of an instruction. `calls` are the positions of the counted calls, in
/// order. A jump to the instruction behind a call passes the instructions that count it.
fn moved(calls: &[usize], at: usize) -> usize {
    at + COUNTING * calls.partition_point(|call| *call < at)
}

/// Returns the program with instructions that count behind each of `calls`.
fn with_counts(original: &[bpf_insn], calls: &[usize], counts: i32) -> Vec<u64> {
    let mut all = Vec::with_capacity(moved(calls, original.len()));
    let mut place = 0;
    for (at, &instruction) in original.iter().enumerate() {
        let mut instruction = instruction;
        // The distance to a target counts from the next instruction.
        let distance = |old: i64| {
            let target = moved(calls, (at as i64 + 1 + old) as usize);
            target as i64 - moved(calls, at) as i64 - 1
        };
        let is_jump = matches!(instruction.code & CLASS, CLASS_JUMP | CLASS_JUMP_32)
            && ![CALL, EXIT, JUMP_FAR].contains(&instruction.code);
        let has_far_target = match instruction.code {
            JUMP_FAR => true,
            CALL => instruction.src_reg() == PSEUDO_CALL,
            LOAD_64 => instruction.src_reg() == PSEUDO_FUNCTION,
            _ => false,
        };
        if is_jump {
            instruction.off = distance(instruction.off.into()) as i16;
        } else if has_far_target {
            instruction.imm = distance(instruction.imm.into()) as i32;
        }
        all.push(encode(&instruction));
        if calls.get(place) == Some(&at) {
            all.extend(counting(counts, place));
            place += 1;
        }
    }
    all
}

/// Encodes an instruction without an offset.
fn insn(code: u8, destination: u8, source: u8, immediate: i32) -> u64 {
    let registers = bpf_insn::new_bitfield_1(destination, source);
    encode(&bpf_insn { code, _bitfield_align_1: [], _bitfield_1: registers, off: 0, imm: immediate })
}

fn encode(instruction: &bpf_insn) -> u64 {
    let [i0, i1, i2, i3] = instruction.imm.to_ne_bytes();
    let [o0, o1] = instruction.off.to_ne_bytes();
    let registers = instruction._bitfield_1.get(0, 8) as u8;
    u64::from_ne_bytes([instruction.code, registers, o0, o1, i0, i1, i2, i3])
}

/// Returns whether the instruction calls a helper that is counted. A tail call does not return.
fn is_counted(instruction: &bpf_insn) -> bool {
    instruction.code == CALL
        && instruction.src_reg() == 0
        && instruction.imm != bpf_func_id::BPF_FUNC_tail_call as i32
}
