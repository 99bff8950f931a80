//! Detects a running kube-proxy on this node. It would create its rules again after a cleanup.

use std::fs;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;

use crate::cli::http_client;

/// The default address at which kube-proxy serves its mode (`metricsBindAddress`). An agent of
/// Sluice returns `sluice` there.
const PROXY_MODE: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), 10249);
const MODES: [&str; 3] = ["iptables", "ipvs", "nftables"];

/// Returns how kube-proxy was found on this node: by its process, or by its HTTP server.
pub(super) fn find(proc: &Path) -> Option<String> {
    process(proc).or_else(|| {
        // k3s and others run kube-proxy within their own process. A container may not see the
        // node's processes.
        let (status, mode) = http_client::get("/proxyMode", PROXY_MODE).ok()?;
        let mode = Some(mode).filter(|mode| status == 200 && MODES.contains(&mode.as_str()))?;
        Some(format!("http://{PROXY_MODE}/proxyMode answers {mode:?}"))
    })
}

/// Returns a process named kube-proxy in this network namespace. `proc` is the mount point of
/// procfs.
fn process(proc: &Path) -> Option<String> {
    let here = fs::read_link(proc.join("self/ns/net")).ok()?;
    let entries = fs::read_dir(proc).ok()?;
    let mut found = entries.flatten().filter_map(|entry| {
        let pid: u32 = entry.file_name().to_str()?.parse().ok()?;
        let name = fs::read_to_string(entry.path().join("comm")).ok()?;
        let same_namespace = fs::read_link(entry.path().join("ns/net")).ok()? == here;
        (name.trim_end() == "kube-proxy" && same_namespace).then_some(pid)
    });
    found.next().map(|pid| format!("process {pid}"))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn processes_in_other_network_namespaces_are_ignored() {
        let proc = tempfile::tempdir().unwrap();
        let add = |pid: &str, name: &str, namespace: &str| {
            let folder = proc.path().join(pid);
            fs::create_dir_all(folder.join("ns")).unwrap();
            fs::write(folder.join("comm"), format!("{name}\n")).unwrap();
            symlink(namespace, folder.join("ns/net")).unwrap();
        };
        add("self", "lb", "net:[1]");
        add("10", "kube-proxy", "net:[2]");
        add("11", "kubelet", "net:[1]");
        fs::write(proc.path().join("uptime"), "").unwrap();
        assert_eq!(process(proc.path()), None);
        add("12", "kube-proxy", "net:[1]");
        assert_eq!(process(proc.path()).as_deref(), Some("process 12"));
    }
}
