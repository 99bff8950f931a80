//! A virtual machine that runs one task. QEMU emulates it, and a daemon shares the host's files.
//!
//! The processor is emulated (TCG). This works on every host and is about twenty times slower.

use std::{
    ffi::CString,
    fs::{self, File},
    io::{Read as _, Write as _, stdout},
    os::unix::{ffi::OsStrExt as _, process::CommandExt as _},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};
use rustix::{
    mount::{MountFlags, MountPropagationFlags, mount_bind, mount_change, mount_remount},
    process::{Signal, set_parent_process_death_signal},
    thread::{UnshareFlags, unshare_unsafe},
};

use super::{
    arch::Arch,
    debian::{self, Kernel},
    guest::{GuestReport, GuestTask, SHARE, STEP_MARK, Step},
    image::{self, Init},
};
use crate::process::{command, text_of};

/// Paths of the daemon in Debian: in the packages of QEMU up to 7.2, and in its own package.
const VIRTIOFSD: [&str; 2] = ["/usr/lib/qemu/virtiofsd", "/usr/libexec/virtiofsd"];
/// Memory of a machine, in MiB. The host provides only the pages that the guest touches.
const MEMORY: u32 = 3072;
/// The files with the output of the programs, and with the reports, in the folder of a machine.
const OUTPUT: &str = "output";
const REPORTS: &str = "reports";
/// Options of every kernel. A panic ends the machine. Features that only cost time under emulation
/// are off.
const KERNEL_OPTIONS: &str =
    "panic=-1 rdinit=/init mitigations=off nokaslr audit=0 init_on_alloc=0 random.trust_cpu=on";

/// Returns the options of the kernel for a task.
fn kernel_options(arch: Arch, task: &GuestTask) -> String {
    let mut options = format!("{} {KERNEL_OPTIONS}", arch.kernel_options());
    if arch == Arch::X86_64 {
        options.push_str(&format!(" tsc_early_khz={}", host_ticks_per_millisecond()));
    }
    if let Some(level) = &task.lockdown {
        options.push_str(&format!(" lockdown={level}"));
    }
    options
}

/// Returns the frequency of the processor's time stamp counter, in kHz. A guest reads the counter
/// of the host. It measures the frequency with timers that QEMU emulates, and on a busy host it
/// measures a fraction: all its time limits then end too early.
fn host_ticks_per_millisecond() -> u64 {
    let [start, end] = [0, 200].map(|wait| {
        thread::sleep(Duration::from_millis(wait));
        time_and_ticks()
    });
    let microseconds = u64::try_from((end.0 - start.0).as_micros()).unwrap_or(u64::MAX);
    (end.1 - start.1) * 1000 / microseconds
}

/// Reads the clock and the time stamp counter at the same time. The attempt that took least has not
/// been interrupted.
fn time_and_ticks() -> (Instant, u64) {
    let attempts = (0..20).map(|_| {
        let (before, time, after) = (ticks(), Instant::now(), ticks());
        (after - before, (time, before))
    });
    attempts.min_by_key(|(took, _)| *took).expect("there are attempts").1
}

#[cfg(target_arch = "x86_64")]
fn ticks() -> u64 {
    // SAFETY: every processor of this architecture has the instruction.
    unsafe { std::arch::x86_64::_rdtsc() }
}

#[cfg(not(target_arch = "x86_64"))]
fn ticks() -> u64 {
    unreachable!("only x86-64 is emulated on x86-64: see `unavailable`")
}

/// The emulator, QEMU.
pub struct Qemu {
    arch: Arch,
    program: PathBuf,
    /// Folder of an unpacked QEMU. It needs options with the paths of its files, because it
    /// searches for them in the folders of an installation.
    unpacked: Option<PathBuf>,
}

