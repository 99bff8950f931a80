//! A host of the testbed (client, node or pod). It starts servers and sends requests.

use std::ffi::OsStr;
use std::fs::OpenOptions;
use std::io::{self, BufRead, BufReader, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};

use anyhow::{Context, Result, bail};
use clap::ValueEnum;
use rustix::process::{Pid, Signal, kill_process};
use serde::de::DeserializeOwned;

use crate::command::{TimeLimit, finish};
use crate::family::Family;
use crate::place::Place;
use crate::report::{
    Bound, ConnectionsReport, Exchange, ExchangeTimes, LoadReport, PingReport, TransferReport,
};

/// Ports of the servers in every pod.
pub const HTTP_PORT: u16 = 8080;
pub const UDP_PORT: u16 = 5353;
pub const SCTP_PORT: u16 = 3868;
pub const TRANSFER_PORT: u16 = 9000;

/// Ports that one server process listens on.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Listen {
    pub http: Vec<u16>,
    pub udp: Vec<u16>,
    pub sctp: Vec<u16>,
    pub transfer: Vec<u16>,
    /// TCP and UDP: the server returns what it receives.
    pub echo: Vec<u16>,
    /// TCP: the server answers one connection after the other, see [`Host::exchange`].
    pub exchange: Vec<u16>,
}

/// A host: a name, a network namespace with a cgroup, and an address of each family.
#[derive(Debug, Clone)]
pub struct Host {
    pub name: String,
    pub place: Place,
    pub v4: Ipv4Addr,
    pub v6: Ipv6Addr,
    /// Path of the `lb-testbed` program.
    tool: PathBuf,
    /// Folder for the logs of servers.
    logs: PathBuf,
}

/// How [`Host::send_datagrams`] sends datagrams.
#[derive(Debug, Clone, Copy, Default)]
pub struct Datagrams {
    /// True: one connected socket (`connect`, `send`). False: one unconnected socket (`sendto`).
    pub connected: bool,
    pub count: u32,
    /// Bytes of payload.
    pub size: usize,
    /// Never fragment. A datagram that exceeds the path MTU then fails.
    pub dont_fragment: bool,
}

/// What [`Host::open_connections`] opens.
#[derive(Debug, Clone)]
pub struct Connections {
    /// An HTTP or echo server.
    pub tcp: SocketAddr,
    /// A UDP or echo server.
    pub udp: SocketAddr,
    /// New connections per second.
    pub tcp_rate: u32,
    /// New flows per second.
    pub udp_rate: u32,
    pub seconds: u32,
    /// Addresses of the host to use in turn. If there is none, the kernel chooses.
    pub sources: Vec<IpAddr>,
}

/// A TCP socket that an application sets up before it connects, see [`Host::hold_prepared`].
#[derive(Debug, Clone, Copy, Default)]
pub struct PreparedSocket {
    /// Multipath TCP.
    pub mptcp: bool,
    /// `IPV6_V6ONLY`.
    pub v6_only: bool,
    /// The address that the socket is bound to.
    pub source: Option<SocketAddr>,
    /// Once connected, the socket connects to this address, too, which must fail with `EISCONN`.
    pub again: Option<SocketAddr>,
}

/// Protocol and connections of [`Host::start_load`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum LoadKind {
    /// HTTP, one connection for each request
    NewConnections,
    /// HTTP, all requests on one connection
    OneConnection,
    /// UDP, one socket for each request
    NewSockets,
    /// UDP, all requests on one connected socket
    OneSocket,
}

impl LoadKind {
    fn argument(self) -> &'static str {
        match self {
            Self::NewConnections => "new-connections",
            Self::OneConnection => "one-connection",
            Self::NewSockets => "new-sockets",
            Self::OneSocket => "one-socket",
        }
    }
}

impl Host {
    pub(crate) fn new(
        name: &str,
        place: Place,
        v4: Ipv4Addr,
        v6: Ipv6Addr,
        tool: &Path,
        logs: PathBuf,
    ) -> Self {
        Self { name: name.to_owned(), place, v4, v6, tool: tool.to_owned(), logs }
    }

