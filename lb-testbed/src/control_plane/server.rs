//! The API server with its etcd.

use std::fs;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};

use super::api::Api;
use super::programs::program;
use crate::daemon::{spawn, tail};
use crate::host::{Host, Process};
use crate::manifests;
use crate::topology::{SERVICE_CIDR_V4, SERVICE_CIDR_V6, Topology};

/// How long the API server may take to become ready. It takes 5 s on an idle machine.
const START_LIMIT: Duration = Duration::from_secs(90);
const PORT: u16 = 6443;
/// etcd listens on the loopback device of the host's own network namespace, where its ports are
/// free.
const ETCD_CLIENTS: &str = "http://127.0.0.1:2379";
const ETCD_PEERS: &str = "http://127.0.0.1:2380";
/// The ClusterIP of the Service `kubernetes`: the API server assigns the first address of the
/// range.
const OWN_CLUSTER_IP: Ipv4Addr = Ipv4Addr::new(10, 96, 0, 1);
const OWN_SERVICE_PORT: u16 = 443;
/// Namespace and name of the service account of `deploy/rbac.yaml`.
pub const ACCOUNT: (&str, &str) = ("sluice", "sluice");
/// Token of a user with all rights.
const ADMIN_TOKEN: &str = "admin-of-the-testbed";

/// The API server with its etcd. Dropping it kills both.
#[derive(Debug)]
pub struct ControlPlane {
    host: Host,
    folder: PathBuf,
    _etcd: Process,
    /// `None` while the API server is stopped.
    api_server: Option<Process>,
}

impl ControlPlane {
    /// Starts etcd and the API server on `host`, with their files in `folder`. Waits until the API
    /// server is ready.
    pub fn start(host: &Host, folder: &Path) -> Result<Self> {
        fs::create_dir_all(folder).with_context(|| format!("create {}", folder.display()))?;
        write_credentials(host, folder)?;
        let mut etcd = host.place.command("etcd")?;
        etcd.arg("--data-dir").arg(folder.join("etcd")).args([
            "--listen-client-urls",
            ETCD_CLIENTS,
            "--advertise-client-urls",
            ETCD_CLIENTS,
            "--listen-peer-urls",
            ETCD_PEERS,
            "--initial-advertise-peer-urls",
            ETCD_PEERS,
            "--initial-cluster",
            &format!("default={ETCD_PEERS}"),
        ]);
        let etcd = spawn(&mut etcd, &folder.join("etcd.log"))
            .context("on Debian, install the package `etcd-server`")?;
        let mut control_plane =
            Self { host: host.clone(), folder: folder.to_owned(), _etcd: etcd, api_server: None };
        control_plane.start_api_server()?;
        Ok(control_plane)
    }

    /// Starts the API server, with all objects that etcd stores, and waits until it is ready.
    pub fn start_api_server(&mut self) -> Result<()> {
        let file = |name| self.folder.join(name);
        let mut command = self.host.place.command(program()?)?;
        command
            .args(["--etcd-servers", ETCD_CLIENTS])
            .args(["--bind-address", &self.host.v4.to_string()])
            .args(["--secure-port", &PORT.to_string()])
            .args(["--service-cluster-ip-range", &format!("{SERVICE_CIDR_V4},{SERVICE_CIDR_V6}")])
            .args(["--authorization-mode", "RBAC"])
            // The agent's DaemonSet is privileged. kubeadm sets this flag, too.
            .arg("--allow-privileged")
            .args(["--service-account-issuer", "https://kubernetes.default.svc"])
            .arg("--tls-cert-file")
            .arg(file(CERTIFICATE))
            .arg("--tls-private-key-file")
            .arg(file(PRIVATE_KEY))
            .arg("--service-account-signing-key-file")
            .arg(file(PRIVATE_KEY))
            .arg("--service-account-key-file")
            .arg(file(PUBLIC_KEY))
            .arg("--token-auth-file")
            .arg(file(TOKENS));
        self.api_server = Some(spawn(&mut command, &self.log())?);
        self.wait_until_ready()
    }

    /// Kills the API server, as a crash would: all watches break, and requests fail. etcd keeps the
    /// objects.
    pub fn stop_api_server(&mut self) {
        self.api_server = None;
    }

    /// Returns a client with all rights.
    pub fn admin(&self) -> Result<Api> {
        Api::new(&self.host.place, &self.admin_kubeconfig()?)
    }

    /// Returns a client with the rights of a service account, as in a pod that uses that account.
    pub fn service_account(&self, namespace: &str, name: &str) -> Result<Api> {
        Api::new(&self.host.place, &self.kubeconfig_of(namespace, name, &self.address())?)
    }

    /// Writes the kubeconfig of the administrator. Returns its path.
    pub fn admin_kubeconfig(&self) -> Result<PathBuf> {
        self.kubeconfig("admin", &self.address(), ADMIN_TOKEN)
    }

    /// Writes a kubeconfig with a token of a service account and this API server address. Returns
    /// the path of the file.
    pub fn kubeconfig_of(&self, namespace: &str, name: &str, server: &SocketAddr) -> Result<PathBuf> {
        let token = self.admin()?.token(namespace, name)?;
        self.kubeconfig(&format!("{namespace}-{name}-{}", server.ip()), server, &token)
    }

