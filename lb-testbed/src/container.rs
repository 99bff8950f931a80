//! Restricts a process like a container that is not privileged: it takes away capabilities, and
//! write access to `/proc/sys`, `/sys` and the root file system.

use std::ffi::CString;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::{fs, io};

use anyhow::{Context, Result, bail};
use rustix::io::Errno;
use rustix::mount::{
    MountFlags, MountPropagationFlags, mount_bind, mount_bind_recursive, mount_change, mount_remount,
};
use rustix::thread::{
    CapabilitySet, UnshareFlags, remove_capability_from_bounding_set, set_no_new_privs, unshare_unsafe,
};
use serde_json::Value;

use crate::command::run;
use crate::place::Place;
use crate::run::cgroup2_root;

/// The folder of network parameters that a container runtime mounts read-only.
const SYSCTLS: &str = "/proc/sys/net";

/// A container without `privileged`.
#[derive(Debug, Clone)]
pub struct Container {
    pub capabilities: CapabilitySet,
    /// The place of the writable mount of `/proc/sys/net`.
    pub sysctls: PathBuf,
}

impl Container {
    /// Returns a container with the capabilities in the `securityContext` of a manifest. `folder`
    /// gets the mount point.
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
        Ok(Self { capabilities, sysctls })
    }

    /// Returns the same container without these capabilities.
    pub fn without(&self, capabilities: CapabilitySet) -> Self {
        Self { capabilities: self.capabilities - capabilities, ..self.clone() }
    }

    /// Runs `lb` in the container to its end, as `kubectl exec` does, and returns its standard
    /// output. `bpffs` is the BPF file system of the agent, which the DaemonSet names in the
    /// environment.
    pub fn exec(&self, place: &Place, lb: &Path, bpffs: &Path, arguments: &[&str]) -> Result<String> {
        let mut command = place.command(lb)?;
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
                keep_only(capabilities)?;
                set_no_new_privs(true)?;
                Ok(())
            });
        }
        Ok(())
    }
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
