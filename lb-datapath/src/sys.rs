//! The `bpf(2)` calls for which aya 0.14 has no interface: links that are created, opened and
//! updated through their pins, batch reads, memory-mapped arrays and test runs. All raw system
//! calls of this crate are in this file.

use std::ffi::CString;
use std::fs::File;
use std::io;
use std::mem::{MaybeUninit, size_of};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::ptr;

use aya_obj::generated::{
    bpf_attach_type, bpf_attr, bpf_btf_info, bpf_cmd, bpf_link_info, bpf_map_info, bpf_map_type,
    bpf_prog_info, bpf_prog_type,
};
use lb_common::plain::Plain;
use rustix::net::{AddressFamily, SocketType, socket};

/// Returns a zeroed `bpf_attr`. The kernel requires zero in the fields that a command does not use.
fn attributes() -> bpf_attr {
    // SAFETY: a C union of plain numbers.
    unsafe { MaybeUninit::zeroed().assume_init() }
}

fn bpf(command: bpf_cmd, attributes: &mut bpf_attr) -> io::Result<libc::c_long> {
    // SAFETY: the attributes are valid for the given size. The callers below ensure that their
    // pointers are valid.
    let result = unsafe {
        libc::syscall(
            libc::SYS_bpf,
            command as libc::c_long,
            ptr::from_mut(attributes),
            size_of::<bpf_attr>(),
        )
    };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

fn owned(result: libc::c_long) -> OwnedFd {
    // SAFETY: the kernel has just created this descriptor, and no one else owns it.
    unsafe { OwnedFd::from_raw_fd(result as i32) }
}

fn c_path(path: &Path) -> io::Result<CString> {
    CString::new(path.as_os_str().as_bytes()).map_err(|_| io::Error::other("a path with a NUL byte"))
}

/// Opens a pinned object (`BPF_OBJ_GET`).
pub fn open_pin(path: &Path) -> io::Result<OwnedFd> {
    let path = c_path(path)?;
    let mut attributes = attributes();
    attributes.__bindgen_anon_4.pathname = path.as_ptr() as u64;
    bpf(bpf_cmd::BPF_OBJ_GET, &mut attributes).map(owned)
}

/// Pins an object (`BPF_OBJ_PIN`).
pub fn pin(object: BorrowedFd<'_>, path: &Path) -> io::Result<()> {
    let path = c_path(path)?;
    let mut attributes = attributes();
    // SAFETY: the active member of the union for this command.
    let pin = unsafe { &mut attributes.__bindgen_anon_4 };
    pin.pathname = path.as_ptr() as u64;
    pin.bpf_fd = object.as_raw_fd() as u32;
    bpf(bpf_cmd::BPF_OBJ_PIN, &mut attributes).map(drop)
}

/// Loads a small program (`BPF_PROG_LOAD`) from encoded instructions, to try whether the kernel
/// accepts it.
pub fn load_program(
    kind: bpf_prog_type,
    attach_type: u32,
    flags: u32,
    instructions: &[u64],
) -> io::Result<OwnedFd> {
    let mut attributes = program_attributes(kind, attach_type, flags, instructions);
    bpf(bpf_cmd::BPF_PROG_LOAD, &mut attributes).map(owned)
}

/// The types of the functions of a program.
pub struct Described<'a> {
    pub btf: BorrowedFd<'a>,
    /// The first instruction of each function, and the id of its type (`struct bpf_func_info`).
    pub functions: &'a [[u32; 2]],
}

/// Loads a program of several functions (`BPF_PROG_LOAD`) from encoded instructions.
pub fn load_described(
    kind: bpf_prog_type,
    attach_type: u32,
    flags: u32,
    instructions: &[u64],
    described: &Described<'_>,
) -> io::Result<OwnedFd> {
    let mut attributes = program_attributes(kind, attach_type, flags, instructions);
    // SAFETY: the active member of the union for this command.
    let load = unsafe { &mut attributes.__bindgen_anon_3 };
    load.prog_btf_fd = described.btf.as_raw_fd() as u32;
    load.func_info = described.functions.as_ptr() as u64;
    load.func_info_cnt = described.functions.len() as u32;
    load.func_info_rec_size = size_of::<[u32; 2]>() as u32;
    bpf(bpf_cmd::BPF_PROG_LOAD, &mut attributes).map(owned)
}

