//! The client of a WebSocket.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use lb_testbed::Host;

use super::backend::{WEBSOCKET_ANSWER, WEBSOCKET_KEY};

/// Time limit for connecting and for each message.
const LIMIT: Duration = Duration::from_secs(10);

pub struct WebSocket(BufReader<TcpStream>);

impl WebSocket {
    /// Opens a connection from a host, for the path `/live` of a name.
    pub fn open(client: &Host, server: SocketAddr, name: &str) -> Result<Self> {
        let stream = client.place.inside(|| TcpStream::connect_timeout(&server, LIMIT))??;
        stream.set_read_timeout(Some(LIMIT))?;
        write!(
            &stream,
            "GET /live HTTP/1.1\r\nhost: {name}\r\nconnection: upgrade\r\nupgrade: websocket\r\n\
             sec-websocket-version: 13\r\nsec-websocket-key: {WEBSOCKET_KEY}\r\n\r\n"
        )?;
        let mut reader = BufReader::new(stream);
        let mut head = String::new();
        while !head.ends_with("\r\n\r\n") {
            ensure!(reader.read_line(&mut head)? > 0, "the connection ended: {head}");
        }
        ensure!(head.starts_with("HTTP/1.1 101 ") && head.contains(WEBSOCKET_ANSWER), "{head}");
        Ok(Self(reader))
    }

    /// Sends a text message of fewer than 126 bytes, and waits until it returns.
    pub fn exchange(&mut self, text: &str) -> Result<()> {
        const MASK: [u8; 4] = [1, 2, 3, 4];
        let masked: Vec<_> = text.bytes().zip(MASK.iter().cycle()).map(|(byte, mask)| byte ^ mask).collect();
        let length = u8::try_from(text.len())?;
        let frame = [&[0x81, 0x80 | length], &MASK[..], &masked].concat();
        self.0.get_mut().write_all(&frame)?;
        let mut answer = vec![0; 2 + text.len()];
        self.0.read_exact(&mut answer).context("the WebSocket ended")?;
        ensure!(answer[2..] == *text.as_bytes(), "another message returned");
        Ok(())
    }
}
