//! A network namespace with an ingress proxy and the addresses of endpoints, without nodes and
//! agents.

use std::fs::OpenOptions;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpStream};
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};

use crate::agent::program;
use crate::daemon::{START_LIMIT, tail};
use crate::host::Process;
use crate::ingress::{ADMIN, HTTP_PORT, HTTPS_PORT, IngressProxy};
use crate::manifest_dir::ManifestDir;
use crate::patience::patient;
use crate::place::Place;
use crate::run::{RunId, remove_everything_of, sweep_dead};

/// The number of addresses for endpoints.
const ENDPOINTS: u8 = 16;

/// The namespace. Dropping it removes everything.
#[derive(Debug)]
pub struct IngressBed {
    pub place: Place,
    /// The folder that the proxy reads.
    pub manifests: ManifestDir,
    id: RunId,
}

impl IngressBed {
    /// The ports of the proxy.
    pub const HTTP: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), HTTP_PORT);
    pub const HTTPS: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), HTTPS_PORT);
    /// The port of `/readyz` and `/metrics` of the proxy.
    pub const ADMIN: SocketAddr = ADMIN;

    pub fn build() -> Result<Self> {
        // Build `lb` first: if that fails, nothing has to be removed.
        program()?;
        sweep_dead()?;
        let id = RunId::claim()?;
        let place = Place::create(id.netns("ingress"), id.cgroup()?.join("ingress"))?;
        let manifests = ManifestDir::create(&id.folder())?;
        let bed = Self { place, manifests, id };
        let addresses: String = (0..ENDPOINTS)
            .map(|number| format!("address add {}/32 dev lo\n", Self::endpoint(number)))
            .collect();
        bed.place.ip(&format!("link set lo up\n{addresses}"))?;
        Ok(bed)
    }

    /// Returns the address of an endpoint. A loopback address cannot be one.
    pub fn endpoint(number: u8) -> Ipv4Addr {
        Ipv4Addr::new(10, 99, 0, 1 + number)
    }

    /// Returns a folder for logs and files of other programs.
    pub fn folder(&self) -> PathBuf {
        self.id.folder()
    }

    /// Starts the proxy with further arguments, and waits until it serves the manifests.
    pub fn start_proxy(&self, arguments: &[&str]) -> Result<IngressProxy> {
        let log = self.folder().join("ingress.log");
        IngressProxy::start_in(&self.place, "--manifests", self.manifests.path(), arguments, log)
    }

    /// Starts a server and waits until it accepts connections at `address`. Its standard output is
    /// discarded.
    pub fn start_server(&self, command: &mut Command, address: SocketAddr) -> Result<Process> {
        let log = self.folder().join("servers.log");
        let errors = OpenOptions::new().create(true).append(true).open(&log)?;
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(errors);
        let program = command.get_program().display().to_string();
        let mut process = Process(command.spawn().with_context(|| format!("start {program}"))?);
        let deadline = Instant::now() + patient(START_LIMIT);
        while self.place.inside(|| TcpStream::connect(address))?.is_err() {
            if process.0.try_wait()?.is_some() || Instant::now() > deadline {
                bail!("{program} does not listen at {address}\n{}", tail(&log));
            }
            sleep(Duration::from_millis(10));
        }
        Ok(process)
    }
}

impl Drop for IngressBed {
    fn drop(&mut self) {
        if let Err(error) = remove_everything_of(&self.id) {
            eprintln!("{error:#}");
        }
    }
}

/// The state of an endpoint in a slice.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EndpointState {
    Ready,
    /// The pod is being deleted and still serves.
    Terminating,
}

/// Returns a Service with the port 80 in the namespace `default`.
pub fn service(name: &str) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Service", "metadata": { "name": name },
        "spec": { "ports": [{ "port": 80 }] },
    })
}

/// Returns an Ingress that sends the requests of a host, with any path, to port 80 of the Service
/// with the same name.
pub fn ingress(name: &str, host: &str) -> Value {
    let backend = json!({ "service": { "name": name, "port": { "number": 80 } } });
    json!({
        "apiVersion": "networking.k8s.io/v1", "kind": "Ingress", "metadata": { "name": name },
        "spec": { "ingressClassName": "sluice", "rules": [{
            "host": host,
            "http": { "paths": [{ "path": "/", "pathType": "Prefix", "backend": backend }] },
        }] },
    })
}

/// Returns an EndpointSlice of a Service in the namespace `default`. All endpoints have one port.
pub fn slice(service: &str, port: u16, endpoints: &[(Ipv4Addr, EndpointState)]) -> Value {
    let endpoints: Vec<_> = endpoints
        .iter()
        .map(|(address, state)| {
            let terminating = *state == EndpointState::Terminating;
            json!({
                "addresses": [address.to_string()],
                "conditions": { "ready": !terminating, "serving": true, "terminating": terminating },
            })
        })
        .collect();
    json!({
        "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
        "metadata": {
            "name": format!("{service}-1"), "labels": { "kubernetes.io/service-name": service },
        },
        "addressType": "IPv4", "ports": [{ "port": port, "protocol": "TCP" }], "endpoints": endpoints,
    })
}
