//! Kernels and QEMU from Debian's archives, unpacked below `target/kernels/`, never installed.
//!
//! apt runs with folders of its own (sources, lists, status), so that the machine's configuration
//! neither matters nor changes.

use std::{
    fs,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result, bail};
use lb_build::progress::{report, timed};

use super::arch::Arch;
use crate::{
    process::{command, text_of},
    task,
};

/// The series that stands for the newest kernel of all.
pub const NEWEST: &str = "newest";

/// The mirror that is used if the configuration of apt on this machine names none.
const MIRROR: &str = "http://deb.debian.org/debian";

/// A suite of Debian with kernel packages. Suites drop old kernels, so the newest of a series is
/// used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Suite {
    name: &'static str,
    /// The suite is in the archive of security updates.
    security: bool,
}

const fn suite(name: &'static str, security: bool) -> Suite {
    Suite { name, security }
}

/// All suites with kernels. In this order they have 5.10, 6.1, 6.12, 6.18 or later, and the newest.
const KERNELS: [Suite; 5] = [
    suite("bullseye-security", true),
    suite("bookworm-security", true),
    suite("trixie", false),
    suite("trixie-backports", false),
    suite("sid", false),
];

/// The suite with a QEMU that runs with the libraries of Debian 12.
const QEMU: Suite = suite("bookworm-backports", false);

/// The suite with the programs of guests that cannot use those of this machine. All its packages
/// have their files below `/usr`.
const PROGRAMS: Suite = suite("trixie", false);

/// The suite of nginx and HAProxy.
const SERVERS: Suite = suite("bookworm", false);

/// Packages with the programs that the tests run in guests. apt adds what these depend on.
const GUEST_PACKAGES: [&str; 9] =
    ["bash", "bpftool", "coreutils", "ethtool", "iproute2", "ipvsadm", "kmod", "mount", "nftables"];

/// Folders at the root that are links into `/usr`.
const MERGED: [&str; 3] = ["bin", "lib", "sbin"];

/// An unpacked kernel.
#[derive(Clone, Debug)]
pub struct Kernel {
    pub arch: Arch,
    /// The release, as `uname -r` prints it.
    pub release: String,
    /// The folder with its files.
    pub folder: PathBuf,
}

impl Kernel {
    /// Returns the folder `…/lib/modules/<release>`.
    pub fn modules(&self) -> PathBuf {
        modules(&self.folder, &self.release)
    }

    /// Returns the path of the compressed kernel.
    pub fn image(&self) -> Result<PathBuf> {
        [self.folder.join(format!("boot/vmlinuz-{}", self.release)), self.modules().join("vmlinuz")]
            .into_iter()
            .find(|path| path.is_file())
            .with_context(|| format!("the packages of {} have no vmlinuz", self.release))
    }
}

fn modules(folder: &Path, release: &str) -> PathBuf {
    let path = |root: &str| folder.join(root).join(release);
    // Debian moved them below /usr in 2024.
    let [old, new] = ["lib/modules", "usr/lib/modules"].map(path);
    if old.is_dir() { old } else { new }
}

/// Returns the newest kernel of a series, from the cache or else from Debian.
pub fn provide(cache: &Path, arch: Arch, series: &str, refresh: bool) -> Result<Kernel> {
    let folder = cache.join(arch.folder("linux")).join(series);
    let mark = folder.join("release");
    if !refresh && let Ok(release) = fs::read_to_string(&mark) {
        return Ok(Kernel { arch, release, folder });
    }
    let apt = Apt::new(cache, arch)?;
    let mut found: Option<(Suite, String)> = None;
    for suite in KERNELS {
        // The name of a suite does not show its series, so all suites are searched.
        let Some(release) = apt.newest(suite, series)? else { continue };
        if found.as_ref().is_none_or(|(_, other)| version(other) < version(&release)) {
            found = Some((suite, release));
        }
    }
    let Some((suite, release)) = found else {
        bail!("no suite of Debian has a cloud kernel of the series {series}");
    };
    let _ = fs::remove_dir_all(&folder);
    timed(task::KERNELS, &format!("fetched Linux {release} from {}", suite.name), || {
        apt.unpack(suite, &apt.packages(suite, &release)?, &folder)
    })?;
    // No package contains modules.dep.
    let modules = modules(&folder, &release);
    let root = modules.ancestors().nth(3).context("lib/modules/<release> is in a folder")?;
    text_of(command("depmod").arg("-b").arg(root).arg(&release))?;
    fs::write(&mark, &release).with_context(|| format!("cannot write {}", mark.display()))?;
    Ok(Kernel { arch, release, folder })
}

/// Returns the folder of QEMU 10, which emulates twice as fast as Debian 12's. `arch` is the
/// architecture that it emulates.
pub fn qemu(cache: &Path, arch: Arch) -> Result<PathBuf> {
    unpacked(task::KERNELS, cache, &arch.folder("qemu"), QEMU, arch.qemu_packages())
}

/// Returns the folder of testssl.sh, with the version that grades.
pub fn testssl(cache: &Path) -> Result<PathBuf> {
    unpacked(task::INGRESS_SUITES, cache, "testssl", PROGRAMS, &["testssl.sh"])
}

