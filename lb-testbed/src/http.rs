//! A plain HTTP request from inside a place, for what is not a server of the testbed: probes, health checks, metrics.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use anyhow::{Context, Result};

use crate::place::Place;

const LIMIT: Duration = Duration::from_secs(2);

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Response {
    pub status: u16,
    /// Header lines in lower case.
    pub headers: Vec<String>,
    pub body: String,
}

/// `GET path` from the network namespace of a place.
pub fn get(place: &Place, at: SocketAddr, path: &str) -> Result<Response> {
    place.inside(|| request(at, path))?.with_context(|| format!("GET http://{at}{path}"))
}

fn request(at: SocketAddr, path: &str) -> Result<Response> {
    let mut stream = TcpStream::connect_timeout(&at, LIMIT)?;
    stream.set_read_timeout(Some(LIMIT))?;
    write!(stream, "GET {path} HTTP/1.1\r\nHost: {at}\r\nConnection: close\r\n\r\n")?;
    let mut text = String::new();
    stream.read_to_string(&mut text)?;
    let (head, body) = text.split_once("\r\n\r\n").context("no end of the header")?;
    let mut lines = head.lines();
    let status = lines.next().and_then(|line| line.split(' ').nth(1)).context("no status line")?;
    Ok(Response {
        status: status.parse().with_context(|| format!("the status {status:?}"))?,
        headers: lines.map(str::to_ascii_lowercase).collect(),
        body: body.to_owned(),
    })
}