fn program_attributes(kind: bpf_prog_type, attach_type: u32, flags: u32, instructions: &[u64]) -> bpf_attr {
    let mut attributes = attributes();
    // SAFETY: the active member of the union for this command.
    let load = unsafe { &mut attributes.__bindgen_anon_3 };
    load.prog_type = kind as u32;
    load.expected_attach_type = attach_type;
    load.prog_flags = flags;
    load.insns = instructions.as_ptr() as u64;
    load.insn_cnt = instructions.len() as u32;
    load.license = c"GPL".as_ptr() as u64;
    attributes
}

/// Returns the type information (`BTF`) that a program was loaded with.
pub fn program_btf(program: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    btf(program_info(program)?.btf_id)
}

fn btf(id: u32) -> io::Result<OwnedFd> {
    let mut attributes = attributes();
    attributes.__bindgen_anon_6.__bindgen_anon_1.btf_id = id;
    bpf(bpf_cmd::BPF_BTF_GET_FD_BY_ID, &mut attributes).map(owned)
}

/// Creates an array with one element of so many bytes (`BPF_MAP_CREATE`).
pub fn create_array(value_size: u32) -> io::Result<OwnedFd> {
    let mut attributes = attributes();
    // SAFETY: the active member of the union for this command.
    let create = unsafe { &mut attributes.__bindgen_anon_1 };
    create.map_type = bpf_map_type::BPF_MAP_TYPE_ARRAY as u32;
    create.key_size = size_of::<u32>() as u32;
    create.value_size = value_size;
    create.max_entries = 1;
    bpf(bpf_cmd::BPF_MAP_CREATE, &mut attributes).map(owned)
}

/// Attaches a program (`BPF_LINK_CREATE`). `target` is a device's index or a cgroup's descriptor.
pub fn create_link(
    program: BorrowedFd<'_>,
    target: u32,
    attach_type: u32,
    flags: u32,
) -> io::Result<OwnedFd> {
    let mut attributes = attributes();
    attributes.link_create.__bindgen_anon_1.prog_fd = program.as_raw_fd() as u32;
    attributes.link_create.__bindgen_anon_2.target_fd = target;
    attributes.link_create.attach_type = attach_type;
    attributes.link_create.flags = flags;
    bpf(bpf_cmd::BPF_LINK_CREATE, &mut attributes).map(owned)
}

/// Returns the ids of the programs at a hook, in the order in which they run (`BPF_PROG_QUERY`), at
/// most 64. `target` is a device's index or a cgroup's descriptor.
pub fn query_programs(target: u32, attach_type: u32, flags: u32) -> io::Result<Vec<u32>> {
    let mut ids = [0u32; 64];
    let mut attributes = attributes();
    attributes.query.__bindgen_anon_1.target_fd = target;
    attributes.query.attach_type = attach_type;
    attributes.query.query_flags = flags;
    attributes.query.prog_ids = ids.as_mut_ptr() as u64;
    attributes.query.__bindgen_anon_2.prog_cnt = ids.len() as u32;
    bpf(bpf_cmd::BPF_PROG_QUERY, &mut attributes)?;
    // SAFETY: the active member for this command; the kernel has written the number of programs.
    let count = unsafe { attributes.query.__bindgen_anon_2.prog_cnt } as usize;
    Ok(ids[..count.min(ids.len())].to_vec())
}

