//! WebSocket (RFC 6455) through the proxy to the echo server of gorilla/websocket that Autobahn
//! tests. The cases are of the kinds of Autobahn's: framing, pings, reserved bits, opcodes,
//! fragments, UTF-8, closing, large messages.
//!
//! Autobahn itself needs Python 2. The proxy does not read frames: it must carry each byte, in both
//! directions, until both sides have closed.

use std::io::{BufRead as _, BufReader, Error, ErrorKind, Read as _, Write as _};
use std::net::{Shutdown, TcpStream};
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use lb_testbed::IngressBed;
use lb_testbed::patience::patient;
use serde_json::json;

use crate::programs::{GO_PROGRAMS, NAME, endpoint, path, write_objects};

const TEXT: u8 = 1;
const BINARY: u8 = 2;
const CONTINUATION: u8 = 0;
const CLOSE: u8 = 8;
const PING: u8 = 9;
const PONG: u8 = 10;
const FIN: u8 = 0x80;

/// A frame: the first byte (FIN, reserved bits, opcode) and the payload.
type Frame = (u8, Vec<u8>);

struct Case {
    name: String,
    send: Vec<Frame>,
    /// The frames of the answer. A close has its status only.
    expect: Vec<Frame>,
    /// The client writes this many bytes at a time.
    piece: usize,
}

fn case(name: impl Into<String>, send: Vec<Frame>, expect: Vec<Frame>) -> Case {
    Case { name: name.into(), send, expect, piece: usize::MAX }
}

fn close(status: u16) -> Frame {
    (FIN | CLOSE, status.to_be_bytes().to_vec())
}

fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    let payload = |length: usize| (0..length).map(|byte| b'a' + (byte % 26) as u8).collect::<Vec<_>>();
    for kind in [TEXT, BINARY] {
        for length in [0, 125, 126, 127, 128, 65_535, 65_536, 1 << 20, 16 << 20] {
            let frame = (FIN | kind, payload(length));
            cases.push(case(format!("opcode {kind}, {length} bytes"), vec![frame.clone()], vec![frame]));
        }
    }
    for piece in [1, 7, 997] {
        let frame = (FIN | TEXT, payload(if piece == 1 { 2_000 } else { 65_536 }));
        let name = format!("a message in pieces of {piece}");
        cases.push(Case { piece, ..case(name, vec![frame.clone()], vec![frame]) });
    }
    for length in [0, 1, 125] {
        let (ping, pong) = ((FIN | PING, payload(length)), (FIN | PONG, payload(length)));
        cases.push(case(format!("a ping of {length} bytes"), vec![ping], vec![pong]));
    }
    cases.push(case("a ping of 126 bytes", vec![(FIN | PING, payload(126))], vec![close(1002)]));
    cases.push(case(
        "ten pings, then a message",
        (0..10).map(|n| (FIN | PING, vec![n])).chain([(FIN | TEXT, payload(5))]).collect(),
        (0..10).map(|n| (FIN | PONG, vec![n])).chain([(FIN | TEXT, payload(5))]).collect(),
    ));
    cases.push(case(
        "an unsolicited pong",
        vec![(FIN | PONG, payload(3)), (FIN | TEXT, payload(2))],
        vec![(FIN | TEXT, payload(2))],
    ));
    for bits in 1..8 {
        let frame = (FIN | bits << 4 | TEXT, payload(3));
        cases.push(case(format!("reserved bits {bits}"), vec![frame], vec![close(1002)]));
    }
    for opcode in [3, 4, 5, 6, 7, 11, 12, 13, 14, 15] {
        let name = format!("reserved opcode {opcode}");
        cases.push(case(name, vec![(FIN | opcode, payload(3))], vec![close(1002)]));
    }
    let whole = (FIN | TEXT, b"fragments".to_vec());
    let (first, last) = ((TEXT, b"frag".to_vec()), (FIN | CONTINUATION, b"ments".to_vec()));
    cases.push(case("two fragments", vec![first.clone(), last.clone()], vec![whole.clone()]));
    cases.push(case(
        "a ping between fragments",
        vec![first.clone(), (FIN | PING, vec![1]), last.clone()],
        vec![(FIN | PONG, vec![1]), whole.clone()],
    ));
    cases.push(case(
        "fragments without bytes",
        vec![(TEXT, vec![]), (CONTINUATION, vec![]), (FIN | CONTINUATION, b"fragments".to_vec())],
        vec![whole],
    ));
    cases.push(case("a fragmented ping", vec![(PING, vec![1])], vec![close(1002)]));
    cases.push(case("a continuation of nothing", vec![last], vec![close(1002)]));
    cases.push(case("a message within a message", vec![first, (FIN | TEXT, payload(1))], vec![close(1002)]));
    let mut many: Vec<Frame> = (0..1024).map(|_| (CONTINUATION, vec![b'x'; 1 << 10])).collect();
    many[0].0 = BINARY;
    many[1023].0 = FIN | CONTINUATION;
    cases.push(case("1024 fragments", many, vec![(FIN | BINARY, vec![b'x'; 1 << 20])]));
    let greek = "κόσμε".as_bytes().to_vec();
    cases.push(case("UTF-8", vec![(FIN | TEXT, greek.clone())], vec![(FIN | TEXT, greek.clone())]));
    let halves = vec![(TEXT, greek[..3].to_vec()), (FIN | CONTINUATION, greek[3..].to_vec())];
    cases.push(case("UTF-8 cut within a character", halves, vec![(FIN | TEXT, greek)]));
    for bytes in [&b"\xed\xa0\x80"[..], b"\xc0\xaf", b"\xff", b"\xf4\x90\x80\x80"] {
        cases.push(case(
            format!("not UTF-8: {bytes:x?}"),
            vec![(FIN | TEXT, bytes.to_vec())],
            vec![close(1007)],
        ));
    }
    for status in [1000, 1001, 1002, 1003, 1007, 1011, 3000, 3999, 4000, 4999] {
        cases.push(case(format!("close {status}"), vec![close(status)], vec![close(status)]));
    }
    for status in [0, 999, 1004, 1005, 1006, 1016, 2999, 65535] {
        cases.push(case(format!("close {status} is invalid"), vec![close(status)], vec![close(1002)]));
    }
    cases.push(case("close without a status", vec![(FIN | CLOSE, vec![])], vec![(FIN | CLOSE, vec![])]));
    cases
}

