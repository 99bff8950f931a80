//! The root file system of the image, and the OCI layout that umoci writes from it.

use std::{
    fs::{self, File, FileTimes, Permissions},
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    time::{Duration, SystemTime},
};

use anyhow::{Context as _, Result};

use crate::{
    process::{command, text_of},
    workspace,
};

/// What a container of the image runs, as the Dockerfile in `deploy/`.
const ENTRYPOINT: &str = "/lb";
const DEFAULT_ARGUMENT: &str = "agent";

/// The file with the list of crates (CycloneDX).
const SBOM: &str = "sbom.cdx.json";

/// Makes `root` the root file system of the image: one static program, the licences and the list of
/// crates.
pub fn fill_root(root: &Path, program: &Path, sbom: &str) -> Result<()> {
    if root.exists() {
        fs::remove_dir_all(root).with_context(|| format!("cannot remove {}", root.display()))?;
    }
    let licenses = root.join("licenses");
    fs::create_dir_all(&licenses).with_context(|| format!("cannot create {}", licenses.display()))?;
    let put = |from: &Path, to: PathBuf, mode: u32| {
        fs::copy(from, &to)
            .and_then(|_| fs::set_permissions(&to, Permissions::from_mode(mode)))
            .with_context(|| format!("cannot copy {} to {}", from.display(), to.display()))
    };
    put(program, root.join("lb"), 0o755)?;
    for name in ["LICENSE", "LICENSE-GPL-2.0"] {
        put(&workspace::root().join(name), licenses.join(name), 0o644)?;
    }
    fs::write(root.join(SBOM), sbom).with_context(|| format!("cannot write {SBOM}"))
}

/// An image in an OCI layout.
pub struct Layout {
    folder: PathBuf,
    tag: String,
}

impl Layout {
    pub fn new(folder: PathBuf, tag: String) -> Self {
        Self { folder, tag }
    }

    /// Returns the path of the layout with the tag, as umoci and skopeo read it.
    pub fn name(&self) -> String {
        format!("{}:{}", self.folder.display(), self.tag)
    }

    /// Writes the image: one layer with the files of `root`. The image and its files have the time
    /// of the last commit.
    pub fn write(&self, root: &Path, architecture: &str) -> Result<()> {
        let (seconds, created) = last_commit();
        set_times(root, SystemTime::UNIX_EPOCH + Duration::from_secs(seconds))?;
        let layout = self.folder.display().to_string();
        if !self.folder.join("index.json").exists() {
            umoci(&["init", "--layout", &layout])?;
        }
        let name = self.name();
        umoci(&["new", "--image", &name])?;
        let root = root.display().to_string();
        umoci(&["insert", "--image", &name, "--history.created", &created, &root, "/"])?;
        let version = format!("org.opencontainers.image.version={}", env!("CARGO_PKG_VERSION"));
        let licenses = "org.opencontainers.image.licenses=Apache-2.0 AND (Apache-2.0 OR GPL-2.0-only)";
        umoci(&[
            "config",
            "--image",
            &name,
            "--os",
            "linux",
            "--architecture",
            architecture,
            "--created",
            &created,
            "--history.created",
            &created,
            "--config.entrypoint",
            ENTRYPOINT,
            "--config.cmd",
            DEFAULT_ARGUMENT,
            "--config.label",
            &version,
            "--config.label",
            licenses,
        ])?;
        umoci(&["gc", "--layout", &layout])
    }

    /// Unpacks the image, as a container runtime does, and returns its root file system. `bundle`
    /// is the folder for it, which is replaced.
    pub fn unpack(&self, bundle: &Path) -> Result<PathBuf> {
        if bundle.exists() {
            fs::remove_dir_all(bundle).with_context(|| format!("cannot remove {}", bundle.display()))?;
        }
        umoci(&["unpack", "--image", &self.name(), &bundle.display().to_string()])?;
        Ok(bundle.join("rootfs"))
    }
}

fn umoci(arguments: &[&str]) -> Result<()> {
    text_of(command("umoci").args(arguments)).map(drop)
}

/// Sets the modification time of a folder and of everything below it.
fn set_times(path: &Path, time: SystemTime) -> Result<()> {
    if path.is_dir() {
        for entry in fs::read_dir(path)? {
            set_times(&entry?.path(), time)?;
        }
    }
    File::open(path)
        .and_then(|file| file.set_times(FileTimes::new().set_modified(time)))
        .with_context(|| format!("cannot set the time of {}", path.display()))
}

/// Returns the time of the last commit, in seconds since 1970 and in the format of RFC 3339.
/// Sources without a history have the first second of 1970.
fn last_commit() -> (u64, String) {
    let mut git = command("git");
    git.current_dir(workspace::root()).env("TZ", "UTC");
    git.args(["log", "-1", "--date=format-local:%Y-%m-%dT%H:%M:%SZ", "--format=%ct %cd"]);
    let text = text_of(&mut git).unwrap_or_default();
    let time = text.trim().split_once(' ').and_then(|(seconds, date)| Some((seconds.parse().ok()?, date)));
    time.map_or_else(|| (0, "1970-01-01T00:00:00Z".to_owned()), |(seconds, date)| (seconds, date.to_owned()))
}