    /// Creates the Nodes of a topology, and the namespace and the rights of `deploy/`.
    pub fn deploy(&self, admin: &Api, topology: &Topology) -> Result<Deployment> {
        for node in &topology.nodes {
            admin.apply(&manifests::node(node))?;
        }
        for file in ["namespace.yaml", "rbac.yaml"] {
            documents(&deploy().join(file))?.iter().try_for_each(|object| admin.apply(object))?;
        }
        let (namespace, name) = ACCOUNT;
        let kubeconfig = self.kubeconfig_of(namespace, name, &self.address())?;
        let config = topology.folder().join("config.yaml");
        fs::write(&config, settings()?).with_context(|| format!("write {}", config.display()))?;
        Ok(Deployment { kubeconfig, config })
    }

    /// Returns the address that the API server listens on.
    pub fn address(&self) -> SocketAddr {
        (self.host.v4, PORT).into()
    }

    /// Returns the address of the Service `kubernetes`, through which a Service proxy makes the API
    /// server available.
    pub fn service_address(&self) -> SocketAddr {
        (OWN_CLUSTER_IP, OWN_SERVICE_PORT).into()
    }

    /// Path of the API server's log file.
    pub fn log(&self) -> PathBuf {
        self.folder.join("kube-apiserver.log")
    }

    fn kubeconfig(&self, name: &str, server: &SocketAddr, token: &str) -> Result<PathBuf> {
        let config = json!({
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [{ "name": "testbed", "cluster": {
                "server": format!("https://{server}"),
                "certificate-authority": self.folder.join(CERTIFICATE),
            }}],
            "users": [{ "name": name, "user": { "token": token } }],
            "contexts": [{ "name": "testbed", "context": { "cluster": "testbed", "user": name } }],
            "current-context": "testbed",
        });
        let path = self.folder.join(format!("{name}.kubeconfig"));
        fs::write(&path, serde_saphyr::to_string(&config)?)
            .with_context(|| format!("write {}", path.display()))?;
        Ok(path)
    }

    fn wait_until_ready(&mut self) -> Result<()> {
        let deadline = Instant::now() + START_LIMIT;
        let admin = self.admin()?;
        loop {
            let Some(Process(child)) = &mut self.api_server else { bail!("the API server was not started") };
            if let Some(status) = child.try_wait()? {
                bail!("kube-apiserver exited with {status}\n{}", tail(&self.log()));
            }
            match admin.is_ready() {
                Ok(()) => return Ok(()),
                Err(error) if Instant::now() > deadline => {
                    return Err(error.context(format!("kube-apiserver is not ready\n{}", tail(&self.log()))));
                }
                Err(_) => thread::sleep(Duration::from_millis(100)),
            }
        }
    }
}

/// The files that an agent of the DaemonSet reads.
#[derive(Debug, Clone)]
pub struct Deployment {
    /// Kubeconfig with the rights of the service account, and with the address of the API server.
    pub kubeconfig: PathBuf,
    /// The settings of `deploy/config.yaml`.
    pub config: PathBuf,
}

/// Names of the files that [`write_credentials`] creates.
const CERTIFICATE: &str = "server.crt";
const PRIVATE_KEY: &str = "server.key";
const PUBLIC_KEY: &str = "server.pub";
const TOKENS: &str = "tokens.csv";

/// Creates one key for everything: the API server's self-signed certificate, and the tokens that it
/// signs.
fn write_credentials(host: &Host, folder: &Path) -> Result<()> {
    let names = [IpAddr::from(host.v4), OWN_CLUSTER_IP.into()].map(|ip| ip.to_string());
    let own = rcgen::generate_simple_self_signed(names).context("make a certificate")?;
    let files = [
        (CERTIFICATE, own.cert.pem()),
        (PRIVATE_KEY, own.signing_key.serialize_pem()),
        (PUBLIC_KEY, own.signing_key.public_key_pem()),
        (TOKENS, format!("{ADMIN_TOKEN},admin,admin,system:masters\n")),
    ];
    for (name, content) in files {
        let path = folder.join(name);
        fs::write(&path, content).with_context(|| format!("write {}", path.display()))?;
    }
    Ok(())
}

/// Returns the YAML documents of a manifest file.
pub fn documents(path: &Path) -> Result<Vec<Value>> {
    let text = fs::read_to_string(path).with_context(|| format!("read {}", path.display()))?;
    serde_saphyr::from_multiple(&text).with_context(|| format!("parse {}", path.display()))
}

/// Returns the folder with the manifests for a cluster.
pub fn deploy() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy")
}

/// Returns the content of the file that the DaemonSet's agents get with `--config`.
fn settings() -> Result<String> {
    let maps = documents(&deploy().join("config.yaml"))?;
    let settings = maps.iter().find_map(|map| map["data"]["config.yaml"].as_str());
    settings.map(str::to_owned).context("deploy/config.yaml has no settings")
}
