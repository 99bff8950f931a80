//! The code that runs inside the virtual machine, where this program is the first process.
//!
//! It mounts the host's root file system read-only with a file system in memory on top, runs the
//! steps of its task there, reports over serial ports, and turns the machine off.

use std::{
    fs::{self, File, OpenOptions},
    io::Write as _,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use rustix::{
    mount::{MountFlags, UnmountFlags, mount, mount_bind, unmount},
    process::{Resource, Rlimit, setrlimit},
    system::{RebootCommand, finit_module, reboot, sethostname},
};
use serde::{Deserialize, Serialize};

/// Path of the task in the initial file system.
pub const TASK_FILE: &str = "/task.json";
/// Name of the share with the host's root.
pub const SHARE: &str = "host";
/// Serial port for the output of programs. The machine for aarch64 has a port of another kind for
/// the console.
const OUTPUT: &str = if cfg!(target_arch = "aarch64") { "/dev/ttyS0" } else { "/dev/ttyS1" };
/// The line before the output of a step begins with this text. The name of the step follows it.
pub const STEP_MARK: &str = "── in the guest: ";
/// Serial port for reports. Each line is one [`GuestReport`].
const REPORTS: &str = if cfg!(target_arch = "aarch64") { "/dev/ttyS1" } else { "/dev/ttyS2" };
/// `PATH` of programs in the guest.
const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// A part of the kernel that is taken away before the steps run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
pub enum Without {
    /// The BPF compiler: programs are interpreted
    Jit,
    /// The modules of tc filters: `sch_ingress` and `cls_bpf`
    TcFilters,
    /// The unified cgroup hierarchy: the controllers are in version 1, and version 2 is beside them
    UnifiedCgroups,
}

impl Without {
    fn take_away(self) -> Result<()> {
        // modprobe runs this command in place of loading the module.
        const BLOCKED: &str = "install sch_ingress /bin/false\ninstall cls_bpf /bin/false\n";
        let (path, text) = match self {
            Self::Jit => ("/root/proc/sys/net/core/bpf_jit_enable", "0"),
            Self::TcFilters => ("/root/etc/modprobe.d/sluice-without.conf", BLOCKED),
            Self::UnifiedCgroups => return split_cgroups(),
        };
        if let Some(folder) = Path::new(path).parent() {
            fs::create_dir_all(folder)?;
        }
        fs::write(path, text).with_context(|| format!("write {path}"))
    }
}

/// Mounts the cgroup hierarchies as distributions did before cgroup v2 had controllers: one for
/// each controller, and version 2 in a folder beside them.
fn split_cgroups() -> Result<()> {
    let root = Path::new("/root/sys/fs/cgroup");
    unmount(root, UnmountFlags::empty()).context("unmount the unified hierarchy")?;
    attach("tmpfs", "tmpfs", root, "mode=755")?;
    let controllers = fs::read_to_string("/root/proc/cgroups").context("read the controllers")?;
    for controller in v1_controllers(&controllers) {
        let folder = root.join(controller);
        fs::create_dir(&folder)?;
        attach("cgroup", "cgroup", &folder, controller)?;
    }
    let unified = root.join("unified");
    fs::create_dir(&unified)?;
    attach("cgroup2", "cgroup2", &unified, "")
}

/// Returns the enabled controllers in `/proc/cgroups`.
fn v1_controllers(cgroups: &str) -> Vec<&str> {
    // #subsys_name	hierarchy	num_cgroups	enabled
    let enabled = |line: &&str| !line.starts_with('#') && line.ends_with("\t1");
    cgroups.lines().filter(enabled).filter_map(|line| line.split('\t').next()).collect()
}

/// The task of a machine.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct GuestTask {
    /// The release of the kernel, as `uname -r` prints it.
    pub release: String,
    /// Folder of the kernel's modules on the host.
    pub modules: PathBuf,
    /// Modules in the initial file system, in the order of loading.
    pub early_modules: Vec<String>,
    /// Modules that the kernel does not load on demand.
    pub late_modules: Vec<String>,
    /// Working directory of the steps.
    pub folder: PathBuf,
    /// Level of kernel lockdown that the machine was booted with.
    pub lockdown: Option<String>,
    pub without: Vec<Without>,
    pub steps: Vec<Step>,
}