impl Qemu {
    /// Returns the installed QEMU if it is new enough, else unpacks a newer one.
    pub fn provide(cache: &Path, arch: Arch) -> Result<Self> {
        let version = text_of(command(arch.qemu()).arg("--version")).unwrap_or_default();
        let major = version.split(|c: char| !c.is_ascii_digit()).find_map(|word| word.parse::<u32>().ok());
        if major.is_some_and(|major| major >= 8) {
            return Ok(Self { arch, program: arch.qemu().into(), unpacked: None });
        }
        let folder = debian::qemu(cache, arch)?;
        Ok(Self { arch, program: folder.join("usr/bin").join(arch.qemu()), unpacked: Some(folder) })
    }

    fn command(&self) -> Command {
        // Builds on this machine take precedence over the emulated machines.
        let mut command = Command::new("nice");
        command.arg(&self.program);
        if let Some(folder) = &self.unpacked {
            command.env("QEMU_MODULE_DIR", folder.join("usr/lib/x86_64-linux-gnu/qemu"));
            for data in ["usr/share/qemu", "usr/share/seabios"] {
                command.arg("-L").arg(folder.join(data));
            }
        }
        command
    }
}

/// The result of a step.
#[derive(Clone, Debug)]
pub struct Ended {
    pub step: String,
    /// `None` if the step was killed after its time limit.
    pub code: Option<i32>,
    pub seconds: f64,
    pub output: String,
}

/// The results of a machine.
pub struct Run {
    pub steps: Vec<Ended>,
    /// The output of all steps, also of one that has not ended.
    pub output: String,
    /// The last lines of the kernel's messages, if the task was not completed.
    pub trouble: Option<String>,
}

impl Run {
    /// Returns the output of a step that has ended.
    pub fn output_of(&self, step: &str) -> Option<&str> {
        self.steps.iter().find(|ended| ended.step == step).map(|ended| ended.output.as_str())
    }

    /// Returns how long all steps took.
    pub fn seconds(&self) -> f64 {
        self.steps.iter().map(|ended| ended.seconds).sum()
    }
}

/// A kernel with the machine that it boots in.
pub struct Guest<'a> {
    pub machine: &'a Machine,
    pub kernel: &'a Kernel,
    pub series: &'a str,
    /// The task, without steps.
    pub task: GuestTask,
    /// The folder for results.
    pub folder: PathBuf,
}

impl Guest<'_> {
    /// Boots the kernel, and runs these steps. The results are written to a folder.
    pub fn boot(&self, folder: &Path, steps: &[Step]) -> Result<Run> {
        let task = GuestTask { steps: steps.to_vec(), ..self.task.clone() };
        let limit = Duration::from_secs(60 + steps.iter().map(|step| step.limit).sum::<u64>());
        let run = run(self.machine, self.kernel, &task, folder, limit)?;
        if let Some(trouble) = &run.trouble {
            println!("{trouble}");
        }
        Ok(run)
    }
}

/// Boots a kernel with a task, and waits until the task is complete or `limit` has passed. The
/// machine's output is written to `folder`, and printed as it comes.
fn run(
    Machine { qemu, files, init }: &Machine,
    kernel: &Kernel,
    task: &GuestTask,
    folder: &Path,
    limit: Duration,
) -> Result<Run> {
    fs::create_dir_all(folder).with_context(|| format!("cannot create {}", folder.display()))?;
    let linux = image::bootable(kernel)?;
    let initramfs = folder.join("initramfs");
    image::initramfs(kernel, init, task, &initramfs)?;
    let [console, output, reports, errors] =
        ["console", OUTPUT, REPORTS, "qemu"].map(|name| folder.join(name));
    let share = Share::start(folder, files)?;
    let mut progress = Progress::of(&output)?;
    let mut command = qemu.command();
    command
        .args(qemu.arch.machine())
        .args(["-accel", "tcg", "-smp", "2", "-m", &MEMORY.to_string()])
        .args(["-nodefaults", "-no-user-config", "-display", "none", "-no-reboot", "-nic", "none"])
        .arg("-kernel")
        .arg(&linux)
        .arg("-initrd")
        .arg(&initramfs)
        .args(["-append", &kernel_options(qemu.arch, task)])
        .args(serial_ports(qemu.arch, &console, &output, &reports))
        .args(["-device", "virtio-rng-pci"])
        .args(["-object", &format!("memory-backend-memfd,id=memory,size={MEMORY}M,share=on")])
        .args(["-chardev", &format!("socket,id=share,path={}", share.socket.display())])
        .args(["-device", &format!("vhost-user-fs-pci,chardev=share,tag={SHARE}")])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(fs::File::create(&errors)?);
    // SAFETY: the closure makes one system call. The kernel kills QEMU when this program ends.
    unsafe { command.pre_exec(|| Ok(set_parent_process_death_signal(Some(Signal::KILL))?)) };
    let machine = Killed(command.spawn().context("cannot run QEMU")?);
    let ended = machine.wait(limit, || progress.print())?;
    progress.print()?;
    drop(share);
    fs::remove_file(&initramfs)?;
    let (mut run, last) = read(folder)?;
    run.trouble = (last != Some(GuestReport::Complete)).then(|| {
        let console = text(&console).unwrap_or_default();
        let lines: Vec<_> = console.lines().collect();
        let end = lines[lines.len().saturating_sub(15)..].join("\n");
        let errors = text(&errors).unwrap_or_default();
        let what = if ended { "ended" } else { "was stopped after its time" };
        let reason = match &last {
            Some(GuestReport::Broken { reason }) => reason.as_str(),
            _ => "",
        };
        format!("the machine {what} before its task was complete: {reason}\n{end}\n{errors}")
    });
    Ok(run)
}