/// Opens a loaded program by its id (`BPF_PROG_GET_FD_BY_ID`).
pub fn program_by_id(id: u32) -> io::Result<OwnedFd> {
    let mut attributes = attributes();
    attributes.__bindgen_anon_6.__bindgen_anon_1.prog_id = id;
    bpf(bpf_cmd::BPF_PROG_GET_FD_BY_ID, &mut attributes).map(owned)
}

/// Returns the output of an iterator program over the entries of a map (`BPF_ITER_CREATE`, Linux
/// 5.9).
pub fn iterate(program: BorrowedFd<'_>, map: BorrowedFd<'_>) -> io::Result<File> {
    let info = map.as_raw_fd() as u32; // the first field of union bpf_iter_link_info
    let mut attributes = attributes();
    attributes.link_create.__bindgen_anon_1.prog_fd = program.as_raw_fd() as u32;
    attributes.link_create.attach_type = bpf_attach_type::BPF_TRACE_ITER as u32;
    attributes.link_create.__bindgen_anon_3.__bindgen_anon_1.iter_info = &raw const info as u64;
    attributes.link_create.__bindgen_anon_3.__bindgen_anon_1.iter_info_len = size_of_val(&info) as u32;
    let link = bpf(bpf_cmd::BPF_LINK_CREATE, &mut attributes).map(owned)?;
    let mut attributes = self::attributes();
    attributes.iter_create.link_fd = link.as_raw_fd() as u32;
    bpf(bpf_cmd::BPF_ITER_CREATE, &mut attributes).map(owned).map(File::from)
}

/// Converts bytes to values. An incomplete value at the end is ignored.
pub fn values<T: Plain>(bytes: &[u8]) -> impl Iterator<Item = T> {
    bytes.chunks_exact(size_of::<T>()).map(|chunk| {
        // SAFETY: Plain, and as many bytes as it has.
        unsafe { chunk.as_ptr().cast::<T>().read_unaligned() }
    })
}

/// Replaces the program of a link without a gap (`BPF_LINK_UPDATE`).
pub fn update_link(link: BorrowedFd<'_>, program: BorrowedFd<'_>) -> io::Result<()> {
    let mut attributes = attributes();
    attributes.link_update.link_fd = link.as_raw_fd() as u32;
    attributes.link_update.__bindgen_anon_1.new_prog_fd = program.as_raw_fd() as u32;
    bpf(bpf_cmd::BPF_LINK_UPDATE, &mut attributes).map(drop)
}

/// Detaches the program of a link (`BPF_LINK_DETACH`). The link continues to exist.
pub fn detach_link(link: BorrowedFd<'_>) -> io::Result<()> {
    let mut attributes = attributes();
    attributes.link_detach.link_fd = link.as_raw_fd() as u32;
    bpf(bpf_cmd::BPF_LINK_DETACH, &mut attributes).map(drop)
}

/// Returns the kernel's description of an object (`BPF_OBJ_GET_INFO_BY_FD`).
fn object_info<T>(object: BorrowedFd<'_>) -> io::Result<T> {
    // SAFETY: the callers below use C structures of plain numbers only.
    let mut info: T = unsafe { MaybeUninit::zeroed().assume_init() };
    fill_info(object, &mut info)?;
    Ok(info)
}

/// Fills `info` with the kernel's description of an object. The structure may contain pointers to
/// memory that the kernel fills.
fn fill_info<T>(object: BorrowedFd<'_>, info: &mut T) -> io::Result<()> {
    let mut attributes = attributes();
    attributes.info.bpf_fd = object.as_raw_fd() as u32;
    attributes.info.info_len = size_of::<T>() as u32;
    attributes.info.info = ptr::from_mut(info) as u64;
    bpf(bpf_cmd::BPF_OBJ_GET_INFO_BY_FD, &mut attributes).map(drop)
}

pub fn link_info(link: BorrowedFd<'_>) -> io::Result<bpf_link_info> {
    object_info(link)
}

pub fn map_info(map: BorrowedFd<'_>) -> io::Result<bpf_map_info> {
    object_info(map)
}