#[test]
fn websocket() -> Result<()> {
    let bed = IngressBed::build()?;
    let mut server = bed.place.command(path(GO_PROGRAMS, "autobahn")?)?;
    let _server = bed.start_server(server.args(["-addr", &endpoint().to_string()]), endpoint())?;
    write_objects(&bed, json!({"nginx.ingress.kubernetes.io/ssl-redirect": "false"}))?;
    let proxy = bed.start_proxy(&["--no-access-log"])?;
    let cases = cases();
    let mut failures = Vec::new();
    // The server has a path for each way of reading and writing messages.
    for way in ["/m", "/p", "/r", "/c", "/f"] {
        for case in &cases {
            if let Err(error) = bed.place.inside(|| run(way, case))? {
                failures.push(format!("{way} {}: {error:#}", case.name));
            }
        }
    }
    println!("{} cases in five ways, {} failed", cases.len(), failures.len());
    ensure!(failures.is_empty(), "{}", failures.join("\n"));
    proxy.stop()
}

fn run(way: &str, case: &Case) -> Result<()> {
    let stream = TcpStream::connect(IngressBed::HTTP)?;
    stream.set_read_timeout(Some(patient(Duration::from_secs(10))))?;
    stream.set_nodelay(true)?;
    let mut stream = BufReader::new(stream);
    write!(
        stream.get_mut(),
        "GET {way} HTTP/1.1\r\nHost: {NAME}\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
         Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
    )?;
    let mut accepted = false;
    for number in 0.. {
        let mut line = String::new();
        stream.read_line(&mut line)?;
        ensure!(number > 0 || line.starts_with("HTTP/1.1 101 "), "{line}");
        // RFC 6455 1.3.
        accepted |=
            line.trim_end().eq_ignore_ascii_case("Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=");
        if line.trim_end().is_empty() {
            break;
        }
    }
    ensure!(accepted, "the key was not answered");
    let mut bytes = Vec::new();
    for (first, payload) in &case.send {
        bytes.push(*first);
        let mask = 0x80;
        match payload.len() {
            length @ 0..=125 => bytes.push(mask | length as u8),
            length @ 126..=65_535 => {
                bytes.push(mask | 126);
                bytes.extend((length as u16).to_be_bytes());
            }
            length => {
                bytes.push(mask | 127);
                bytes.extend((length as u64).to_be_bytes());
            }
        }
        let key = [0x37, 0xfa, 0x21, 0x3d];
        bytes.extend(key);
        bytes.extend(payload.iter().zip(key.iter().cycle()).map(|(byte, key)| byte ^ key));
    }
    // The server may answer before it has read everything.
    let mut writer = stream.get_ref().try_clone()?;
    std::thread::scope(|scope| {
        scope.spawn(move || bytes.chunks(case.piece).try_for_each(|piece| writer.write_all(piece)));
        for expected in &case.expect {
            let mut actual = read(&mut stream).context("read a frame")?;
            if actual.0 == FIN | CLOSE {
                // A text may follow the status.
                actual.1.truncate(2);
            }
            // The server may send a message in several frames.
            while actual.0 & FIN == 0 {
                let (first, more) = read(&mut stream).context("read a fragment")?;
                ensure!(first & 0x0f == CONTINUATION, "not a continuation: {first:#x}");
                actual.0 |= first & FIN;
                actual.1.extend(more);
            }
            if actual != *expected {
                let short =
                    |frame: &Frame| (frame.0, frame.1.len(), frame.1[..frame.1.len().min(16)].to_vec());
                bail!("expected {:x?}, got {:x?}", short(expected), short(&actual));
            }
        }
        if case.expect.last().is_some_and(|(first, _)| *first == FIN | CLOSE) {
            // Both sides close the connection, and the proxy must pass that on.
            stream.get_ref().shutdown(Shutdown::Write).or_else(unless_closed)?;
            let mut rest = Vec::new();
            stream.read_to_end(&mut rest).map(drop).or_else(unless_closed)?;
            ensure!(rest.is_empty(), "{} bytes after the close", rest.len());
        }
        Ok(())
    })
}

fn unless_closed(error: Error) -> std::io::Result<()> {
    match error.kind() {
        ErrorKind::ConnectionReset | ErrorKind::NotConnected => Ok(()),
        _ => Err(error),
    }
}

fn read(stream: &mut impl std::io::Read) -> Result<Frame> {
    let mut head = [0; 2];
    stream.read_exact(&mut head)?;
    let length = match head[1] {
        126 => {
            let mut length = [0; 2];
            stream.read_exact(&mut length)?;
            u64::from(u16::from_be_bytes(length))
        }
        127 => {
            let mut length = [0; 8];
            stream.read_exact(&mut length)?;
            u64::from_be_bytes(length)
        }
        length => u64::from(length),
    };
    let mut payload = vec![0; usize::try_from(length)?];
    stream.read_exact(&mut payload)?;
    Ok((head[0], payload))
}