impl GuestTask {
    /// Returns whether the task uses files of the host below a folder.
    fn needs_folder(&self, folder: &Path) -> bool {
        let programs = self.steps.iter().map(|step| &step.program);
        programs.chain([&self.folder, &self.modules]).any(|path| path.starts_with(folder))
    }
}

/// A program that is run to its end.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Step {
    pub name: String,
    pub program: PathBuf,
    pub arguments: Vec<String>,
    pub environment: Vec<(String, String)>,
    /// Seconds after which the program is killed.
    pub limit: u64,
}

/// A message about the progress of a task.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum GuestReport {
    /// A step has ended. `code` is `None` if it was killed.
    End { step: String, code: Option<i32>, seconds: f64 },
    /// The machine could not run the steps.
    Broken { reason: String },
    /// All steps were run.
    Complete,
}

/// Returns whether this process is the first one of a machine that was started for a task.
pub fn is_guest() -> bool {
    std::process::id() == 1 && Path::new(TASK_FILE).exists()
}

/// Runs the task and turns the machine off.
pub fn main() -> Result<()> {
    let mut result = devices();
    if result.is_ok()
        && let Ok(mut reports) = OpenOptions::new().write(true).open(REPORTS)
    {
        result = run(&mut reports);
        let last = match &result {
            Ok(()) => GuestReport::Complete,
            Err(error) => GuestReport::Broken { reason: format!("{error:#}") },
        };
        // If the last report is missing, the host considers the machine broken.
        let _ = send(&mut reports, &last);
    }
    if let Err(error) = &result {
        eprintln!("{error:#}");
    }
    // Data in the buffers of the serial ports is lost when the power is turned off.
    thread::sleep(Duration::from_millis(200));
    reboot(RebootCommand::PowerOff).context("turn the machine off")
}

fn devices() -> Result<()> {
    attach("devtmpfs", "devtmpfs", "/dev", "")
}

fn run(reports: &mut File) -> Result<()> {
    let task: GuestTask = serde_json::from_slice(&fs::read(TASK_FILE)?).context("read the task")?;
    allow_open_files();
    attach("proc", "proc", "/proc", "")?;
    attach("sysfs", "sysfs", "/sys", "")?;
    for module in &task.early_modules {
        let file = File::open(Path::new("/modules").join(module))?;
        finit_module(&file, c"", 0).with_context(|| format!("load the module {module}"))?;
    }
    root(&task)?;
    check_lockdown(task.lockdown.as_deref())?;
    task.without.iter().try_for_each(|without| without.take_away())?;
    let mut output = OpenOptions::new().write(true).open(OUTPUT)?;
    // The kernel's threads have the same root as this process, so the kernel loads modules on
    // demand with the host's /sbin/modprobe.
    std::os::unix::fs::chroot("/root").context("change the root")?;
    std::env::set_current_dir(&task.folder)
        .with_context(|| format!("enter {} (is it on the root file system?)", task.folder.display()))?;
    command(Path::new("ip"), &output)?.args(["link", "set", "lo", "up"]).status().context("run ip")?;
    for module in &task.late_modules {
        // A module may be built in. If the kernel lacks it, the tests that need it fail.
        command(Path::new("modprobe"), &output)?.args(["-q", module]).status().context("run modprobe")?;
    }
    for step in &task.steps {
        writeln!(output, "\n{STEP_MARK}{}", step.name)?;
        let start = Instant::now();
        let code = execute(step, &output)?;
        let seconds = start.elapsed().as_secs_f64();
        send(reports, &GuestReport::End { step: step.name.clone(), code, seconds })?;
    }
    Ok(())
}

/// Raises the limit of open files that a process may choose, as the first process of a distribution
/// does.
fn allow_open_files() {
    let limit = Rlimit { current: Some(1024), maximum: Some(512 * 1024) };
    // The kernel's own limit is 4,096 files.
    if let Err(error) = setrlimit(Resource::Nofile, limit) {
        eprintln!("the limit of open files stays: {error}");
    }
}