pub fn program_info(program: BorrowedFd<'_>) -> io::Result<bpf_prog_info> {
    object_info(program)
}

/// A flag of updates: fail with `EEXIST` if the entry exists.
pub const NO_EXIST: u64 = 1;

/// Writes an entry (`BPF_MAP_UPDATE_ELEM`). `flags` is 0 or [`NO_EXIST`].
pub fn update<K: Plain, V: Plain>(map: BorrowedFd<'_>, key: &K, value: &V, flags: u64) -> io::Result<()> {
    let mut attributes = element(map, key);
    attributes.__bindgen_anon_2.__bindgen_anon_1.value = ptr::from_ref(value) as u64;
    attributes.__bindgen_anon_2.flags = flags;
    bpf(bpf_cmd::BPF_MAP_UPDATE_ELEM, &mut attributes).map(drop)
}

/// Removes an entry (`BPF_MAP_DELETE_ELEM`). Returns false if it did not exist.
pub fn delete<K: Plain>(map: BorrowedFd<'_>, key: &K) -> io::Result<bool> {
    match bpf(bpf_cmd::BPF_MAP_DELETE_ELEM, &mut element(map, key)) {
        Ok(_) => Ok(true),
        Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(false),
        Err(error) => Err(error),
    }
}

/// Reads an entry (`BPF_MAP_LOOKUP_ELEM`).
pub fn lookup<K: Plain, V: Plain>(map: BorrowedFd<'_>, key: &K) -> io::Result<Option<V>> {
    let mut value = MaybeUninit::<V>::zeroed();
    let mut attributes = element(map, key);
    attributes.__bindgen_anon_2.__bindgen_anon_1.value = value.as_mut_ptr() as u64;
    match bpf(bpf_cmd::BPF_MAP_LOOKUP_ELEM, &mut attributes) {
        // SAFETY: Plain, and filled by the kernel. Per-CPU maps are read by `lookup_per_cpu`.
        Ok(_) => Ok(Some(unsafe { value.assume_init() })),
        Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(None),
        Err(error) => Err(error),
    }
}

/// Returns the key that follows a key, or the first one (`BPF_MAP_GET_NEXT_KEY`). If the key does
/// not exist, the kernel returns the first one.
pub fn next_key<K: Plain>(map: BorrowedFd<'_>, previous: Option<&K>) -> io::Result<Option<K>> {
    let mut next = MaybeUninit::<K>::zeroed();
    let previous = previous.map_or(ptr::null(), |key| ptr::from_ref(key).cast());
    // SAFETY: both are keys of this map. `next` is Plain, and filled by the kernel if there is one.
    unsafe { Ok(get_next_key(map, previous, next.as_mut_ptr().cast())?.then(|| next.assume_init())) }
}

/// Writes the key that follows `previous`, or the first key if that is null, to `next`. Returns
/// false if no key follows.
///
/// # Safety
/// `previous` is null or a key of the map, and `next` has room for a key.
unsafe fn get_next_key(map: BorrowedFd<'_>, previous: *const u8, next: *mut u8) -> io::Result<bool> {
    let mut attributes = attributes();
    attributes.__bindgen_anon_2.map_fd = map.as_raw_fd() as u32;
    attributes.__bindgen_anon_2.key = previous as u64;
    attributes.__bindgen_anon_2.__bindgen_anon_1.next_key = next as u64;
    match bpf(bpf_cmd::BPF_MAP_GET_NEXT_KEY, &mut attributes) {
        Ok(_) => Ok(true),
        Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(false),
        Err(error) => Err(error),
    }
}

/// Reads one `u64` entry of a per-CPU array: one value for each possible CPU.
pub fn lookup_per_cpu(map: BorrowedFd<'_>, key: u32, cpus: usize) -> io::Result<Vec<u64>> {
    let mut values = vec![0u64; cpus];
    let mut attributes = element(map, &key);
    attributes.__bindgen_anon_2.__bindgen_anon_1.value = values.as_mut_ptr() as u64;
    bpf(bpf_cmd::BPF_MAP_LOOKUP_ELEM, &mut attributes)?;
    Ok(values)
}

