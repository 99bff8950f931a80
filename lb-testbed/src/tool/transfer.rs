//! Large transfers over TCP. The client sends a stream, and the server checks it. Then the server
//! sends a stream, and the client checks it.
//!
//! The client sends the length as 8 bytes in big-endian order, then that many bytes of [`pattern`].
//! The server answers with one byte (0 if all bytes were right) and as many bytes of the pattern.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::thread;
use std::time::Duration;

use lb_testbed::patience::patient;
use lb_testbed::pattern;
use lb_testbed::report::TransferReport;

/// A transfer that makes no progress for this long has failed.
const STALL_LIMIT: Duration = Duration::from_secs(10);
const CHUNK: usize = 128 * 1024;

/// Transfers `bytes` bytes in each direction over one connection to `target`.
pub fn client(target: SocketAddr, bytes: u64) -> TransferReport {
    let mut report = TransferReport { sent: 0, received: 0, intact: Ok(()) };
    if let Err(error) = transfer(target, bytes, &mut report) {
        report.intact = Err(error.to_string());
    }
    report
}

fn transfer(target: SocketAddr, bytes: u64, report: &mut TransferReport) -> io::Result<()> {
    let mut stream = TcpStream::connect_timeout(&target, patient(super::REQUEST_LIMIT))?;
    limit(&stream)?;
    stream.write_all(&bytes.to_be_bytes())?;
    send(&mut stream, bytes, &mut report.sent)?;
    let mut verdict = [0];
    stream.read_exact(&mut verdict)?;
    if verdict != [0] {
        return Err(io::Error::other("the server received bytes that were not sent"));
    }
    receive(&mut stream, bytes, &mut report.received)
}

/// Serves transfers forever, each connection on its own thread.
pub fn serve(listener: &TcpListener) {
    for stream in listener.incoming().flatten() {
        // The client reports errors.
        thread::spawn(move || answer(stream));
    }
}

fn answer(mut stream: TcpStream) -> io::Result<()> {
    limit(&stream)?;
    let mut length = [0; 8];
    stream.read_exact(&mut length)?;
    let length = u64::from_be_bytes(length);
    let intact = receive(&mut stream, length, &mut 0).is_ok();
    stream.write_all(&[u8::from(!intact)])?;
    send(&mut stream, length, &mut 0)
}

fn limit(stream: &TcpStream) -> io::Result<()> {
    stream.set_read_timeout(Some(patient(STALL_LIMIT)))?;
    stream.set_write_timeout(Some(patient(STALL_LIMIT)))
}

fn send(stream: &mut TcpStream, bytes: u64, sent: &mut u64) -> io::Result<()> {
    let mut chunk = vec![0; CHUNK];
    while *sent < bytes {
        let length = (bytes - *sent).min(CHUNK as u64) as usize;
        pattern::fill(&mut chunk[..length], *sent);
        stream.write_all(&chunk[..length])?;
        *sent += length as u64;
    }
    Ok(())
}

fn receive(stream: &mut TcpStream, bytes: u64, received: &mut u64) -> io::Result<()> {
    let mut chunk = vec![0; CHUNK];
    while *received < bytes {
        let wanted = (bytes - *received).min(CHUNK as u64) as usize;
        let length = stream.read(&mut chunk[..wanted])?;
        if length == 0 {
            return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "the stream ended early"));
        }
        if let Some(offset) = pattern::first_difference(&chunk[..length], *received) {
            return Err(io::Error::other(format!("byte {offset} is not what was sent")));
        }
        *received += length as u64;
    }
    Ok(())
}