    /// Returns the host's address of a family.
    pub fn address(&self, family: Family) -> IpAddr {
        match family {
            Family::V4 => self.v4.into(),
            Family::V6 => self.v6.into(),
        }
    }

    /// Returns the host's address of a family, with a port.
    pub fn at(&self, family: Family, port: u16) -> SocketAddr {
        SocketAddr::new(self.address(family), port)
    }

    /// Starts servers of every kind on the default ports. Their answers carry `name`. Returns once
    /// they listen.
    pub fn serve(&self, name: &str) -> Result<Process> {
        self.serve_at(
            name,
            &Listen {
                http: vec![HTTP_PORT],
                udp: vec![UDP_PORT],
                sctp: vec![SCTP_PORT],
                transfer: vec![TRANSFER_PORT],
                ..Listen::default()
            },
        )
    }

    /// Starts servers on these ports of both addresses of the host. Their answers carry `name`.
    /// Returns once they listen.
    pub fn serve_at(&self, name: &str, listen: &Listen) -> Result<Process> {
        let log = self.logs.join(format!("{}-servers.log", self.name));
        let log = OpenOptions::new().create(true).append(true).open(log)?;
        let mut command = self.tool("serve")?;
        command.args(["--name", name]);
        let kinds = [
            ("--http", &listen.http),
            ("--udp", &listen.udp),
            ("--sctp", &listen.sctp),
            ("--transfer", &listen.transfer),
            ("--echo", &listen.echo),
            ("--exchange", &listen.exchange),
        ];
        for (option, ports) in kinds {
            for port in ports {
                for family in Family::BOTH {
                    command.args([option, &self.at(family, *port).to_string()]);
                }
            }
        }
        let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(log).spawn()?;
        let _limit = TimeLimit::of(&child)?;
        let output = child.stdout.take().context("the servers have no standard output")?;
        let mut line = String::new();
        BufReader::new(output).read_line(&mut line)?;
        if line.trim() != "ready" {
            bail!("the servers of {} did not start: see {}", self.name, self.logs.display());
        }
        Ok(Process(child))
    }

    /// Sends `count` HTTP requests to each address, each on its own connection. Stops early after a
    /// few requests without an answer.
    pub fn get(&self, targets: &[SocketAddr], count: u32) -> Result<Vec<Exchange>> {
        let mut command = self.tool("get")?;
        command.args(["--count", &count.to_string()]);
        command.args(targets.iter().map(SocketAddr::to_string));
        json_of(&mut command)
    }

    /// Sends datagrams from one socket and waits for the answer to each.
    pub fn send_datagrams(&self, target: SocketAddr, datagrams: Datagrams) -> Result<Vec<Exchange>> {
        let mut command = self.tool("datagrams")?;
        command.args(["--count", &datagrams.count.to_string(), "--size", &datagrams.size.to_string()]);
        if datagrams.connected {
            command.arg("--connected");
        }
        if datagrams.dont_fragment {
            command.arg("--dont-fragment");
        }
        json_of(command.arg(target.to_string()))
    }

    /// Sends `count` packets that each open a connection, and nothing more on these connections.
    pub fn flood(&self, kind: FloodKind, target: SocketAddr, count: u32) -> Result<()> {
        let mut command = self.tool("flood")?;
        command.args([kind.argument(), "--count", &count.to_string(), &target.to_string()]);
        json_of::<String>(&mut command).map(drop)
    }

    /// Opens TCP connections and UDP flows at a steady rate, each from another source port, and
    /// waits for an answer on each.
    pub fn open_connections(&self, load: &Connections) -> Result<ConnectionsReport> {
        let mut command = self.tool("connections")?;
        command.args(["--tcp", &load.tcp.to_string(), "--tcp-rate", &load.tcp_rate.to_string()]);
        command.args(["--udp", &load.udp.to_string(), "--udp-rate", &load.udp_rate.to_string()]);
        command.args(["--seconds", &load.seconds.to_string()]);
        for source in &load.sources {
            command.args(["--source", &source.to_string()]);
        }
        json_of(&mut command)
    }

