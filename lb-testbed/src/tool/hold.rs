//! One connection or one connected UDP socket that stays open. Each line on standard input makes it do something, and one line
//! of JSON says what came of it: `ask` sends a request, `connect` connects to the target again.

use std::io::BufRead;
use std::net::SocketAddr;
use std::thread;

use anyhow::{Result, bail};
use clap::Args;
use lb_testbed::pattern;
use lb_testbed::report::{Answer, Exchange, Failure};
use tokio::net::UdpSocket;
use tokio::sync::mpsc;
use tokio::time::timeout;

use super::REQUEST_LIMIT;
use super::ask::{self, ANSWER_LIMIT, any_address};
use super::get::{self, Connection};

#[derive(Args)]
pub struct Options {
    /// HTTP over one connection, instead of datagrams
    #[arg(long)]
    tcp: bool,
    target: SocketAddr,
}

enum Held {
    Datagrams(UdpSocket),
    Http(Connection),
}

pub async fn run(options: &Options) -> Result<()> {
    let target = options.target;
    let mut held = open(options).await;
    let mut lines = lines();
    println!("ready");
    while let Some(line) = lines.recv().await {
        let result = match (line.as_str(), &mut held) {
            (_, Err(failure)) => Err(failure.clone()),
            ("ask", Ok(Held::Datagrams(socket))) => datagram(socket).await,
            ("ask", Ok(Held::Http(connection))) => {
                timeout(REQUEST_LIMIT, connection.request()).await.unwrap_or_else(|_| Err(get::timed_out()))
            }
            ("connect", Ok(Held::Datagrams(socket))) => connect_again(socket, target).await,
            (other, _) => bail!("{other:?} is nothing that can be done"),
        };
        println!("{}", serde_json::to_string(&Exchange { target, result })?);
    }
    Ok(())
}

async fn open(options: &Options) -> Result<Held, Failure> {
    if options.tcp {
        return Connection::open(options.target).await.map(Held::Http);
    }
    let socket = UdpSocket::bind(any_address(options.target)).await?;
    socket.connect(options.target).await?;
    Ok(Held::Datagrams(socket))
}

async fn connect_again(socket: &UdpSocket, target: SocketAddr) -> Result<Answer, Failure> {
    // That it was closed is told once more to who waits for a datagram, unless somebody has read it.
    let _ = socket.take_error();
    socket.connect(target).await?;
    datagram(socket).await
}

async fn datagram(socket: &UdpSocket) -> Result<Answer, Failure> {
    let mut question = [0; 32];
    pattern::fill(&mut question, 0);
    socket.send(&question).await?;
    let mut answer = vec![0; 65536];
    let length = timeout(ANSWER_LIMIT, socket.recv(&mut answer)).await.map_err(|_| get::timed_out())??;
    ask::parse(&answer[..length], socket.peer_addr()?)
}

/// The lines of standard input, read on a thread: the connection goes on meanwhile.
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
