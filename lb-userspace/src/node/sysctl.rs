//! The kernel's switches for forwarding.
//!
//! A packet that is translated for a pod of this node is passed up the stack, and the kernel
//! forwards it. Packets that the programs redirect do not depend on these switches.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use super::NodeError;

/// The folder `/proc/sys/net`, or another folder in tests.
#[derive(Debug, Clone)]
pub struct Sysctls {
    root: PathBuf,
}

/// The current settings.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Forwarding {
    pub v4: bool,
    /// `None` if the kernel has no IPv6.
    pub v6: Option<bool>,
    /// Devices with strict reverse path filtering (RFC 3704). The kernel drops a packet on them if
    /// the route to its source leads to another device.
    pub strict_rp_filter: Vec<String>,
}

/// A switch that was changed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Change {
    /// The name that `sysctl` uses.
    pub name: String,
    pub before: String,
    pub after: &'static str,
}

impl Default for Sysctls {
    fn default() -> Self {
        Self { root: "/proc/sys/net".into() }
    }
}

impl Sysctls {
    /// Uses another folder instead of `/proc/sys/net`.
    pub fn at(root: impl Into<PathBuf>) -> Self {
        Self { root: root.into() }
    }

    /// Reads the current settings.
    pub fn forwarding(&self) -> Result<Forwarding, NodeError> {
        // The maximum of `all` and the device is in force (Documentation/networking/ip-sysctl.rst).
        let all = self.read("ipv4/conf/all/rp_filter")?;
        let mut strict_rp_filter = Vec::new();
        for (device, path) in self.per_device("ipv4/conf", "rp_filter") {
            let own = self.read(&path)?;
            if all.as_deref().max(own.as_deref()) == Some("1") {
                strict_rp_filter.push(device);
            }
        }
        Ok(Forwarding {
            v4: self.read("ipv4/ip_forward")?.as_deref() == Some("1"),
            v6: self.read("ipv6/conf/all/forwarding")?.map(|value| value != "0"),
            strict_rp_filter,
        })
    }

    /// Enables forwarding in both families, and returns the changes.
    ///
    /// With `accept_ra` 1 a host that forwards IPv6 ignores router advertisements, and would lose
    /// its default route. So devices with 1 get 2 first, which accepts them in spite of forwarding.
    pub fn enable_forwarding(&self) -> Result<Vec<Change>, NodeError> {
        let mut changes = Vec::new();
        self.set("ipv4/ip_forward", "1", &mut changes)?;
        if self.read("ipv6/conf/all/forwarding")?.is_some_and(|value| value == "0") {
            for (_, path) in self.per_device("ipv6/conf", "accept_ra") {
                if self.read(&path)?.as_deref() == Some("1") {
                    self.set(&path, "2", &mut changes)?;
                }
            }
            self.set("ipv6/conf/all/forwarding", "1", &mut changes)?;
        }
        Ok(changes)
    }

    /// Lets the kernel forward packets that arrive by the loopback device, also with a source of
    /// this node, and returns the changes. Packets of local sockets on this device are not
    /// affected: the kernel has routed them before.
    ///
    /// With strict reverse path filtering the kernel would also drop a packet with the address of a
    /// Service as source.
    pub fn accept_own_packets(&self) -> Result<Vec<Change>, NodeError> {
        let mut changes = Vec::new();
        self.set("ipv4/conf/lo/forwarding", "1", &mut changes)?;
        self.set("ipv4/conf/lo/accept_local", "1", &mut changes)?;
        let strictness = |device| self.read(&format!("ipv4/conf/{device}/rp_filter"));
        if strictness("all")?.max(strictness("lo")?).as_deref() == Some("1") {
            self.set("ipv4/conf/lo/rp_filter", "2", &mut changes)?;
        }
        Ok(changes)
    }

    fn set(&self, path: &str, value: &'static str, changes: &mut Vec<Change>) -> Result<(), NodeError> {
        let before = self.read(path)?.unwrap_or_default();
        if before != value {
            let file = self.root.join(path);
            fs::write(&file, value).map_err(|source| NodeError::Sysctl { path: file, source })?;
            changes.push(Change { name: name(path), before, after: value });
        }
        Ok(())
    }

    /// Reads a switch. `None` if it does not exist: the kernel lacks the family, or the device has
    /// been removed.
    fn read(&self, path: &str) -> Result<Option<String>, NodeError> {
        let file = self.root.join(path);
        match fs::read_to_string(&file) {
            Ok(value) => Ok(Some(value.trim().to_owned())),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(source) => Err(NodeError::Sysctl { path: file, source }),
        }
    }

