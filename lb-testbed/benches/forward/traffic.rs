//! Sends and counts frames, with the programs of `lb-ebpf/src/bin/bench.rs`.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd as _, AsRawFd as _};
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use aya::Pod;
use aya::maps::{Array, DevMap, MapData, PerCpuArray};
use aya::programs::{Xdp, XdpMode};
use aya::{Ebpf, EbpfLoader};
use lb_common::plain::Plain;
use lb_common::traffic::{Counts, FloorRewrite, Plan, SEEN, WORDS};
use lb_testbed::Place;
use lb_testbed::topology::{Node, Topology};

use crate::frames::Frame;

/// Frames that are sent at a time where no frame may be lost: half of what the ring of a veth
/// device holds.
const CHUNK: u32 = 128;
/// How long a node may take for a chunk.
const CHUNK_LIMIT: Duration = Duration::from_millis(100);
/// Nothing has arrived for this long: the node has nothing left to do.
const QUIET: Duration = Duration::from_millis(3);

/// A value of a map.
#[derive(Debug, Clone, Copy, Default)]
#[repr(transparent)]
struct Value<T>(T);

// SAFETY: values of this trait can be copied byte by byte.
unsafe impl<T: Plain + Copy + 'static> Pod for Value<T> {}

/// Frames that are sent: an index in the map of frames, and their number.
#[derive(Debug, Clone, Copy)]
pub struct Batch {
    pub first: u32,
    pub count: u32,
}

/// The generator and the counter.
pub struct Traffic {
    programs: Ebpf,
    frames: Array<MapData, [u32; WORDS]>,
    seen: Array<MapData, [u32; WORDS]>,
    plan: Array<MapData, Value<Plan>>,
    counts: PerCpuArray<MapData, Value<Counts>>,
    devices: DevMap<MapData>,
}

impl Traffic {
    /// Loads the programs.
    pub fn load(object: &Path) -> Result<Self> {
        let mut programs = EbpfLoader::new().load_file(object)?;
        for (_, program) in programs.programs_mut() {
            <&mut Xdp>::try_from(program)?.load()?;
        }
        let mut map = |name: &str| programs.take_map(name).with_context(|| format!("no map {name}"));
        Ok(Self {
            frames: map("BENCH_FRAMES")?.try_into()?,
            seen: map("BENCH_SEEN")?.try_into()?,
            plan: map("BENCH_PLAN")?.try_into()?,
            counts: map("BENCH_COUNTS")?.try_into()?,
            devices: map("BENCH_DEVICES")?.try_into()?,
            programs,
        })
    }

    fn program(&mut self, name: &str) -> Result<&mut Xdp> {
        let program = self.programs.program_mut(name).with_context(|| format!("no program {name}"))?;
        Ok(program.try_into()?)
    }

    /// Counts what the node sends, and makes its link the device with this index.
    pub fn connect(&mut self, topology: &Topology, node: &Node, device: u32) -> Result<()> {
        let (segment, port) = (topology.segment(), topology.port_of(node));
        segment.ip(&format!("link set {port} xdpdrv off\n"))?;
        let ifindex = segment.ifindex(&port)?;
        segment.inside(|| {
            self.program("lb_count")?.attach_to_if_index(ifindex, XdpMode::Driver)?;
            self.devices.set(device, ifindex, None, 0)?;
            // Between runs, a program that is attached nowhere leaves the kernel's dispatcher of
            // XDP programs. Each run would wait until the dispatcher has changed.
            let loopback = segment.ifindex("lo")?;
            if device == 0 {
                self.program("lb_generate")?.attach_to_if_index(loopback, XdpMode::Skb)?;
            }
            Ok(())
        })?
    }

    /// Attaches the floor program to a device.
    pub fn attach_floor(&mut self, place: &Place, device: &str, rewrite: FloorRewrite) -> Result<()> {
        let map = self.programs.map_mut("BENCH_FLOOR").context("no map BENCH_FLOOR")?;
        Array::<_, Value<FloorRewrite>>::try_from(map)?.set(0, Value(rewrite), 0)?;
        let ifindex = place.ifindex(device)?;
        place.inside(|| {
            self.program("lb_bench_floor")?.attach_to_if_index(ifindex, XdpMode::Driver)?;
            Ok(())
        })?
    }

    /// Stores frames, the first one with this index.
    pub fn store(&mut self, first: u32, frames: &[Frame]) -> Result<Batch> {
        for (index, frame) in (first..).zip(frames) {
            self.frames.set(index, frame.words(), 0)?;
        }
        Ok(Batch { first, count: u32::try_from(frames.len())? })
    }

