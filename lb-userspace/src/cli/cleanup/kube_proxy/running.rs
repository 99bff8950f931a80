//! Detects a running kube-proxy on this node. It would create its rules again after a cleanup.

use std::fs;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::path::Path;
use std::time::Duration;

/// The default address at which kube-proxy serves its mode (`metricsBindAddress`). An agent of
/// Sluice returns `sluice` there.
const PROXY_MODE: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), 10249);
const MODES: [&str; 3] = ["iptables", "ipvs", "nftables"];

/// Returns how kube-proxy was found on this node: by its process, or by its HTTP server.
pub(super) fn find(proc: &Path) -> Option<String> {
    process(proc).or_else(|| {
        // k3s and others run kube-proxy within their own process. A container may not see the
        // node's processes.
        let mode = get("/proxyMode", PROXY_MODE).filter(|mode| MODES.contains(&mode.as_str()))?;
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

/// Sends an HTTP GET request and returns the body of a response with status 200.
fn get(path: &str, server: SocketAddr) -> Option<String> {
    let limit = Duration::from_secs(2);
    let mut stream = TcpStream::connect_timeout(&server, limit).ok()?;
    stream.set_read_timeout(Some(limit)).ok()?;
    write!(stream, "GET {path} HTTP/1.0\r\nHost: {server}\r\n\r\n").ok()?;
    let mut response = String::new();
    // The response of kube-proxy is short. A longer one comes from another server.
    stream.take(4096).read_to_string(&mut response).ok()?;
    let (head, body) = response.split_once("\r\n\r\n")?;
    head.contains(" 200 ").then(|| body.trim().to_owned())
}

#[cfg(test)]
mod tests {
    use std::io::{BufRead, BufReader};
    use std::net::TcpListener;
    use std::os::unix::fs::symlink;
    use std::thread;

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

    /// Serves one response and returns the body that [`get`] reads from it.
    fn served(response: &'static str) -> Option<String> {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let server = listener.local_addr().unwrap();
        let serve = thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let mut lines = BufReader::new(stream.try_clone().unwrap()).lines();
            let request = lines.next().unwrap().unwrap();
            // Closing with unread input would reset the connection under the response.
            let _ = lines.take_while(|line| line.as_ref().is_ok_and(|line| !line.is_empty())).count();
            stream.write_all(response.as_bytes()).unwrap();
            request
        });
        let body = get("/proxyMode", server);
        assert_eq!(serve.join().unwrap(), "GET /proxyMode HTTP/1.0");
        body
    }

    #[test]
    fn the_mode_is_the_body_of_a_successful_response() {
        assert_eq!(served("HTTP/1.0 200 OK\r\nX: y\r\n\r\nnftables").as_deref(), Some("nftables"));
        assert_eq!(served("HTTP/1.0 404 Not Found\r\n\r\niptables"), None);
        assert_eq!(served("SSH-2.0-x\r\n"), None);
    }
}
