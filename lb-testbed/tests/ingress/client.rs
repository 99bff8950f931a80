//! A client of HTTP/1.1 that keeps its connection.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use lb_testbed::patience::patient;

pub struct Client(BufReader<TcpStream>);

#[derive(Debug, PartialEq, Eq)]
pub struct Answer {
    pub status: u16,
    pub body: String,
    /// The server closes the connection.
    pub closes: bool,
}

impl Answer {
    /// Returns the first line of the body.
    pub fn first_line(&self) -> &str {
        self.body.lines().next().unwrap_or_default()
    }
}

impl Client {
    /// Connects. The current thread must be in the network namespace of the server.
    pub fn connect(server: SocketAddr) -> Result<Self> {
        let stream = TcpStream::connect(server)?;
        stream.set_read_timeout(Some(patient(Duration::from_secs(10))))?;
        stream.set_nodelay(true)?;
        Ok(Self(BufReader::new(stream)))
    }

    pub fn get(&mut self, host: &str, path: &str) -> Result<Answer> {
        self.send("GET", host, path, "")
    }

    pub fn send(&mut self, method: &str, host: &str, path: &str, body: &str) -> Result<Answer> {
        let length = body.len();
        write!(
            self.0.get_mut(),
            "{method} {path} HTTP/1.1\r\nHost: {host}\r\nContent-Length: {length}\r\n\r\n{body}"
        )?;
        let mut lines = Vec::new();
        loop {
            let mut line = String::new();
            ensure!(self.0.read_line(&mut line)? > 0, "the connection closed before the end of the head");
            let line = line.trim_end().to_ascii_lowercase();
            if line.is_empty() {
                break;
            }
            lines.push(line);
        }
        let status = lines[0].split(' ').nth(1).and_then(|status| status.parse().ok());
        let length = lines.iter().find_map(|line| line.strip_prefix("content-length: ")?.parse().ok());
        let mut body = vec![0; length.context("the answer has no length")?];
        self.0.read_exact(&mut body)?;
        let closes = lines.iter().any(|line| line == "connection: close");
        Ok(Answer { status: status.context("no status")?, body: String::from_utf8(body)?, closes })
    }
}
