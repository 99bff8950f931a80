//! What 10,000 Ingresses with three endpoints each cost.

use std::io::{BufRead as _, BufReader, Write as _};
use std::net::TcpStream;
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use lb_testbed::IngressBed;
use lb_testbed::ingress_bed::{EndpointState, ingress, service, slice};
use lb_testbed::measure::{cpu_time, median, memory, percentile};
use serde::Serialize;
use serde_json::{Value, json};

/// Ingresses of a file. A change writes one file.
const PER_FILE: u32 = 50;
/// Changes that are measured.
const CHANGES: u32 = 50;
const LIMIT: Duration = Duration::from_secs(30);

#[derive(Debug, Serialize)]
pub struct Scale {
    pub ingresses: u32,
    /// Seconds from the start of the process until it serves.
    pub start: f64,
    /// Resident memory in MiB.
    pub memory: f64,
    /// Milliseconds from the change of a file to its effect.
    pub p50: f64,
    pub p99: f64,
    /// CPU time of a change in milliseconds.
    pub cpu: f64,
}

pub fn measure(ingresses: u32) -> Result<Scale> {
    let bed = IngressBed::build()?;
    for file in 0..ingresses.div_ceil(PER_FILE) {
        write(&bed, file, None)?;
    }
    let start = Instant::now();
    let proxy = bed.start_proxy(&["--no-access-log"])?;
    let start = start.elapsed().as_secs_f64();
    let memory = memory(proxy.pid(), "VmRSS")?;
    let before = cpu_time(proxy.pid())?;
    let mut times = Vec::new();
    for change in 0..CHANGES {
        let file = change % ingresses.div_ceil(PER_FILE);
        let status = 300 + change % 50 + 1;
        let changed = Instant::now();
        write(&bed, file, Some(status))?;
        bed.place.inside(|| wait_for(file * PER_FILE, status))??;
        times.push(changed.elapsed().as_secs_f64() * 1e3);
    }
    let cpu = (cpu_time(proxy.pid())? - before) * 1e3 / f64::from(CHANGES);
    proxy.stop()?;
    let p50 = median(times.clone());
    Ok(Scale { ingresses, start, memory, p50, p99: percentile(times, 99.0), cpu })
}

/// Writes the objects of a file. With `status`, the first Ingress redirects with that status.
fn write(bed: &IngressBed, file: u32, status: Option<u32>) -> Result<()> {
    let objects: Vec<Value> = (file * PER_FILE..(file + 1) * PER_FILE)
        .flat_map(|number| {
            let name = format!("site-{number}");
            let mut ingress = ingress(&name, &format!("{name}.example"));
            if let Some(status) = status.filter(|_| number == file * PER_FILE) {
                ingress["metadata"]["annotations"] = json!({
                    "nginx.ingress.kubernetes.io/permanent-redirect": format!("http://x.example/{status}"),
                });
            }
            let addresses = [0, 1, 2].map(|number| (IngressBed::endpoint(number), EndpointState::Ready));
            [service(&name), slice(&name, 20_000, &addresses), ingress]
        })
        .collect();
    bed.manifests.write(&format!("{file}.yaml"), &objects)
}

/// Waits until an Ingress redirects to the place that has this number.
fn wait_for(number: u32, status: u32) -> Result<()> {
    let deadline = Instant::now() + LIMIT;
    loop {
        let mut stream = TcpStream::connect(IngressBed::HTTP)?;
        write!(stream, "GET / HTTP/1.1\r\nHost: site-{number}.example\r\nConnection: close\r\n\r\n")?;
        let expected = format!("location: http://x.example/{status}");
        let mut lines = BufReader::new(stream).lines().map_while(Result::ok);
        if lines.any(|line| line.eq_ignore_ascii_case(&expected)) {
            return Ok(());
        }
        ensure!(Instant::now() < deadline, "a change of site-{number} has no effect");
        sleep(Duration::from_millis(1));
    }
}
