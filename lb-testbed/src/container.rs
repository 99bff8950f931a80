//! Restricts a process like a container that is not privileged: it takes away capabilities, and
//! write access to `/proc/sys`, `/sys` and the root file system. The root file system can be that
//! of an image.

use std::ffi::{CStr, CString};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::{fs, io};

use anyhow::{Context, Result, bail};
use rustix::io::Errno;
use rustix::mount::{
    MountFlags, MountPropagationFlags, UnmountFlags, mount_bind, mount_bind_recursive, mount_change,
    mount_remount, unmount,
};
use rustix::process::{chdir, pivot_root};
use rustix::thread::{
    CapabilitySet, UnshareFlags, remove_capability_from_bounding_set, set_no_new_privs, unshare_unsafe,
};
use serde_json::Value;

use crate::command::run;
use crate::place::Place;
use crate::run::{NETNS_DIR, cgroup2_root};

/// The folder of network parameters that a container runtime mounts read-only.
const SYSCTLS: &str = "/proc/sys/net";

/// Environment variable with the root file system of an unpacked image.
/// `cargo xtask test image` sets it.
const IMAGE_VARIABLE: &str = "SLUICE_IMAGE_ROOT";

/// The program of the image, which is its entry point.
const IMAGE_PROGRAM: &str = "/lb";

/// A container without `privileged`.
#[derive(Debug, Clone)]
pub struct Container {
    pub capabilities: CapabilitySet,
    /// The place of the writable mount of `/proc/sys/net`.
    pub sysctls: PathBuf,
    /// The root file system of the image, and the folders of the host that the container has at the
    /// same path. `None` if the container has the root file system of the host.
    image: Option<Image>,
}

#[derive(Debug, Clone)]
struct Image {
    root: PathBuf,
    folders: Vec<PathBuf>,
}

impl Container {
    /// Returns a container with the capabilities in the `securityContext` of a manifest. `folder`
    /// gets the mount point. In a container with an image, the folder has the same path.
    ///
    /// # Errors
    /// The container of the manifest is privileged or keeps capabilities of the runtime.
    pub fn of_manifest(context: &Value, folder: &Path) -> Result<Self> {
        if context["privileged"] == true || context["capabilities"]["drop"] != serde_json::json!(["ALL"]) {
            bail!("the container is privileged, or does not drop ALL capabilities: {context}");
        }
        let added = context["capabilities"]["add"].as_array().context("no list of capabilities")?;
        let mut capabilities = CapabilitySet::empty();
        for name in added {
            let name = name.as_str().context("a capability is no string")?;
            capabilities |=
                CapabilitySet::from_name(name).with_context(|| format!("no capability {name}"))?;
        }
        let sysctls = folder.join("host-sysctls");
        fs::create_dir_all(&sysctls).with_context(|| format!("create {}", sysctls.display()))?;
        let image = std::env::var_os(IMAGE_VARIABLE).map(|root| Image::prepare(root.into(), folder));
        Ok(Self { capabilities, sysctls, image: image.transpose()? })
    }