/// Returns the results that a machine has left in its folder, and its last report.
pub fn read(folder: &Path) -> Result<(Run, Option<GuestReport>)> {
    let [output, reports] = [OUTPUT, REPORTS].map(|name| text(&folder.join(name)));
    let output = output?;
    let mut reports: Vec<GuestReport> =
        reports?.lines().filter_map(|line| serde_json::from_str(line).ok()).collect();
    let steps = reports.iter().filter_map(|report| match report {
        GuestReport::End { step, code, seconds } => Some(Ended {
            step: step.clone(),
            code: *code,
            seconds: *seconds,
            output: output_of(&output, step).to_owned(),
        }),
        _ => None,
    });
    let steps = steps.collect();
    Ok((Run { steps, output, trouble: None }, reports.pop()))
}

/// Returns the text that a machine has written to a port.
fn text(path: &Path) -> Result<String> {
    let bytes = fs::read(path).with_context(|| format!("cannot read {}", path.display()))?;
    Ok(String::from_utf8_lossy(&bytes).replace('\r', ""))
}

/// Returns the options for the ports that the guest knows: one for the console, one for the output
/// of programs, one for reports.
fn serial_ports(arch: Arch, console: &Path, output: &Path, reports: &Path) -> Vec<String> {
    let file = |path: &Path| format!("file:{}", path.display());
    let mut options = vec!["-serial".to_owned(), file(console)];
    if arch.has_serial_ports() {
        for port in [output, reports] {
            options.extend(["-serial".to_owned(), file(port)]);
        }
    } else {
        for (name, port) in [("output", output), ("reports", reports)] {
            options.extend(["-chardev".to_owned(), format!("file,id={name},path={}", port.display())]);
        }
        options.extend(["-device", "pci-serial-2x,chardev1=output,chardev2=reports"].map(str::to_owned));
    }
    options
}

/// Prints the output of a guest while it runs.
struct Progress(File);

impl Progress {
    fn of(output: &Path) -> Result<Self> {
        fs::write(output, "")?;
        Ok(Self(File::open(output)?))
    }

    /// Prints what was added to the file since the last call.
    fn print(&mut self) -> Result<()> {
        let mut bytes = Vec::new();
        self.0.read_to_end(&mut bytes)?;
        bytes.retain(|byte| *byte != b'\r');
        stdout().write_all(&bytes)?;
        Ok(stdout().flush()?)
    }
}

/// Returns the part of the output that a step printed.
fn output_of<'a>(output: &'a str, step: &str) -> &'a str {
    let mark = format!("{STEP_MARK}{step}\n");
    let of_step = output.split_once(&mark).map_or("", |(_, rest)| rest);
    of_step.split(STEP_MARK).next().unwrap_or("")
}

