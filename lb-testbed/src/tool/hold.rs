//! One UDP socket, or any number of connections, that stay open. Each line on standard input is a
//! command: `request` sends a request, `reconnect` first connects the UDP socket to the target
//! again. A socket that is not connected sends the request to the address that follows the command,
//! if there is one. `open SOURCE TARGET` opens one more connection, from a socket that is bound to
//! SOURCE, and sends a request over it. `close N` sends a request over the Nth open connection,
//! counted from 0, and closes it; then it waits until the server has closed it too. The result of
//! each command is printed as one line of JSON.

use std::io::BufRead;
use std::net::SocketAddr;
use std::thread;
use std::time::Duration;

use anyhow::{Result, bail, ensure};
use clap::Args;
use lb_testbed::patience::patient;
use lb_testbed::pattern;
use lb_testbed::report::{Exchange, RequestAnswer, RequestFailure};
use tokio::net::UdpSocket;
use tokio::sync::mpsc;
use tokio::time::timeout;

use super::REQUEST_LIMIT;
use super::datagrams::{self, ANSWER_LIMIT, any_address};
use super::get::{self, Connection};

#[derive(Args)]
pub struct Options {
    /// Hold an HTTP connection instead of a UDP socket
    #[arg(long)]
    tcp: bool,
    /// Do not connect the UDP socket
    #[arg(long, conflicts_with = "tcp")]
    unconnected: bool,
    /// Number of HTTP connections. A request is sent on each, and the first failure is reported
    #[arg(long, default_value_t = 1)]
    count: u32,
    #[command(flatten)]
    socket: get::Socket,
    target: SocketAddr,
}

enum Held {
    Unconnected(UdpSocket),
    Datagrams(UdpSocket),
    Http(Vec<Connection>),
}

pub async fn run(options: &Options) -> Result<()> {
    let target = options.target;
    let mut held = open(options).await;
    let mut lines = lines();
    println!("ready");
    while let Some(line) = lines.recv().await {
        let (command, argument) = line.split_once(' ').unwrap_or((&line, ""));
        let (source, other) = argument.split_once(' ').unwrap_or(("", argument));
        let target = if other.is_empty() || command == "close" { target } else { other.parse()? };
        let result = match (command, &mut held) {
            (_, Err(failure)) => Err(failure.clone()),
            ("open", Ok(Held::Http(connections))) => {
                open_one_more(connections, source.parse()?, target).await
            }
            ("close", Ok(Held::Http(connections))) => {
                let number: usize = argument.parse()?;
                ensure!(number < connections.len(), "no connection {number}");
                close(connections.remove(number)).await
            }
            ("request", Ok(Held::Unconnected(socket))) => datagram_to(socket, target).await,
            ("request", Ok(Held::Datagrams(socket))) => datagram(socket).await,
            ("request", Ok(Held::Http(connections))) => request_on_all(connections).await,
            ("reconnect", Ok(Held::Datagrams(socket))) => reconnect(socket, target).await,
            (unknown, _) => bail!("unknown command {unknown:?}"),
        };
        println!("{}", serde_json::to_string(&Exchange { target, result })?);
    }
    Ok(())
}

async fn open(options: &Options) -> Result<Held, RequestFailure> {
    if options.tcp {
        let mut connections = Vec::new();
        for _ in 0..options.count {
            connections.push(Connection::open_over(&options.socket, options.target).await?);
        }
        return Ok(Held::Http(connections));
    }
    let socket = UdpSocket::bind(any_address(options.target)).await?;
    if options.unconnected {
        return Ok(Held::Unconnected(socket));
    }
    socket.connect(options.target).await?;
    Ok(Held::Datagrams(socket))
}

/// Sends a request on each connection. Returns the first failure, or the last answer.
async fn request_on_all(connections: &mut [Connection]) -> Result<RequestAnswer, RequestFailure> {
    let mut last = Err(get::timed_out());
    for connection in connections {
        let answer = timeout(patient(REQUEST_LIMIT), connection.request()).await;
        last = answer.unwrap_or_else(|_| Err(get::timed_out()));
        if last.is_err() {
            break;
        }
    }
    last
}

/// Opens a connection and sends a request over it. A connection that fails is not kept.
async fn open_one_more(
    connections: &mut Vec<Connection>,
    source: SocketAddr,
    target: SocketAddr,
) -> Result<RequestAnswer, RequestFailure> {
    let attempt = async {
        let mut connection = Connection::open_over(&get::Socket::bound_to(source), target).await?;
        let answer = connection.request().await?;
        Ok((connection, answer))
    };
    let opened = timeout(patient(REQUEST_LIMIT), attempt).await.unwrap_or_else(|_| Err(get::timed_out()));
    let (connection, answer) = opened?;
    connections.push(connection);
    Ok(answer)
}

/// Sends a request over a connection and closes it. Returns when the server has closed it too.
async fn close(mut connection: Connection) -> Result<RequestAnswer, RequestFailure> {
    let attempt = async {
        let answer = connection.request().await?;
        connection.close().await?;
        Ok(answer)
    };
    timeout(patient(REQUEST_LIMIT), attempt).await.unwrap_or_else(|_| Err(get::timed_out()))
}

async fn reconnect(socket: &UdpSocket, target: SocketAddr) -> Result<RequestAnswer, RequestFailure> {
    // Reads the pending error of a socket that was closed. Otherwise the next `recv` would return
    // it.
    let _ = socket.take_error();
    socket.connect(target).await?;
    // Drops answers to earlier requests that came before the socket was closed. From now on the
    // kernel drops those of other peers.
    while timeout(Duration::from_millis(10), socket.recv(&mut [0; 1])).await.is_ok_and(|got| got.is_ok()) {}
    datagram(socket).await
}

async fn datagram(socket: &UdpSocket) -> Result<RequestAnswer, RequestFailure> {
    let mut payload = [0; 32];
    pattern::fill(&mut payload, 0);
    socket.send(&payload).await?;
    let mut answer = vec![0; 65536];
    let length =
        timeout(patient(ANSWER_LIMIT), socket.recv(&mut answer)).await.map_err(|_| get::timed_out())??;
    datagrams::parse(&answer[..length], socket.peer_addr()?)
}

async fn datagram_to(socket: &UdpSocket, target: SocketAddr) -> Result<RequestAnswer, RequestFailure> {
    let mut payload = [0; 32];
    pattern::fill(&mut payload, 0);
    socket.send_to(&payload, target).await?;
    let mut answer = vec![0; 65536];
    let (length, peer) = timeout(patient(ANSWER_LIMIT), socket.recv_from(&mut answer))
        .await
        .map_err(|_| get::timed_out())??;
    datagrams::parse(&answer[..length], peer)
}

/// Returns the lines of standard input. A thread reads them, so that the connection's task keeps
/// running.
fn lines() -> mpsc::UnboundedReceiver<String> {
    let (sender, receiver) = mpsc::unbounded_channel();
    thread::spawn(move || {
        for line in std::io::stdin().lock().lines().map_while(Result::ok) {
            if sender.send(line).is_err() {
                return;
            }
        }
    });
    receiver
}