/// Writes one `u64` entry of a per-CPU array: the same value for each of the possible CPUs.
pub fn update_per_cpu(map: BorrowedFd<'_>, key: u32, value: u64, cpus: usize) -> io::Result<()> {
    let values = vec![value; cpus];
    let mut attributes = element(map, &key);
    attributes.__bindgen_anon_2.__bindgen_anon_1.value = values.as_ptr() as u64;
    bpf(bpf_cmd::BPF_MAP_UPDATE_ELEM, &mut attributes).map(drop)
}

fn element<K: Plain>(map: BorrowedFd<'_>, key: &K) -> bpf_attr {
    let mut attributes = attributes();
    attributes.__bindgen_anon_2.map_fd = map.as_raw_fd() as u32;
    attributes.__bindgen_anon_2.key = ptr::from_ref(key) as u64;
    attributes
}

/// Calls `visit` with every entry of a hash or longest-prefix map. Entries that are added or
/// removed at the same time may be missed. No entry is read half-written.
pub fn for_each<K: Plain, V: Plain>(map: BorrowedFd<'_>, mut visit: impl FnMut(&K, &V)) -> io::Result<()> {
    let info = map_info(map)?;
    if (info.key_size as usize, info.value_size as usize) != (size_of::<K>(), size_of::<V>()) {
        return Err(io::Error::other("its keys or values have another size"));
    }
    for_each_bytes(map, |key, value| {
        for (key, value) in values(key).zip(values(value)) {
            visit(&key, &value);
        }
    })
}

/// Calls `visit` with the bytes of every entry, see [`for_each`].
pub fn for_each_bytes(map: BorrowedFd<'_>, mut visit: impl FnMut(&[u8], &[u8])) -> io::Result<()> {
    /// `ENOTSUPP`, which is defined only in the kernel.
    const ENOTSUPP: i32 = 524;
    match for_each_by_batch(map, &mut visit) {
        // Longest-prefix maps before Linux 5.13. No entry was visited yet.
        Err(error) if error.raw_os_error() == Some(ENOTSUPP) => for_each_by_key(map, &mut visit),
        result => result,
    }
}

/// Reads entries one by one (`BPF_MAP_GET_NEXT_KEY`).
fn for_each_by_key(map: BorrowedFd<'_>, visit: &mut impl FnMut(&[u8], &[u8])) -> io::Result<()> {
    let info = map_info(map)?;
    let mut previous: Option<Vec<u8>> = None;
    // If a key was removed in the meantime, the kernel starts again at the first key. The limit
    // prevents an endless loop.
    for _ in 0..info.max_entries {
        let mut key = vec![0u8; info.key_size as usize];
        let last = previous.as_ref().map_or(ptr::null(), |key| key.as_ptr());
        // SAFETY: both have the size of a key.
        if !unsafe { get_next_key(map, last, key.as_mut_ptr()) }? {
            return Ok(());
        }
        if let Some(value) = lookup_bytes(map, &key, info.value_size as usize)? {
            visit(&key, &value);
        }
        previous = Some(key);
    }
    Ok(())
}

