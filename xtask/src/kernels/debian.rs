//! Kernels and QEMU from Debian's archives, unpacked below `target/kernels/`, never installed.
//!
//! apt runs with folders of its own (sources, lists, status), so that the machine's configuration
//! neither matters nor changes.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result, bail};
use lb_build::progress::{report, timed};

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

/// An unpacked kernel.
#[derive(Clone, Debug)]
pub struct Kernel {
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
pub fn provide(cache: &Path, series: &str, refresh: bool) -> Result<Kernel> {
    let folder = cache.join("linux").join(series);
    let mark = folder.join("release");
    if !refresh && let Ok(release) = fs::read_to_string(&mark) {
        return Ok(Kernel { release, folder });
    }
    let apt = Apt::new(cache)?;
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
    Ok(Kernel { release, folder })
}

/// Returns the folder of QEMU 10, which emulates twice as fast as Debian 12's.
pub fn qemu(cache: &Path) -> Result<PathBuf> {
    let folder = cache.join("qemu");
    let mark = folder.join("complete");
    if !mark.is_file() {
        let _ = fs::remove_dir_all(&folder);
        let apt = Apt::new(cache)?;
        apt.update(QEMU)?;
        let packages =
            ["qemu-system-x86", "qemu-system-common", "qemu-system-data", "seabios"].map(str::to_owned);
        timed(task::KERNELS, "fetched QEMU", || apt.unpack(QEMU, &packages, &folder))?;
        fs::write(&mark, "")?;
    }
    Ok(folder)
}

/// apt with folders of its own.
struct Apt {
    folder: PathBuf,
    mirror: String,
}

impl Apt {
    fn new(cache: &Path) -> Result<Self> {
        let folder = cache.join("apt");
        fs::create_dir_all(&folder).with_context(|| format!("cannot create {}", folder.display()))?;
        fs::write(folder.join("status"), "")?;
        Ok(Self { folder, mirror: mirror() })
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
            .args(["-o", "APT::Sandbox::User=root", "-o", "Acquire::Languages=none"]);
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
        for release in releases(&names, series) {
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

/// Returns the mirror that this machine uses for Debian.
fn mirror() -> String {
    let sources = fs::read_to_string("/etc/apt/sources.list.d/debian.sources").unwrap_or_default();
    let uri = sources.lines().find_map(|line| line.strip_prefix("URIs:"));
    let uri = uri.and_then(|uris| uris.split_whitespace().next());
    uri.unwrap_or(MIRROR).trim_end_matches('/').to_owned()
}

/// Returns the cloud kernels of a series among the names of packages, the newest first.
fn releases(names: &str, series: &str) -> Vec<String> {
    let mut releases: Vec<String> = names
        .lines()
        .filter_map(|name| name.strip_prefix("linux-image-"))
        .filter(|release| release.ends_with("-cloud-amd64"))
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
    use super::releases;

    #[test]
    fn the_newest_of_a_series_comes_first() {
        let names = "linux-image-6.1.0-9-cloud-amd64\nlinux-image-6.1.0-56-cloud-amd64\n\
                     linux-image-6.1.0-56-cloud-amd64-dbg\nlinux-image-6.1.0-56-amd64\n\
                     linux-image-cloud-amd64\nlinux-image-6.12.117+deb13-cloud-amd64\n";
        assert_eq!(releases(names, "6.1"), ["6.1.0-56-cloud-amd64", "6.1.0-9-cloud-amd64"]);
        assert_eq!(releases(names, "newest")[0], "6.12.117+deb13-cloud-amd64");
    }
}
