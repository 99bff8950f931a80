//! The servers of a pod: HTTP, UDP, SCTP, transfers. Each answer names the pod and the client
//! address that the server saw.

use std::convert::Infallible;
use std::net::{SocketAddr, TcpListener as StdTcpListener};
use std::sync::Arc;
use std::thread;

use anyhow::{Context, Result};
use clap::Args;
use http_body_util::Full;
use hyper::body::Bytes;
use hyper::service::service_fn;
use hyper::{Response, header};
use hyper_util::rt::TokioIo;
use lb_testbed::pattern;
use lb_testbed::report::Greeting;
use tokio::net::{TcpListener, UdpSocket};

use super::{echo, exchange, sctp, transfer};

#[derive(Args)]
pub struct Options {
    /// Name that the answers carry
    #[arg(long)]
    name: String,
    /// Address of an HTTP server
    #[arg(long)]
    http: Vec<SocketAddr>,
    /// Address of a UDP server
    #[arg(long)]
    udp: Vec<SocketAddr>,
    /// Address of an SCTP server
    #[arg(long)]
    sctp: Vec<SocketAddr>,
    /// Address of a transfer server
    #[arg(long)]
    transfer: Vec<SocketAddr>,
    /// Address of an echo server, TCP and UDP
    #[arg(long)]
    echo: Vec<SocketAddr>,
    /// Address of a server of short connections
    #[arg(long)]
    exchange: Vec<SocketAddr>,
}

pub async fn run(options: Options) -> Result<()> {
    let name: Arc<str> = options.name.into();
    for address in options.http {
        let listener = TcpListener::bind(address).await.with_context(|| format!("listen on {address}"))?;
        tokio::spawn(serve_http(listener, name.clone()));
    }
    for address in options.udp {
        let socket = UdpSocket::bind(address).await.with_context(|| format!("bind {address}"))?;
        tokio::spawn(serve_udp(socket, name.clone()));
    }
    for address in options.sctp {
        let serve = sctp::serve(address, &name).with_context(|| format!("raw socket for {address}"))?;
        thread::spawn(serve);
    }
    for address in options.transfer {
        let listener = StdTcpListener::bind(address).with_context(|| format!("listen on {address}"))?;
        thread::spawn(move || transfer::serve(&listener));
    }
    for address in options.echo {
        echo::serve(address).with_context(|| format!("serve echo on {address}"))?;
    }
    for address in options.exchange {
        let listener = StdTcpListener::bind(address).with_context(|| format!("listen on {address}"))?;
        thread::spawn(move || exchange::serve(&listener));
    }
    println!("ready");
    std::future::pending().await
}

async fn serve_http(listener: TcpListener, name: Arc<str>) -> Result<()> {
    loop {
        let (stream, client) = listener.accept().await?;
        let name = name.clone();
        let answer = service_fn(move |_request| {
            let body = Greeting::json(&name, client, true);
            async move {
                Ok::<_, Infallible>(
                    Response::builder()
                        .header(header::CONTENT_TYPE, "application/json")
                        .body(Full::new(Bytes::from(body)))
                        .unwrap_or_default(),
                )
            }
        });
        // An error of one client ends only its own connection.
        tokio::spawn(async move {
            hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), answer).await
        });
    }
}

/// Answers each datagram that is not empty. The answer is padded with spaces to the length of the
/// request, so that both directions carry datagrams of that size.
async fn serve_udp(socket: UdpSocket, name: Arc<str>) -> Result<()> {
    let mut buffer = vec![0; 65536];
    loop {
        // `recv_from` also returns the ICMP error that an earlier answer caused: that client has
        // exited.
        let Ok((length, client)) = socket.recv_from(&mut buffer).await else { continue };
        if length == 0 {
            continue;
        }
        let intact = pattern::first_difference(&buffer[..length], 0).is_none();
        let mut answer = Greeting::json(&name, client, intact);
        answer.resize(answer.len().max(length), b' ');
        let _ = socket.send_to(&answer, client).await;
    }
}