/// Reads many entries with one call (`BPF_MAP_LOOKUP_BATCH`, since Linux 5.6 for hash maps).
fn for_each_by_batch(map: BorrowedFd<'_>, visit: &mut impl FnMut(&[u8], &[u8])) -> io::Result<()> {
    let info = map_info(map)?;
    let (key_size, value_size) = (info.key_size as usize, info.value_size as usize);
    // A bucket must fit into one batch. If it does not, the kernel returns ENOSPC and the batch
    // grows.
    let mut size = 4096usize;
    // A position in the map: the number of a bucket for hash maps, a whole key for others
    // (`generic_map_lookup_batch`, kernel/bpf/syscall.c).
    let mut position = vec![0u8; key_size.max(size_of::<u32>())];
    let mut next = position.clone();
    let mut started = false;
    let (mut keys, mut values) = (Vec::new(), Vec::new());
    loop {
        keys.resize(size * key_size, 0u8);
        values.resize(size * value_size, 0u8);
        let mut attributes = attributes();
        attributes.batch.map_fd = map.as_raw_fd() as u32;
        attributes.batch.in_batch = if started { position.as_ptr() as u64 } else { 0 };
        attributes.batch.out_batch = next.as_mut_ptr() as u64;
        attributes.batch.keys = keys.as_mut_ptr() as u64;
        attributes.batch.values = values.as_mut_ptr() as u64;
        attributes.batch.count = size as u32;
        let done = match bpf(bpf_cmd::BPF_MAP_LOOKUP_BATCH, &mut attributes) {
            Ok(_) => false,
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => true,
            Err(error) if error.raw_os_error() == Some(libc::ENOSPC) && size < 1 << 20 => {
                size *= 4;
                continue;
            }
            Err(error) => return Err(error),
        };
        // SAFETY: the active member for this command; the kernel has written the number of entries
        // it filled.
        let count = unsafe { attributes.batch.count } as usize;
        let entries = keys.chunks_exact(key_size).zip(values.chunks_exact(value_size));
        entries.take(count).for_each(|(key, value)| visit(key, value));
        if done {
            return Ok(());
        }
        started = true;
        position.copy_from_slice(&next);
    }
}

/// The result of `BPF_PROG_TEST_RUN`.
#[derive(Debug, Clone)]
pub struct TestRun {
    /// The return code of the program.
    pub return_code: u32,
    /// The packet after the run.
    pub packet: Vec<u8>,
    /// The mean duration of one run in nanoseconds.
    pub nanoseconds: u32,
}

/// The number of bytes by which a packet can grow in a test run.
const TEST_RUN_HEADROOM: usize = 256;

/// Runs a program `repeat` times on a packet. `context` has the bytes of a `struct xdp_md` or
/// `struct __sk_buff`, or is empty.
pub fn test_run(program: BorrowedFd<'_>, packet: &[u8], context: &[u8], repeat: u32) -> io::Result<TestRun> {
    let mut out = vec![0u8; packet.len() + TEST_RUN_HEADROOM];
    let mut attributes = attributes();
    attributes.test.prog_fd = program.as_raw_fd() as u32;
    attributes.test.data_in = packet.as_ptr() as u64;
    attributes.test.data_size_in = packet.len() as u32;
    attributes.test.data_out = out.as_mut_ptr() as u64;
    attributes.test.data_size_out = out.len() as u32;
    attributes.test.repeat = repeat;
    if !context.is_empty() {
        attributes.test.ctx_in = context.as_ptr() as u64;
        attributes.test.ctx_size_in = context.len() as u32;
    }
    bpf(bpf_cmd::BPF_PROG_TEST_RUN, &mut attributes)?;
    // SAFETY: the active member for this command.
    let test = unsafe { attributes.test };
    out.truncate(test.data_size_out as usize);
    Ok(TestRun { return_code: test.retval, packet: out, nanoseconds: test.duration })
}

/// Returns the name of a device in this network namespace.
pub fn device_name(ifindex: u32) -> Option<String> {
    let mut name = [0u8; libc::IF_NAMESIZE];
    // SAFETY: the buffer has the size that the call requires.
    let result = unsafe { libc::if_indextoname(ifindex, name.as_mut_ptr().cast()) };
    if result.is_null() {
        return None;
    }
    Some(std::ffi::CStr::from_bytes_until_nul(&name).ok()?.to_string_lossy().into_owned())
}