/// Returns the folder of nginx 1.22 and HAProxy 2.6, with the libraries that a machine may lack.
pub fn http_servers(cache: &Path) -> Result<PathBuf> {
    const PACKAGES: [&str; 7] = [
        "nginx",
        "haproxy",
        "liblua5.3-0",
        "libopentracing-c-wrapper0",
        "libopentracing1",
        "libpcre2-8-0",
        "libssl3",
    ];
    unpacked(task::BENCH, cache, "servers", SERVERS, &PACKAGES)
}

/// Returns a folder with these packages for the programs of this machine, without what they depend
/// on.
fn unpacked(task: &str, cache: &Path, name: &str, suite: Suite, packages: &[&str]) -> Result<PathBuf> {
    let folder = cache.join(name);
    let mark = folder.join("complete");
    if !mark.is_file() {
        let _ = fs::remove_dir_all(&folder);
        let apt = Apt::new(cache, Arch::X86_64)?;
        apt.update(suite)?;
        let packages: Vec<String> = packages.iter().map(ToString::to_string).collect();
        timed(task, &format!("fetched {}", packages.join(" ")), || apt.unpack(suite, &packages, &folder))?;
        fs::write(&mark, "")?;
    }
    Ok(folder)
}

/// Returns a folder with the programs of guests whose architecture is not that of this machine.
pub fn root(cache: &Path, arch: Arch) -> Result<PathBuf> {
    let folder = cache.join(arch.folder("root"));
    let mark = cache.join(arch.folder("root-complete"));
    // A folder with other packages is replaced.
    let wanted = GUEST_PACKAGES.join(" ");
    if fs::read_to_string(&mark).ok().as_ref() != Some(&wanted) {
        let _ = fs::remove_dir_all(&folder);
        for merged in MERGED {
            fs::create_dir_all(folder.join("usr").join(merged))?;
            symlink(format!("usr/{merged}"), folder.join(merged))?;
        }
        let apt = Apt::new(cache, arch)?;
        apt.update(PROGRAMS)?;
        let packages = apt.with_dependencies(PROGRAMS, &GUEST_PACKAGES)?;
        timed(task::KERNELS, &format!("fetched {} packages for guests", packages.len()), || {
            apt.unpack(PROGRAMS, &packages, &folder)
        })?;
        fs::write(&mark, wanted)?;
    }
    Ok(folder)
}

/// apt with folders of its own.
struct Apt {
    folder: PathBuf,
    mirror: String,
    arch: Arch,
}

impl Apt {
    /// `arch` is the architecture of the packages.
    fn new(cache: &Path, arch: Arch) -> Result<Self> {
        let folder = cache.join(arch.folder("apt"));
        fs::create_dir_all(&folder).with_context(|| format!("cannot create {}", folder.display()))?;
        fs::write(folder.join("status"), "")?;
        Ok(Self { folder, mirror: mirror(), arch })
    }

    /// Returns a command that runs `apt-get` or `apt-cache` for one suite.
    fn command(&self, program: &str, suite: Suite) -> Command {
        let folder = self.folder.join(suite.name);
        let mut command = Command::new(program);
        command
            .arg("-qq")
            .arg("-o")
            .arg(format!("Dir::Etc::SourceList={}", folder.join("sources.list").display()))
            .args(["-o", "Dir::Etc::SourceParts=/dev/null"])
            .arg("-o")
            .arg(format!("Dir::State::Lists={}", folder.join("lists").display()))
            .arg("-o")
            .arg(format!("Dir::State::Status={}", self.folder.join("status").display()))
            // A package cache would be rebuilt for each suite.
            .args(["-o", "Dir::Cache::PkgCache=", "-o", "Dir::Cache::SrcPkgCache="])
            // root reads and writes below target/, where apt's own user may not.
            .args(["-o", "APT::Sandbox::User=root", "-o", "Acquire::Languages=none"])
            .arg("-o")
            .arg(format!("APT::Architecture={}", self.arch.debian()))
            .arg("-o")
            .arg(format!("APT::Architectures={}", self.arch.debian()));
        command
    }

    /// Fetches the list of packages of a suite, once a day at most.
    fn update(&self, suite: Suite) -> Result<()> {
        let folder = self.folder.join(suite.name);
        fs::create_dir_all(folder.join("lists/partial"))?;
        let stamp = folder.join("updated");
        let age =
            fs::metadata(&stamp).and_then(|stamp| stamp.modified()).ok().and_then(|at| at.elapsed().ok());
        if age.is_some_and(|age| age.as_secs() < 24 * 60 * 60) {
            return Ok(());
        }
        let archive = if suite.security { format!("{}-security", self.mirror) } else { self.mirror.clone() };
        let line = format!("deb {archive} {} main\n", suite.name);
        fs::write(folder.join("sources.list"), line)?;
        report(task::KERNELS, &format!("fetching the package list of {}", suite.name));
        text_of(self.command("apt-get", suite).arg("update"))?;
        fs::write(stamp, "")?;
        Ok(())
    }

