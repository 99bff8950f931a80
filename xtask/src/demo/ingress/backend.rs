//! The application of a pod: an HTTP server that logs the address of each client, and returns the
//! messages of a WebSocket.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;

use anyhow::{Context as _, Result};
use lb_testbed::{Family, Host};

/// The key of a handshake, and the answer to it (RFC 6455 1.3). The demo sends no other key.
pub const WEBSOCKET_KEY: &str = "dGhlIHNhbXBsZSBub25jZQ==";
pub const WEBSOCKET_ANSWER: &str = "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=";

/// A running application. Its sockets belong to the network namespace of the pod.
pub struct Backend {
    log: Arc<Mutex<Vec<String>>>,
}

impl Backend {
    /// Listens on the IPv4 address of the pod.
    pub fn start(app: &'static str, host: &Host, port: u16) -> Result<Self> {
        let address = host.at(Family::V4, port);
        let listener = host.place.inside(|| TcpListener::bind(address))?;
        let listener = listener.with_context(|| format!("listen on {address}"))?;
        let log: Arc<Mutex<Vec<String>>> = Arc::default();
        let (lines, pod) = (log.clone(), host.name.clone());
        // The thread ends with the demo.
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let (lines, pod) = (lines.clone(), pod.clone());
                thread::spawn(move || serve(&stream, app, &pod, &lines));
            }
        });
        Ok(Self { log })
    }

    /// Returns the log: method, path and client of each request.
    pub fn log(&self) -> Vec<String> {
        self.log.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

fn serve(stream: &TcpStream, app: &str, pod: &str, log: &Mutex<Vec<String>>) -> Result<()> {
    let (mut reader, mut writer) = (BufReader::new(stream), stream);
    loop {
        let mut lines = Vec::new();
        loop {
            let mut line = String::new();
            if reader.read_line(&mut line)? == 0 {
                return Ok(());
            }
            match line.trim_end() {
                "" => break,
                text => lines.push(text.to_owned()),
            }
        }
        let field = |name: &str| {
            let fields = lines.iter().skip(1).filter_map(|line| line.split_once(':'));
            fields.filter(|(field, _)| field.eq_ignore_ascii_case(name)).map(|(_, value)| value.trim()).next()
        };
        let request = lines.first().context("no request line")?;
        let target = request.trim_end_matches(" HTTP/1.1");
        let line = format!("{target} from {}", field("x-forwarded-for").unwrap_or("an unknown client"));
        log.lock().unwrap_or_else(PoisonError::into_inner).push(line);
        if field("upgrade").is_some_and(|protocol| protocol.eq_ignore_ascii_case("websocket")) {
            write!(
                writer,
                "HTTP/1.1 101 Switching Protocols\r\nupgrade: websocket\r\nconnection: upgrade\r\n\
                 sec-websocket-accept: {WEBSOCKET_ANSWER}\r\n\r\n"
            )?;
            return return_messages(&mut reader, &mut writer);
        }
        let body = format!("{app} on {pod}");
        let length = body.len();
        write!(
            writer,
            "HTTP/1.1 200 OK\r\ncontent-type: text/plain\r\ncontent-length: {length}\r\n\r\n{body}"
        )?;
    }
}

/// Returns each text message of fewer than 126 bytes, until the client closes the connection.
fn return_messages(reader: &mut impl Read, writer: &mut impl Write) -> Result<()> {
    loop {
        let mut head = [0; 6];
        reader.read_exact(&mut head)?;
        let [kind, length, mask @ ..] = head;
        let mut payload = vec![0; usize::from(length & 0x7f)];
        reader.read_exact(&mut payload)?;
        payload.iter_mut().zip(mask.iter().cycle()).for_each(|(byte, mask)| *byte ^= mask);
        writer.write_all(&[&[kind, length & 0x7f], &payload[..]].concat())?;
    }
}