/// Returns the index of a device in this network namespace.
pub fn device_index(name: &str) -> Option<u32> {
    let name = CString::new(name).ok()?;
    // SAFETY: the string ends with a zero byte.
    let index = unsafe { libc::if_nametoindex(name.as_ptr()) };
    (index != 0).then_some(index)
}

/// Returns the time of `CLOCK_MONOTONIC` in nanoseconds. Timestamps in maps use this clock.
pub fn monotonic_ns() -> u64 {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
    time.tv_sec as u64 * 1_000_000_000 + time.tv_nsec as u64
}

/// Returns the number of possible CPUs. A per-CPU entry has one value for each.
pub fn possible_cpus() -> io::Result<usize> {
    aya::util::nr_cpus().map_err(|(_, error)| error)
}

/// Returns the number of entries of a hash map or longest-prefix map.
pub fn count_entries(map: BorrowedFd<'_>) -> io::Result<usize> {
    let info = map_info(map)?;
    let mut key = vec![0u8; info.key_size as usize];
    let mut next = key.clone();
    // If a key was removed in the meantime, the kernel starts again at the first key. The limit
    // prevents an endless loop.
    for count in 0..info.max_entries as usize {
        let last = if count == 0 { ptr::null() } else { key.as_ptr() };
        // SAFETY: both have the size of a key.
        if !unsafe { get_next_key(map, last, next.as_mut_ptr()) }? {
            return Ok(count);
        }
        key.copy_from_slice(&next);
    }
    Ok(info.max_entries as usize)
}

/// Returns the type information of a map (`BTF`), or `None` if the map has none.
pub fn map_btf(map: &bpf_map_info) -> io::Result<Option<Vec<u8>>> {
    if map.btf_id == 0 {
        return Ok(None);
    }
    let btf = btf(map.btf_id)?;
    let size = object_info::<bpf_btf_info>(btf.as_fd())?.btf_size;
    let mut bytes = vec![0u8; size as usize];
    let mut info = bpf_btf_info {
        btf: bytes.as_mut_ptr() as u64,
        btf_size: size,
        id: 0,
        name: 0,
        name_len: 0,
        kernel_btf: 0,
    };
    fill_info(btf.as_fd(), &mut info)?;
    Ok(Some(bytes))
}

/// Returns the loaded programs of this system, in the order in which they were loaded.
pub fn programs() -> impl Iterator<Item = io::Result<OwnedFd>> {
    let mut last = 0;
    std::iter::from_fn(move || {
        loop {
            let mut attributes = attributes();
            attributes.__bindgen_anon_6.__bindgen_anon_1.start_id = last;
            match bpf(bpf_cmd::BPF_PROG_GET_NEXT_ID, &mut attributes) {
                Ok(_) => {}
                Err(error) if error.raw_os_error() == Some(libc::ENOENT) => return None,
                Err(error) => return Some(Err(error)),
            }
            // SAFETY: the active member for this command.
            last = unsafe { attributes.__bindgen_anon_6.next_id };
            match program_by_id(last) {
                // The program was removed in the meantime.
                Err(error) if error.raw_os_error() == Some(libc::ENOENT) => {}
                result => return Some(result),
            }
        }
    })
}

/// Returns the name of a program, which the kernel has truncated to 15 bytes.
pub fn program_name(info: &bpf_prog_info) -> String {
    // `c_char` is signed on some architectures.
    let bytes = info.name.map(|byte| byte.to_ne_bytes()[0]);
    String::from_utf8_lossy(bytes.split(|byte| *byte == 0).next().unwrap_or_default()).into_owned()
}

/// Returns the ids of the maps that a program uses.
pub fn program_map_ids(program: BorrowedFd<'_>) -> io::Result<Vec<u32>> {
    let count = program_info(program)?.nr_map_ids;
    let mut ids = vec![0u32; count as usize];
    // SAFETY: a C structure of plain numbers.
    let mut info: bpf_prog_info = unsafe { MaybeUninit::zeroed().assume_init() };
    info.nr_map_ids = count;
    info.map_ids = ids.as_mut_ptr() as u64;
    fill_info(program, &mut info)?;
    Ok(ids)
}