    /// Returns the newest cloud kernel of a series in a suite. The series `newest` stands for all.
    fn newest(&self, suite: Suite, series: &str) -> Result<Option<String>> {
        self.update(suite)?;
        let names = text_of(self.command("apt-cache", suite).args(["pkgnames", "linux-"]))?;
        for release in releases(&names, series, self.arch) {
            if self.has(suite, &format!("linux-image-{release}"))? {
                return Ok(Some(release));
            }
        }
        Ok(None)
    }

    /// Returns whether the suite contains a package. apt also lists names that only occur in the
    /// dependencies of other packages; these have no file.
    fn has(&self, suite: Suite, package: &str) -> Result<bool> {
        let output =
            self.command("apt-cache", suite).args(["show", "--no-all-versions", package]).output()?;
        Ok(String::from_utf8_lossy(&output.stdout).lines().any(|line| line.starts_with("Filename:")))
    }

    /// Returns the packages of a kernel. From 7.0 on the image is in `linux-binary`, and
    /// `linux-image` only depends on others.
    fn packages(&self, suite: Suite, release: &str) -> Result<Vec<String>> {
        let mut packages = Vec::new();
        for kind in ["binary", "image", "modules", "base"] {
            let package = format!("linux-{kind}-{release}");
            let replaced = kind == "image" && !packages.is_empty();
            if !replaced && self.has(suite, &package)? {
                packages.push(package);
            }
        }
        Ok(packages)
    }

    /// Returns these packages and all that they depend on.
    fn with_dependencies(&self, suite: Suite, packages: &[&str]) -> Result<Vec<String>> {
        let mut install = self.command("apt-get", suite);
        install.args(["install", "--simulate", "--no-install-recommends"]).args(packages);
        let plan = text_of(&mut install)?;
        Ok(plan.lines().filter_map(installed).map(str::to_owned).collect())
    }

    /// Downloads packages and unpacks them into a folder.
    fn unpack(&self, suite: Suite, packages: &[String], folder: &Path) -> Result<()> {
        let downloads = self.folder.join("downloads");
        let _ = fs::remove_dir_all(&downloads);
        fs::create_dir_all(&downloads)?;
        fs::create_dir_all(folder)?;
        text_of(self.command("apt-get", suite).arg("download").args(packages).current_dir(&downloads))?;
        for file in fs::read_dir(&downloads)? {
            text_of(command("dpkg-deb").arg("-x").arg(file?.path()).arg(folder))?;
        }
        fs::remove_dir_all(&downloads)?;
        Ok(())
    }
}

/// Returns the package that this line of a simulated installation installs.
fn installed(line: &str) -> Option<&str> {
    line.strip_prefix("Inst ")?.split_whitespace().next()
}

/// Returns the mirror that this machine uses for Debian.
fn mirror() -> String {
    let sources = fs::read_to_string("/etc/apt/sources.list.d/debian.sources").unwrap_or_default();
    let uri = sources.lines().find_map(|line| line.strip_prefix("URIs:"));
    let uri = uri.and_then(|uris| uris.split_whitespace().next());
    uri.unwrap_or(MIRROR).trim_end_matches('/').to_owned()
}

/// Returns the cloud kernels of a series among the names of packages, the newest first.
fn releases(names: &str, series: &str, arch: Arch) -> Vec<String> {
    let flavour = format!("-cloud-{}", arch.debian());
    let mut releases: Vec<String> = names
        .lines()
        .filter_map(|name| name.strip_prefix("linux-image-"))
        .filter(|release| release.ends_with(&flavour))
        .filter(|release| series == NEWEST || release.starts_with(&format!("{series}.")))
        .filter(|release| version(release).len() > 2)
        .map(str::to_owned)
        .collect();
    releases.sort_by_key(|release| std::cmp::Reverse(version(release)));
    releases
}

/// Returns the numbers in the name of a release. They order releases.
fn version(release: &str) -> Vec<u32> {
    release.split(|c: char| !c.is_ascii_digit()).filter_map(|number| number.parse().ok()).collect()
}

#[cfg(test)]
mod tests {
    use super::{Arch, installed, releases};

    #[test]
    fn the_newest_of_a_series_comes_first() {
        let names = "linux-image-6.1.0-9-cloud-amd64\nlinux-image-6.1.0-56-cloud-amd64\n\
                     linux-image-6.1.0-56-cloud-amd64-dbg\nlinux-image-6.1.0-56-amd64\n\
                     linux-image-cloud-amd64\nlinux-image-6.12.117+deb13-cloud-amd64\n";
        let releases = |series| releases(names, series, Arch::X86_64);
        assert_eq!(releases("6.1"), ["6.1.0-56-cloud-amd64", "6.1.0-9-cloud-amd64"]);
        assert_eq!(releases("newest")[0], "6.12.117+deb13-cloud-amd64");
    }

    #[test]
    fn a_simulated_installation_names_packages() {
        assert_eq!(installed("Inst libc6 (2.41-12 Debian:13.8/stable [arm64]) []"), Some("libc6"));
        assert_eq!(installed("Conf libc6 (2.41-12 Debian:13.8/stable [arm64])"), None);
    }
}