    /// Returns the program that a container runs in place of `lb`.
    pub fn program<'a>(&self, lb: &'a Path) -> &'a Path {
        if self.image.is_some() { Path::new(IMAGE_PROGRAM) } else { lb }
    }

    /// Returns the same container without these capabilities.
    pub fn without(&self, capabilities: CapabilitySet) -> Self {
        Self { capabilities: self.capabilities - capabilities, ..self.clone() }
    }

    /// Runs `lb` in the container to its end, as `kubectl exec` does, and returns its standard
    /// output. `bpffs` is the BPF file system of the agent, which the DaemonSet names in the
    /// environment.
    pub fn exec(&self, place: &Place, lb: &Path, bpffs: &Path, arguments: &[&str]) -> Result<String> {
        let mut command = place.command(self.program(lb))?;
        command.args(arguments).env_clear().env("SLUICE_BPFFS", bpffs);
        self.confine(&mut command)?;
        run(&mut command)
    }

    /// Confines a command to the container. Call it after everything else that prepares the
    /// command: that needs the capabilities.
    pub fn confine(&self, command: &mut Command) -> Result<()> {
        let capabilities = self.capabilities;
        let sysctls = CString::new(self.sysctls.as_os_str().as_bytes())?;
        let cgroups = CString::new(cgroup2_root()?.as_os_str().as_bytes())?;
        let image = self.image.as_ref().map(Image::mounts).transpose()?;
        // SAFETY: between fork and exec the closure makes system calls only. The paths were
        // allocated before the fork. Nothing else of the child depends on its mount namespace: it
        // is about to become another program.
        unsafe {
            command.pre_exec(move || {
                unshare_unsafe(UnshareFlags::NEWNS)?;
                mount_change(c"/", MountPropagationFlags::PRIVATE | MountPropagationFlags::REC)?;
                mount_bind(SYSCTLS, &sysctls)?;
                mount_bind_recursive(c"/proc/sys", c"/proc/sys")?;
                for folder in [c"/proc/sys", c"/sys", &cgroups, c"/"] {
                    mount_remount(folder, MountFlags::BIND | MountFlags::RDONLY, c"")?;
                }
                if let Some((root, mounts)) = &image {
                    enter(root, mounts)?;
                }
                keep_only(capabilities)?;
                set_no_new_privs(true)?;
                Ok(())
            });
        }
        Ok(())
    }
}

impl Image {
    /// Creates the mount points in the root file system, as a container runtime does.
    fn prepare(root: PathBuf, folder: &Path) -> Result<Self> {
        let folders = vec!["/proc".into(), "/sys".into(), NETNS_DIR.into(), folder.to_owned()];
        let image = Self { root, folders };
        for folder in &image.folders {
            let point = image.point(folder);
            fs::create_dir_all(&point).with_context(|| format!("create {}", point.display()))?;
        }
        Ok(image)
    }

    /// Returns the place of a folder of the host in the root file system.
    fn point(&self, folder: &Path) -> PathBuf {
        self.root.join(folder.strip_prefix("/").unwrap_or(folder))
    }

    /// Returns the root file system, and each folder with its mount point.
    fn mounts(&self) -> Result<(CString, Vec<(CString, CString)>)> {
        let text = |path: &Path| CString::new(path.as_os_str().as_bytes());
        let mounts = self.folders.iter().map(|folder| Ok((text(folder)?, text(&self.point(folder))?)));
        Ok((text(&self.root)?, mounts.collect::<Result<_>>()?))
    }
}

/// Makes `root` the root file system of this process, read-only, with these mounts. They are as
/// writable as those of the host.
fn enter(root: &CStr, mounts: &[(CString, CString)]) -> io::Result<()> {
    mount_bind(root, root)?;
    mount_remount(root, MountFlags::BIND | MountFlags::RDONLY, c"")?;
    for (folder, point) in mounts {
        mount_bind_recursive(folder.as_c_str(), point.as_c_str())?;
    }
    chdir(root)?;
    // The old root is mounted over the new one, and goes away with the unmount (pivot_root(2)).
    pivot_root(c".", c".")?;
    unmount(c".", UnmountFlags::DETACH)?;
    Ok(chdir(c"/")?)
}

/// Removes all other capabilities from the bounding set. A program that root executes gets the
/// bounding set (capabilities(7)).
fn keep_only(capabilities: CapabilitySet) -> io::Result<()> {
    for number in 0..u64::BITS {
        let capability = CapabilitySet::from_bits_retain(1 << number);
        if capabilities.contains(capability) {
            continue;
        }
        match remove_capability_from_bounding_set(capability) {
            // The kernel has no capability with this number.
            Err(Errno::INVAL) => return Ok(()),
            result => result?,
        }
    }
    Ok(())
}
