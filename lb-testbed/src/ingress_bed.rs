//! A network namespace with an ingress proxy and the addresses of endpoints, without nodes and
//! agents.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;

use anyhow::{Context, Result};
use serde_json::{Value, json};

use crate::agent::program;
use crate::ingress::IngressProxy;
use crate::manifest_dir::ManifestDir;
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
    pub const HTTP: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 8180);
    pub const HTTPS: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 8543);
    /// The port of `/readyz` and `/metrics` of the proxy.
    pub const ADMIN: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 10254);

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
        let mut command = self.place.command(program()?)?;
        command.args(["ingress", "--manifests"]).arg(self.manifests.path());
        command.args(["--http", &Self::HTTP.to_string(), "--https", &Self::HTTPS.to_string()]);
        command.args(["--admin", &Self::ADMIN.to_string()]).args(arguments);
        let log = self.folder().join("ingress.log");
        IngressProxy::spawn(&self.place, &mut command, log, Self::ADMIN).context("start the proxy")
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