    /// Returns the devices in `folder` and the paths of their switch, sorted. It leaves out `all`,
    /// and contains `default`, which applies to new devices.
    fn per_device(&self, folder: &str, switch: &str) -> Vec<(String, String)> {
        let entries = fs::read_dir(self.root.join(folder)).into_iter().flatten().flatten();
        let names =
            entries.filter_map(|entry| entry.file_name().into_string().ok()).filter(|name| name != "all");
        let mut found: Vec<_> =
            names.map(|device| (device.clone(), format!("{folder}/{device}/{switch}"))).collect();
        found.sort();
        found
    }
}

/// Returns the name of a switch, such as `net.ipv4.ip_forward`. A dot in the name of a device
/// becomes a slash, as `sysctl` expects it.
fn name(path: &str) -> String {
    let parts = Path::new(path).iter().map(|part| part.to_string_lossy().replace('.', "/"));
    std::iter::once("net".to_owned()).chain(parts).collect::<Vec<_>>().join(".")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn folder(files: &[(&str, &str)]) -> (tempfile::TempDir, Sysctls) {
        let folder = tempfile::tempdir().expect("a folder");
        for (path, value) in files {
            let file = folder.path().join(path);
            fs::create_dir_all(file.parent().expect("a parent")).expect("created");
            fs::write(file, format!("{value}\n")).expect("written");
        }
        let sysctls = Sysctls::at(folder.path());
        (folder, sysctls)
    }

    #[test]
    fn enables_forwarding_and_keeps_router_advertisements() {
        let (_folder, sysctls) = folder(&[
            ("ipv4/ip_forward", "0"),
            ("ipv4/conf/all/rp_filter", "0"),
            ("ipv4/conf/eth0/rp_filter", "1"),
            ("ipv4/conf/eth1/rp_filter", "2"),
            ("ipv6/conf/all/forwarding", "0"),
            ("ipv6/conf/eth0.5/accept_ra", "1"),
            ("ipv6/conf/eth1/accept_ra", "0"),
        ]);
        let before = sysctls.forwarding().expect("readable");
        assert_eq!(before, Forwarding { v4: false, v6: Some(false), strict_rp_filter: vec!["eth0".into()] });
        let changes: Vec<_> =
            sysctls.enable_forwarding().expect("writable").into_iter().map(|c| c.name).collect();
        assert_eq!(
            changes,
            ["net.ipv4.ip_forward", "net.ipv6.conf.eth0/5.accept_ra", "net.ipv6.conf.all.forwarding"]
        );
        let after = sysctls.forwarding().expect("readable");
        assert_eq!((after.v4, after.v6), (true, Some(true)));
        assert_eq!(sysctls.read("ipv6/conf/eth0.5/accept_ra").expect("readable").as_deref(), Some("2"));
        assert_eq!(sysctls.enable_forwarding().expect("writable"), []);
    }

    #[test]
    fn a_kernel_without_ipv6_is_no_error() {
        let (_folder, sysctls) = folder(&[("ipv4/ip_forward", "1")]);
        let expected = Forwarding { v4: true, v6: None, strict_rp_filter: vec![] };
        assert_eq!(sysctls.forwarding().expect("readable"), expected);
        assert_eq!(sysctls.enable_forwarding().expect("writable"), []);
    }

    #[test]
    fn accepts_own_packets_at_the_loopback_device() {
        for (all, lo, expected) in [("0", "0", "0"), ("1", "0", "2"), ("0", "1", "2"), ("2", "0", "0")] {
            let (_folder, sysctls) = folder(&[
                ("ipv4/conf/all/rp_filter", all),
                ("ipv4/conf/lo/rp_filter", lo),
                ("ipv4/conf/lo/accept_local", "0"),
                ("ipv4/conf/lo/forwarding", "0"),
            ]);
            assert!(sysctls.accept_own_packets().expect("writable").len() >= 2);
            let value = |path| sysctls.read(path).expect("readable");
            assert_eq!(value("ipv4/conf/lo/accept_local").as_deref(), Some("1"));
            assert_eq!(value("ipv4/conf/lo/forwarding").as_deref(), Some("1"));
            assert_eq!(value("ipv4/conf/lo/rp_filter").as_deref(), Some(expected));
            assert_eq!(sysctls.accept_own_packets().expect("writable"), []);
        }
    }

    #[test]
    fn loose_everywhere_overrides_strict_on_a_device() {
        let (_folder, sysctls) = folder(&[
            ("ipv4/ip_forward", "1"),
            ("ipv4/conf/all/rp_filter", "2"),
            ("ipv4/conf/eth0/rp_filter", "1"),
        ]);
        assert_eq!(sysctls.forwarding().expect("readable").strict_rp_filter, Vec::<String>::new());
    }
}
