//! New TCP connections and new UDP flows at a steady rate, each from another source port.

use std::io::{self, Read as _, Write as _};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream, UdpSocket};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use clap::Args;
use lb_testbed::patience::patient;
use lb_testbed::report::{ConnectionsReport, OpenedReport, RequestFailure};
use rustix::net::sockopt::{Timeout, set_socket_reuseaddr, set_socket_timeout};
use rustix::net::{AddressFamily, SocketType, bind, connect, socket};

use super::get::timed_out;

/// How long a connection may take. The limit exceeds four retransmissions of a SYN (after 1, 3, 7
/// and 15 s), so that only a connection that is refused again and again counts as failed.
const LIMIT: Duration = Duration::from_secs(20);

/// A datagram without an answer is sent again after this time, from the same socket.
const REPEAT_AFTER: Duration = Duration::from_secs(1);
const REPETITIONS: u32 = 5;

/// Source ports are used one after the other, from this one on.
const FIRST_PORT: u16 = 1024;

/// The number of threads for each protocol: connections that can be in progress at a time.
const THREADS: usize = 64;

/// How many failures the report describes.
const EXAMPLES: usize = 5;

const REQUEST: &[u8] = b"GET / HTTP/1.1\r\nhost: testbed\r\n\r\n";

#[derive(Args)]
pub struct Options {
    /// An HTTP or echo server
    #[arg(long, value_name = "ADDRESS")]
    tcp: SocketAddr,
    /// New connections per second
    #[arg(long, value_name = "N")]
    tcp_rate: u32,
    /// A UDP or echo server
    #[arg(long, value_name = "ADDRESS")]
    udp: SocketAddr,
    /// New flows per second
    #[arg(long, value_name = "N")]
    udp_rate: u32,
    /// The numbers of connections and of flows are the rates times this number
    #[arg(long, value_name = "N")]
    seconds: u32,
    /// Addresses of this host to use in turn
    #[arg(long, value_name = "IP")]
    source: Vec<IpAddr>,
}

/// Opens all connections and flows. A process that is late catches up, so the numbers are always
/// the same.
pub fn run(options: &Options) -> Result<ConnectionsReport> {
    ensure!(options.tcp_rate > 0 && options.udp_rate > 0, "the rates must be at least 1");
    let (begin, sources) = (Instant::now(), Sources::new(options));
    let (tcp, udp) = thread::scope(|scope| {
        let tcp = scope.spawn(|| {
            open_all(options.tcp_rate, options.seconds, |number| {
                connection(sources.nth(number), options.tcp).map(|()| 0)
            })
        });
        let udp =
            open_all(options.udp_rate, options.seconds, |number| flow(sources.nth(number), options.udp));
        (tcp.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)), udp)
    });
    Ok(ConnectionsReport { tcp, udp, seconds: begin.elapsed().as_secs_f64() })
}

/// The source addresses and ports.
struct Sources(Vec<IpAddr>);

impl Sources {
    fn new(options: &Options) -> Self {
        let any: IpAddr = match options.tcp {
            SocketAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
            SocketAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
        };
        Self(if options.source.is_empty() { vec![any] } else { options.source.clone() })
    }

    /// Returns the source of a connection. Each address is used with each port before one is used
    /// again.
    fn nth(&self, number: u32) -> SocketAddr {
        let (addresses, ports) = (self.0.len() as u32, u32::from(u16::MAX - FIRST_PORT) + 1);
        let port = FIRST_PORT + (number / addresses % ports) as u16;
        SocketAddr::new(self.0[(number % addresses) as usize], port)
    }
}

/// Calls `open` with each number when it is due, in threads: a connection that takes long delays no
/// other one.
fn open_all(
    rate: u32,
    seconds: u32,
    open: impl Fn(u32) -> Result<u32, RequestFailure> + Sync,
) -> OpenedReport {
    let (begin, next) = (Instant::now(), AtomicU32::new(0));
    let report = Mutex::new(OpenedReport::default());
    let work = || loop {
        let number = next.fetch_add(1, Ordering::Relaxed);
        if number >= rate * seconds {
            break;
        }
        let due = Duration::from_secs(1).mul_f64(f64::from(number) / f64::from(rate));
        thread::sleep(due.saturating_sub(begin.elapsed()));
        let started = Instant::now();
        let result = open(number);
        let took = started.elapsed().as_millis() as u64;
        let mut report = report.lock().unwrap_or_else(PoisonError::into_inner);
        report.slowest_milliseconds = report.slowest_milliseconds.max(took);
        match result {
            Ok(repetitions) => {
                report.opened += 1;
                report.repeated += u64::from(repetitions > 0);
            }
            Err(failure) => {
                report.failed += 1;
                if report.examples.len() < EXAMPLES {
                    let after = started.duration_since(begin).as_secs_f32();
                    report.examples.push(format!("number {number}, after {after:.1} s: {failure}"));
                }
            }
        }
    };
    thread::scope(|scope| {
        for _ in 0..THREADS {
            scope.spawn(work);
        }
    });
    report.into_inner().unwrap_or_else(PoisonError::into_inner)
}

/// Connects, sends a request, reads the answer and closes. This end closes first, so it keeps the
/// connection in TIME_WAIT, and the server forgets it.
fn connection(source: SocketAddr, target: SocketAddr) -> Result<(), RequestFailure> {
    let family = if target.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
    let socket = socket(family, SocketType::STREAM, None).map_err(io::Error::from)?;
    set_socket_reuseaddr(&socket, true).map_err(io::Error::from)?;
    // The time limit of connect(2), too (socket(7)).
    set_socket_timeout(&socket, Timeout::Send, Some(patient(LIMIT))).map_err(io::Error::from)?;
    bind(&socket, &source).map_err(io::Error::from)?;
    match connect(&socket, &target) {
        Err(rustix::io::Errno::INPROGRESS) => return Err(timed_out()),
        result => result.map_err(io::Error::from)?,
    }
    let mut stream = TcpStream::from(socket);
    stream.set_read_timeout(Some(patient(LIMIT)))?;
    stream.write_all(REQUEST)?;
    match stream.read(&mut [0; 1024])? {
        0 => Err(io::Error::from(io::ErrorKind::UnexpectedEof).into()),
        _ => Ok(()),
    }
}

/// Sends a datagram and waits for the answer. Returns how often the datagram was repeated.
fn flow(source: SocketAddr, target: SocketAddr) -> Result<u32, RequestFailure> {
    let socket = UdpSocket::bind(source)?;
    socket.connect(target)?;
    socket.set_read_timeout(Some(REPEAT_AFTER))?;
    for repetitions in 0..=REPETITIONS {
        socket.send(&[0])?;
        match socket.recv(&mut [0; 1024]) {
            Ok(_) => return Ok(repetitions),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => return Err(error.into()),
        }
    }
    Err(timed_out())
}