/// Sets up `/root`: the host's files with changes kept in memory, and this kernel's own file
/// systems and modules.
fn root(task: &GuestTask) -> Result<()> {
    mount(SHARE, "/host", "virtiofs", MountFlags::RDONLY, None).context("mount the host's root")?;
    attach("tmpfs", "writable", "/writable", "size=70%,mode=755")?;
    for folder in ["/writable/upper", "/writable/work"] {
        fs::create_dir(folder)?;
    }
    attach("overlay", "root", "/root", "lowerdir=/host,upperdir=/writable/upper,workdir=/writable/work")?;
    for (kind, path) in [
        ("proc", "proc"),
        ("sysfs", "sys"),
        ("devtmpfs", "dev"),
        ("tmpfs", "dev/shm"),
        ("devpts", "dev/pts"),
        ("tmpfs", "run"),
        ("tmpfs", "tmp"),
        ("cgroup2", "sys/fs/cgroup"),
        ("bpf", "sys/fs/bpf"),
        ("securityfs", "sys/kernel/security"),
    ] {
        // A checkout below /tmp or /run must stay visible.
        if kind == "tmpfs" && task.needs_folder(&Path::new("/").join(path)) {
            continue;
        }
        let path = Path::new("/root").join(path);
        if !path.exists() {
            fs::create_dir_all(&path)?;
        }
        attach(kind, kind, path, "")?;
    }
    // /lib is a link into /usr, and absolute links would leave the new root.
    let modules = Path::new("/root/usr/lib/modules").join(&task.release);
    fs::create_dir_all(&modules)?;
    let source = Path::new("/root").join(task.modules.strip_prefix("/").unwrap_or(&task.modules));
    mount_bind(&source, &modules).with_context(|| format!("mount {}", source.display()))?;
    sethostname(b"guest")?;
    Ok(())
}

/// Fails if the kernel is not locked down to this level: the results would prove nothing.
fn check_lockdown(level: Option<&str>) -> Result<()> {
    let Some(level) = level else { return Ok(()) };
    let levels =
        fs::read_to_string("/root/sys/kernel/security/lockdown").context("read the lockdown level")?;
    ensure!(levels.contains(&format!("[{level}]")), "lockdown is {levels:?}, not {level}");
    Ok(())
}

fn attach(kind: &str, source: &str, path: impl AsRef<Path>, options: &str) -> Result<()> {
    let path = path.as_ref();
    let options = std::ffi::CString::new(options)?;
    mount(source, path, kind, MountFlags::empty(), options.as_c_str())
        .with_context(|| format!("mount {kind} at {}", path.display()))
}

fn command(program: &Path, output: &File) -> Result<Command> {
    let mut command = Command::new(program);
    command.env_clear().env("PATH", PATH).env("HOME", "/root").env("LANG", "C.UTF-8");
    command.stdin(Stdio::null()).stdout(output.try_clone()?).stderr(output.try_clone()?);
    Ok(command)
}

/// Runs a step. Returns its exit code, or `None` if it was killed.
fn execute(step: &Step, output: &File) -> Result<Option<i32>> {
    let mut command = command(&step.program, output)?;
    command.args(&step.arguments).envs(step.environment.iter().map(|(name, value)| (name, value)));
    let mut child = command.spawn().with_context(|| format!("run {}", step.program.display()))?;
    let deadline = Instant::now() + Duration::from_secs(step.limit);
    loop {
        if let Some(status) = child.try_wait()? {
            return Ok(status.code());
        }
        if Instant::now() > deadline {
            child.kill()?;
            child.wait()?;
            return Ok(None);
        }
        thread::sleep(Duration::from_millis(50));
    }
}

fn send(reports: &mut File, report: &GuestReport) -> Result<()> {
    writeln!(reports, "{}", serde_json::to_string(report)?).context("write a report")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn enabled_controllers_are_mounted() {
        let cgroups =
            "#subsys_name\thierarchy\tnum_cgroups\tenabled\ncpu\t0\t1\t1\nmemory\t0\t1\t0\npids\t0\t1\t1\n";
        assert_eq!(v1_controllers(cgroups), ["cpu", "pids"]);
    }

    #[test]
    fn a_checkout_below_tmp_is_needed() {
        let task = GuestTask { folder: "/tmp/checkout".into(), ..GuestTask::default() };
        assert!(task.needs_folder(Path::new("/tmp")));
        assert!(!task.needs_folder(Path::new("/run")));
        let step = Step {
            name: "load".into(),
            program: "/run/target/debug/lb".into(),
            arguments: Vec::new(),
            environment: Vec::new(),
            limit: 1,
        };
        assert!(GuestTask { steps: vec![step], ..task }.needs_folder(Path::new("/run")));
    }
}
