//! Short connections, one after the other. On each, the client sends a few bytes, and the server
//! answers with as many and closes it. Both need as little CPU time as possible.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use lb_testbed::patience::patient;
use lb_testbed::report::ExchangeTimes;
use rustix::time::{ClockId, clock_gettime};

/// Bytes that each side sends.
const SIZE: usize = 64;

/// Opens `count` connections.
pub fn client(target: SocketAddr, count: u32) -> Result<ExchangeTimes> {
    let mut latencies = Vec::new();
    let start = cpu_time();
    for _ in 0..count {
        let start = Instant::now();
        exchange(target).with_context(|| format!("exchange with {target}"))?;
        latencies.push(start.elapsed());
    }
    let cpu = cpu_time() - start;
    latencies.sort();
    Ok(ExchangeTimes { cpu, median: latencies.get(latencies.len() / 2).copied().unwrap_or_default() })
}

fn exchange(target: SocketAddr) -> io::Result<()> {
    let mut stream = TcpStream::connect_timeout(&target, patient(super::REQUEST_LIMIT))?;
    limit(&stream)?;
    stream.write_all(&[0; SIZE])?;
    stream.read_exact(&mut [0; SIZE])?;
    // The server closes first, so that the client's ports are free at once.
    match stream.read(&mut [0])? {
        0 => Ok(()),
        _ => Err(io::Error::other("the server sent more than it received")),
    }
}

/// Serves one connection after the other, forever.
pub fn serve(listener: &TcpListener) {
    for stream in listener.incoming().flatten() {
        // The client reports errors.
        let _ = answer(stream);
    }
}

fn answer(mut stream: TcpStream) -> io::Result<()> {
    limit(&stream)?;
    let mut bytes = [0; SIZE];
    stream.read_exact(&mut bytes)?;
    stream.write_all(&bytes)
}

fn limit(stream: &TcpStream) -> io::Result<()> {
    stream.set_read_timeout(Some(patient(super::REQUEST_LIMIT)))
}

/// Returns the CPU time of this process.
fn cpu_time() -> Duration {
    let time = clock_gettime(ClockId::ProcessCPUTime);
    Duration::new(time.tv_sec.unsigned_abs(), u32::try_from(time.tv_nsec).unwrap_or_default())
}
