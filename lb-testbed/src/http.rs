//! Plain HTTP requests from a network namespace to servers of the agent: probes, health checks,
//! metrics.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use anyhow::{Context, Result};

use crate::patience::patient;
use crate::place::Place;

/// Time limit for connecting and for each read.
const LIMIT: Duration = Duration::from_secs(2);

/// The response to an HTTP request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Response {
    pub status: u16,
    /// Header lines in lower case.
    pub headers: Vec<String>,
    pub body: String,
}

/// Sends `GET path` to a server from the network namespace of a place.
pub fn get(place: &Place, server: SocketAddr, path: &str) -> Result<Response> {
    place.inside(|| request(server, path))?.with_context(|| format!("GET http://{server}{path}"))
}

fn request(server: SocketAddr, path: &str) -> Result<Response> {
    let mut stream = TcpStream::connect_timeout(&server, patient(LIMIT))?;
    stream.set_read_timeout(Some(patient(LIMIT)))?;
    write!(stream, "GET {path} HTTP/1.1\r\nHost: {server}\r\nConnection: close\r\n\r\n")?;
    let mut text = String::new();
    stream.read_to_string(&mut text)?;
    let (head, body) = text.split_once("\r\n\r\n").context("the response header has no end")?;
    let mut lines = head.lines();
    let status = lines.next().and_then(|line| line.split(' ').nth(1)).context("no status line")?;
    Ok(Response {
        status: status.parse().with_context(|| format!("the status {status:?} is not a number"))?,
        headers: lines.map(str::to_ascii_lowercase).collect(),
        body: body.to_owned(),
    })
}
