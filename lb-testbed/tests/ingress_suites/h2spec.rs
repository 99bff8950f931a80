//! h2spec: RFC 7540 and RFC 7541, strict cases included, with and without TLS.

use anyhow::{Context as _, Result, ensure};
use lb_testbed::{Backend, IngressBed};
use serde_json::json;

use crate::programs::{GO_PROGRAMS, endpoint, path, run, write_objects};

/// The port without TLS serves HTTP/1.1 too. It answers bytes that are neither with a status line
/// of HTTP/1.1 before it closes. h2spec expects the close only.
const PLAIN_LIMITS: [&str; 1] = ["Sends invalid connection preface"];

#[test]
fn h2spec() -> Result<()> {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let _entered = runtime.enter();
    let program = path(GO_PROGRAMS, "h2spec")?;
    let bed = IngressBed::build()?;
    let _backend = Backend::start(&bed.place, endpoint(), "h2spec")?;
    write_objects(&bed, json!({"nginx.ingress.kubernetes.io/ssl-redirect": "false"}))?;
    let proxy = bed.start_proxy(&["--no-access-log"])?;
    for (address, tls) in [(IngressBed::HTTP, &[][..]), (IngressBed::HTTPS, &["--tls", "--insecure"])] {
        let (host, port) = (address.ip().to_string(), address.port().to_string());
        let arguments = [&["--strict", "--host", &host, "--port", &port], tls].concat();
        let (_, text) = run(&bed, &program, &arguments)?;
        // "146 tests, 146 passed, 0 skipped, 0 failed"
        let last = text.lines().rfind(|line| line.contains(" tests, ")).context("h2spec ended early")?;
        println!("{address}: {last}");
        let failed: Vec<_> = text.lines().filter(|line| line.trim_start().starts_with('×')).collect();
        println!("{}", failed.join("\n"));
        ensure!(last.contains(" 0 skipped, "), "{text}");
        let limits: &[&str] = if tls.is_empty() { &PLAIN_LIMITS } else { &[] };
        let unknown = failed.iter().any(|line| !limits.iter().any(|limit| line.contains(limit)));
        ensure!(!unknown, "{text}");
    }
    proxy.stop()
}