    /// Sends `count` ICMP echo requests with `size` bytes of payload.
    pub fn ping(&self, target: IpAddr, count: u16, size: usize) -> Result<PingReport> {
        let mut command = self.tool("ping")?;
        command.args(["--count", &count.to_string(), "--size", &size.to_string()]);
        json_of(command.arg(target.to_string()))
    }

    /// Opens `count` SCTP associations, one after the other, and sends a request over each. It uses
    /// raw sockets, for which no cgroup program runs: only the packets are translated.
    pub fn associate(&self, target: SocketAddr, count: u32) -> Result<Vec<Exchange>> {
        json_of(self.tool("associate")?.args(["--count", &count.to_string(), &target.to_string()]))
    }

    /// Opens TCP connections to a server of short connections, one after the other.
    pub fn exchange(&self, target: SocketAddr, count: u32) -> Result<ExchangeTimes> {
        json_of(self.tool("exchange")?.args(["--count", &count.to_string(), &target.to_string()]))
    }

    /// Sends `bytes` bytes to a transfer server and receives as many from it, over one connection.
    pub fn transfer(&self, target: SocketAddr, bytes: u64) -> Result<TransferReport> {
        json_of(self.tool("transfer")?.args(["--bytes", &bytes.to_string(), &target.to_string()]))
    }

    /// Opens a connected UDP socket that stays open until the result is dropped.
    pub fn hold_udp(&self, target: SocketAddr) -> Result<Held> {
        self.hold(&[""; 0], target)
    }

    /// Opens a UDP socket that stays open until the result is dropped, and is not connected.
    pub fn hold_unconnected(&self, target: SocketAddr) -> Result<Held> {
        self.hold(&["--unconnected"], target)
    }

    /// Opens an HTTP connection that stays open until the result is dropped.
    pub fn hold_http(&self, target: SocketAddr) -> Result<Held> {
        self.hold(&["--tcp"], target)
    }

    /// Opens `count` HTTP connections that stay open until the result is dropped.
    pub fn hold_many(&self, count: u32, target: SocketAddr) -> Result<Held> {
        self.hold(&["--tcp", "--count", &count.to_string()], target)
    }

    /// Opens an HTTP connection over such a socket. It stays open until the result is dropped.
    pub fn hold_prepared(&self, socket: PreparedSocket, target: SocketAddr) -> Result<Held> {
        let mut options = vec!["--tcp".to_owned()];
        options.extend(socket.mptcp.then(|| "--mptcp".to_owned()));
        options.extend(socket.v6_only.then(|| "--v6-only".to_owned()));
        options.extend(socket.source.map(|source| format!("--source={source}")));
        options.extend(socket.again.map(|again| format!("--again={again}")));
        self.hold(&options, target)
    }

    fn hold(&self, options: &[impl AsRef<OsStr>], target: SocketAddr) -> Result<Held> {
        let mut command = self.tool("hold")?;
        command.args(options).arg(target.to_string());
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
        let _limit = TimeLimit::of(&child)?;
        let input = child.stdin.take().context("no standard input")?;
        let mut output = BufReader::new(child.stdout.take().context("no standard output")?);
        // The process prints "ready" once it has connected or has failed to.
        output.read_line(&mut String::new())?;
        Ok(Held { child: Process(child), input, output })
    }

    /// Binds each address with TCP or UDP, and releases it at once.
    pub fn bind(&self, udp: bool, addresses: &[SocketAddr]) -> Result<Vec<Bound>> {
        let mut command = self.tool("bind")?;
        command.args(udp.then_some("--udp")).args(addresses.iter().map(SocketAddr::to_string));
        json_of(&mut command)
    }

    /// Sends requests at a steady rate until [`Load::finish`]. Returns when the first one is due.
    pub fn start_load(&self, kind: LoadKind, target: SocketAddr, per_second: u32) -> Result<Load> {
        let mut command = self.tool("load")?;
        command.args(["--kind", kind.argument(), "--rate", &per_second.to_string(), &target.to_string()]);
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
        let _limit = TimeLimit::of(&child)?;
        // The process prints a line before it sends the first request.
        let mut output = BufReader::new(child.stdout.take().context("the load has no standard output")?);
        output.read_line(&mut String::new())?;
        Ok(Load { child: Process(child), output })
    }