    /// Sends each frame once, no faster than the node handles them. Returns what left the node.
    pub fn send_gently(&mut self, device: u32, batch: Batch, keep: bool) -> Result<Counts> {
        let start = self.counts()?;
        for first in (batch.first..batch.first + batch.count).step_by(CHUNK as usize) {
            let count = CHUNK.min(batch.first + batch.count - first);
            let before = self.counts()?;
            self.send(Plan { first, count, next: 0, device, keep: keep.into() }, count)?;
            let deadline = Instant::now() + CHUNK_LIMIT;
            while total(self.counts()?) < total(before) + u64::from(count) && Instant::now() < deadline {
                thread::yield_now();
            }
        }
        self.wait_until_quiet()?;
        self.counts().map(|end| since(end, start))
    }

    /// Sends `number` frames as fast as possible. A node that is slower loses some. Returns what
    /// left the node.
    pub fn flood(&mut self, device: u32, Batch { first, count }: Batch, number: u32) -> Result<Counts> {
        let start = self.counts()?;
        self.send(Plan { first, count, next: 0, device, keep: 0 }, number)?;
        self.wait_until_quiet()?;
        self.counts().map(|end| since(end, start))
    }

    /// Forgets all frames that were kept.
    pub fn forget(&mut self) -> Result<()> {
        (0..SEEN).try_for_each(|index| Ok(self.seen.set(index, [0; WORDS], 0)?))
    }

    /// Returns the frames that were kept, in the order of their connections.
    pub fn kept(&self) -> Result<Vec<Frame>> {
        self.seen.iter().map(|words| Ok(Frame::from_words(words?))).collect()
    }

    /// Runs the generator `number` times.
    fn send(&mut self, plan: Plan, number: u32) -> Result<()> {
        self.plan.set(0, Value(plan), 0)?;
        let program = self.program("lb_generate")?.fd()?.as_fd().try_clone_to_owned()?;
        live_frames(&File::from(program), number).context("send frames (BPF_F_TEST_XDP_LIVE_FRAMES)")
    }

    fn counts(&self) -> Result<Counts> {
        let values = self.counts.get(&0, 0)?;
        Ok(values.iter().fold(Counts::default(), |sum, Value(one)| Counts {
            requests: sum.requests + one.requests,
            replies: sum.replies + one.replies,
        }))
    }

    fn wait_until_quiet(&self) -> Result<()> {
        loop {
            let before = self.counts()?;
            thread::sleep(QUIET);
            if self.counts()? == before {
                return Ok(());
            }
        }
    }
}

fn total(counts: Counts) -> u64 {
    counts.requests + counts.replies
}

fn since(end: Counts, start: Counts) -> Counts {
    Counts { requests: end.requests - start.requests, replies: end.replies - start.replies }
}

const BPF_PROG_TEST_RUN: libc::c_long = 10;
const BPF_F_TEST_XDP_LIVE_FRAMES: u32 = 1 << 1;
/// Frames that the kernel sends before it does anything else.
const AT_ONCE: u32 = 64;

/// The fields of `union bpf_attr` for `BPF_PROG_TEST_RUN`.
#[repr(C)]
struct TestRun {
    program: u32,
    return_value: u32,
    data_size_in: u32,
    data_size_out: u32,
    data_in: u64,
    data_out: u64,
    repeat: u32,
    duration: u32,
    context_size_in: u32,
    context_size_out: u32,
    context_in: u64,
    context_out: u64,
    flags: u32,
    cpu: u32,
    batch_size: u32,
    padding: u32,
}

/// Runs an XDP program on `number` frames of the kernel's own memory. It decides where they go.
fn live_frames(program: &File, number: u32) -> io::Result<()> {
    let frame = [0u32; WORDS];
    let attributes = TestRun {
        program: program.as_raw_fd() as u32,
        return_value: 0,
        data_size_in: size_of_val(&frame) as u32,
        data_size_out: 0,
        data_in: frame.as_ptr() as u64,
        data_out: 0,
        repeat: number,
        duration: 0,
        context_size_in: 0,
        context_size_out: 0,
        context_in: 0,
        context_out: 0,
        flags: BPF_F_TEST_XDP_LIVE_FRAMES,
        cpu: 0,
        batch_size: AT_ONCE,
        padding: 0,
    };
    // SAFETY: the frame lives until the call returns.
    let result = unsafe {
        libc::syscall(libc::SYS_bpf, BPF_PROG_TEST_RUN, &raw const attributes, size_of_val(&attributes))
    };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}
