//! The loads: wrk for HTTP/1.1, h2load for HTTP/2.

use std::path::Path;

use anyhow::{Context as _, Result, ensure};
use lb_testbed::IngressBed;
use lb_testbed::measure::cpu_time;
use serde::Serialize;

use crate::subjects::{HOST, LOAD_CPU, Running, on_cpu};

/// A load, and the smallest ratio of our requests for a second of CPU time to those of nginx.
pub struct Case {
    pub name: &'static str,
    kind: Kind,
    pub target: f64,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Http1 { tls: bool, close: bool },
    Http2,
}

pub const CASES: [Case; 5] = [
    Case { name: "HTTP/1.1 keep-alive", kind: Kind::Http1 { tls: false, close: false }, target: 0.9 },
    Case { name: "HTTP/1.1, new connections", kind: Kind::Http1 { tls: false, close: true }, target: 0.9 },
    Case { name: "TLS 1.3 keep-alive", kind: Kind::Http1 { tls: true, close: false }, target: 0.9 },
    Case { name: "TLS 1.3, new handshakes", kind: Kind::Http1 { tls: true, close: true }, target: 0.9 },
    Case { name: "HTTP/2 with TLS, 4 × 32 streams", kind: Kind::Http2, target: 0.9 },
];

/// The result of one load.
#[derive(Debug, Clone, Copy, Serialize)]
pub struct Sample {
    pub requests: u64,
    /// CPU time of the proxy for a request, in µs.
    pub cpu: f64,
    /// Milliseconds. `None` where the client reports none.
    pub p50: Option<f64>,
    pub p99: Option<f64>,
}

pub fn measure(bed: &IngressBed, case: &Case, proxy: &Running, seconds: u32) -> Result<Sample> {
    let before = cpu_time(proxy.pid())?;
    let duration = seconds.to_string();
    let output = match case.kind {
        Kind::Http1 { tls, close } => {
            let mut wrk = on_cpu(bed, Path::new("wrk"), LOAD_CPU)?;
            let timeout = ["--threads", "1", "--connections", "32", "--latency", "--timeout", "10"];
            wrk.args(timeout).args(["--duration", &duration, "--header", &format!("Host: {HOST}")]);
            if close {
                wrk.args(["--header", "Connection: close"]);
            }
            let url =
                if tls { format!("https://{}/", proxy.https()) } else { format!("http://{}/", proxy.http()) };
            wrk.arg(url).output()
        }
        Kind::Http2 => {
            let mut h2load = on_cpu(bed, Path::new("h2load"), LOAD_CPU)?;
            h2load.args(["--clients", "4", "--max-concurrent-streams", "32", "--duration", &duration]);
            h2load.args(["--header", &format!(":authority: {HOST}")]);
            h2load.arg(format!("https://{}/", proxy.https())).output()
        }
    };
    let output = output.context("run the client (are wrk and nghttp2-client installed?)")?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    ensure!(output.status.success(), "{text}{}", String::from_utf8_lossy(&output.stderr));
    let cpu = cpu_time(proxy.pid())? - before;
    let requests = match case.kind {
        Kind::Http1 { .. } => wrk_requests(&text),
        Kind::Http2 => h2load_requests(&text),
    };
    let requests = requests.with_context(|| format!("the client reports failures: {text}"))?;
    let percentile = |name: &str| {
        let mut lines = text.lines().map(str::trim);
        lines.find_map(|line| milliseconds(line.strip_prefix(name)?.trim()))
    };
    Ok(Sample { requests, cpu: cpu * 1e6 / requests as f64, p50: percentile("50%"), p99: percentile("99%") })
}

/// Returns the number of requests, or `None` if one failed.
fn wrk_requests(text: &str) -> Option<u64> {
    if text.contains("Non-2xx") || text.contains("Socket errors") {
        return None;
    }
    text.lines().find_map(|line| line.trim().split_once(" requests in ")?.0.parse().ok())
}

fn h2load_requests(text: &str) -> Option<u64> {
    // "requests: 6 total, 6 started, 6 done, 6 succeeded, 0 failed, 0 errored, 0 timeout"
    let line = text.lines().find(|line| line.starts_with("requests: "))?;
    let of =
        |word: &str| line.split(", ").find_map(|part| part.strip_suffix(word)?.trim().parse::<u64>().ok());
    (of(" failed")? == 0 && of(" errored")? == 0).then(|| of(" succeeded")).flatten()
}

fn milliseconds(text: &str) -> Option<f64> {
    for (unit, factor) in [("us", 1e-3), ("ms", 1.0), ("s", 1e3)] {
        if let Some(number) = text.strip_suffix(unit) {
            return number.parse::<f64>().ok().map(|number| number * factor);
        }
    }
    None
}