/// The files that a guest sees, read-only.
#[derive(Clone, Debug)]
pub struct Files {
    /// The folder that is the guest's root.
    pub root: PathBuf,
    /// Folders of the host that the guest sees at the same paths. `root` has a folder for each.
    pub folders: Vec<PathBuf>,
}

/// What the guests of a run have in common.
pub struct Machine {
    pub qemu: Qemu,
    pub files: Files,
    pub init: Init,
}

/// Shares files of the host read-only.
struct Share {
    socket: PathBuf,
    _daemon: Killed,
}

impl Share {
    fn start(folder: &Path, files: &Files) -> Result<Self> {
        let daemon = VIRTIOFSD.iter().find(|path| Path::new(path).is_file()).context(
            "there is no virtiofsd\nremedy: `apt-get install virtiofsd` (Debian 12: it is part of qemu-system-common)",
        )?;
        let root = folder.join("share");
        fs::create_dir_all(&root)?;
        let socket = folder.join("share.socket");
        let _ = fs::remove_file(&socket);
        let mut command = Command::new(daemon);
        command
            .arg(format!("--socket-path={}", socket.display()))
            .args(["-o", &format!("source={}", root.display())])
            .args(["-o", "sandbox=chroot", "-o", "cache=always", "-f"])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(fs::File::create(folder.join("virtiofsd"))?);
        let mut mounts = vec![Mount::new(&files.root, &root)?];
        for shared in &files.folders {
            mounts.push(Mount::new(shared, &root.join(shared.strip_prefix("/").unwrap_or(shared)))?);
        }
        // SAFETY: between fork and exec the closure makes system calls only. The daemon has no
        // threads yet, and the paths were allocated before.
        unsafe { command.pre_exec(move || mount_read_only(&mounts)) };
        let mut daemon = Killed(command.spawn().context("cannot run virtiofsd")?);
        let deadline = Instant::now() + Duration::from_secs(10);
        while !socket.exists() {
            if daemon.0.try_wait()?.is_some() || Instant::now() > deadline {
                bail!("virtiofsd did not start:\n{}", fs::read_to_string(folder.join("virtiofsd"))?);
            }
            thread::sleep(Duration::from_millis(20));
        }
        Ok(Self { socket, _daemon: daemon })
    }
}

/// A folder of the host, and the place where it is shared.
struct Mount {
    source: CString,
    target: CString,
}

impl Mount {
    fn new(source: &Path, target: &Path) -> Result<Self> {
        let text = |path: &Path| CString::new(path.as_os_str().as_bytes());
        Ok(Self { source: text(source)?, target: text(target)? })
    }
}

/// Mounts folders read-only, in this order, for this process alone. The daemon has no option for a
/// read-only share.
fn mount_read_only(mounts: &[Mount]) -> std::io::Result<()> {
    set_parent_process_death_signal(Some(Signal::KILL))?;
    // SAFETY: nothing else of this process depends on its mount namespace: it is about to become
    // another program.
    unsafe { unshare_unsafe(UnshareFlags::NEWNS)? };
    mount_change(c"/", MountPropagationFlags::PRIVATE | MountPropagationFlags::REC)?;
    for Mount { source, target } in mounts {
        mount_bind(source.as_c_str(), target.as_c_str())?;
        mount_remount(target.as_c_str(), MountFlags::BIND | MountFlags::RDONLY, c"")?;
    }
    Ok(())
}

/// A child process that is killed when dropped.
struct Killed(Child);

impl Killed {
    /// Waits until the process ends. Returns false if it still runs after `limit`. Calls `watch`
    /// again and again meanwhile.
    fn wait(mut self, limit: Duration, mut watch: impl FnMut() -> Result<()>) -> Result<bool> {
        let deadline = Instant::now() + limit;
        while Instant::now() < deadline {
            watch()?;
            if self.0.try_wait()?.is_some() {
                return Ok(true);
            }
            thread::sleep(Duration::from_millis(100));
        }
        Ok(false)
    }
}

impl Drop for Killed {
    fn drop(&mut self) {
        // Both calls fail only if the process has ended.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