/// Writes an entry that is given as bytes. Key and value have the sizes of the map.
pub fn update_bytes(map: BorrowedFd<'_>, key: &[u8], value: &[u8], flags: u64) -> io::Result<()> {
    let mut attributes = bytes_element(map, key, value.as_ptr().cast_mut());
    attributes.__bindgen_anon_2.flags = flags;
    bpf(bpf_cmd::BPF_MAP_UPDATE_ELEM, &mut attributes).map(drop)
}

/// Reads an entry as bytes. `size` is the size of the value, for all CPUs of a per-CPU map.
pub fn lookup_bytes(map: BorrowedFd<'_>, key: &[u8], size: usize) -> io::Result<Option<Vec<u8>>> {
    let mut value = vec![0u8; size];
    match bpf(bpf_cmd::BPF_MAP_LOOKUP_ELEM, &mut bytes_element(map, key, value.as_mut_ptr())) {
        Ok(_) => Ok(Some(value)),
        Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(None),
        Err(error) => Err(error),
    }
}

fn bytes_element(map: BorrowedFd<'_>, key: &[u8], value: *mut u8) -> bpf_attr {
    let mut attributes = attributes();
    attributes.__bindgen_anon_2.map_fd = map.as_raw_fd() as u32;
    attributes.__bindgen_anon_2.key = key.as_ptr() as u64;
    attributes.__bindgen_anon_2.__bindgen_anon_1.value = value as u64;
    attributes
}

/// Returns the devices of this network namespace, by interface index.
pub fn device_indices() -> Vec<u32> {
    // SAFETY: the call has no preconditions. It returns null or an array that ends with index 0.
    let list = unsafe { libc::if_nameindex() };
    let mut indices = Vec::new();
    if list.is_null() {
        return indices;
    }
    let mut entry = list;
    // SAFETY: an element of the array, up to its end. The array is released once, after its use.
    unsafe {
        while (*entry).if_index != 0 {
            indices.push((*entry).if_index);
            entry = entry.add(1);
        }
        libc::if_freenameindex(list);
    }
    indices
}

/// Returns whether the frames of a device begin with an Ethernet header.
pub fn has_ethernet(name: &str) -> io::Result<bool> {
    let socket = socket(AddressFamily::INET, SocketType::DGRAM, None)?;
    // SAFETY: a C structure of plain numbers.
    let mut request: libc::ifreq = unsafe { MaybeUninit::zeroed().assume_init() };
    for (to, from) in request.ifr_name[..libc::IF_NAMESIZE - 1].iter_mut().zip(name.bytes()) {
        *to = libc::c_char::from_ne_bytes([from]);
    }
    // SAFETY: the request is valid for this command.
    let result =
        unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCGIFHWADDR as libc::Ioctl, &raw mut request) };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the active member for this command.
    let kind = unsafe { request.ifr_ifru.ifru_hwaddr.sa_family };
    Ok(matches!(kind, libc::ARPHRD_ETHER | libc::ARPHRD_LOOPBACK))
}

/// `SO_NETNS_COOKIE` of asm-generic/socket.h (Linux 5.14).
const SO_NETNS_COOKIE: libc::c_int = 71;

/// Returns the cookie of the network namespace of the calling thread. Programs identify the
/// namespace by it. Fails on kernels without such cookies.
pub fn namespace_cookie() -> io::Result<u64> {
    let socket = socket(AddressFamily::INET, SocketType::DGRAM, None)?;
    let mut cookie = 0u64;
    let mut length = size_of::<u64>() as libc::socklen_t;
    // SAFETY: the pointers are valid for the length given.
    let result = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            SO_NETNS_COOKIE,
            (&raw mut cookie).cast(),
            &raw mut length,
        )
    };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(cookie) }
}