    fn tool(&self, command: &str) -> Result<Command> {
        let mut tool = self.place.command(&self.tool)?;
        tool.arg(command);
        Ok(tool)
    }
}

/// The packets that [`Host::flood`] sends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FloodKind {
    /// Datagrams from many ports of the host, which the servers do not answer.
    Datagrams,
    /// TCP SYNs with forged sources; IPv4 only.
    Syns,
}

impl FloodKind {
    fn argument(self) -> &'static str {
        match self {
            Self::Datagrams => "datagrams",
            Self::Syns => "syns",
        }
    }
}

/// A child process that is killed when dropped.
#[derive(Debug)]
pub struct Process(pub Child);

impl Process {
    /// Sends a signal.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        Ok(kill_process(Pid::from_child(&self.0), signal)?)
    }

    pub fn pid(&self) -> u32 {
        self.0.id()
    }

    /// Waits for the end of the child, which is killed if it does not come.
    pub fn wait(&mut self) -> io::Result<ExitStatus> {
        let _limit = TimeLimit::of(&self.0)?;
        self.0.wait()
    }

    /// Leaves the child running when this process ends.
    pub fn keep(self) {
        std::mem::forget(self);
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // Both calls fail only if the child has already exited.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A connection or connected socket that a child process keeps open.
#[derive(Debug)]
pub struct Held {
    child: Process,
    input: std::process::ChildStdin,
    output: BufReader<std::process::ChildStdout>,
}

impl Held {
    /// Sends a request on the connection or socket.
    pub fn request(&mut self) -> Result<Exchange> {
        self.command("request")
    }

    /// Sends a request to another target, by a UDP socket that is not connected.
    pub fn request_to(&mut self, target: SocketAddr) -> Result<Exchange> {
        self.command(&format!("request {target}"))
    }

    /// Connects the UDP socket to its target again and sends a request.
    pub fn reconnect(&mut self) -> Result<Exchange> {
        self.command("reconnect")
    }

    /// Connects the UDP socket to another target and sends a request.
    pub fn reconnect_to(&mut self, target: SocketAddr) -> Result<Exchange> {
        self.command(&format!("reconnect {target}"))
    }

    /// Opens one more HTTP connection, from an address of the host, and sends a request over it.
    pub fn open(&mut self, source: IpAddr, target: SocketAddr) -> Result<Exchange> {
        self.command(&format!("open {} {target}", SocketAddr::new(source, 0)))
    }

    /// Sends a request over an HTTP connection and closes it. Returns when the server has closed it
    /// too. `number` counts the connections that are open, in the order of their opening, from 0.
    pub fn close(&mut self, number: usize) -> Result<Exchange> {
        self.command(&format!("close {number}"))
    }

    fn command(&mut self, line: &str) -> Result<Exchange> {
        let _limit = TimeLimit::of(&self.child.0)?;
        writeln!(self.input, "{line}")?;
        let mut answer = String::new();
        self.output.read_line(&mut answer)?;
        serde_json::from_str(&answer)
            .with_context(|| format!("parse the result of the command {line:?}: {answer:?}"))
    }
}

/// A running load. It ends with [`Load::finish`].
#[derive(Debug)]
pub struct Load {
    child: Process,
    output: BufReader<std::process::ChildStdout>,
}

impl Load {
    /// Stops sending, waits for outstanding answers, and returns the report.
    pub fn finish(mut self) -> Result<LoadReport> {
        let _limit = TimeLimit::of(&self.child.0)?;
        drop(self.child.0.stdin.take());
        serde_json::from_reader(&mut self.output).context("read the report of the load")
    }
}

fn json_of<T: DeserializeOwned>(command: &mut Command) -> Result<T> {
    let child = command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn()?;
    let output = finish(child)?;
    if !output.status.success() {
        bail!("{command:?}: {}", output.status);
    }
    serde_json::from_slice(&output.stdout).with_context(|| format!("parse the output of {command:?}"))
}
