//! The programs, and the objects that the proxy serves for them.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use lb_testbed::IngressBed;
use lb_testbed::ingress_bed::{EndpointState, slice};
use lb_testbed::patience::patient;
use serde_json::{Value, json};

/// The port of the endpoint.
pub const PORT: u16 = 20_000;
/// The name in the certificate.
pub const NAME: &str = "suites.example";
const LIMIT: Duration = Duration::from_secs(20);

/// Returns the path of a program. xtask sets the variable.
pub fn path(variable: &str, file: &str) -> Result<PathBuf> {
    let folder = std::env::var_os(variable);
    let folder =
        folder.with_context(|| format!("{variable} is not set: run `cargo xtask test ingress-suites`"))?;
    let path = Path::new(&folder).join(file);
    ensure!(path.is_file(), "{} does not exist", path.display());
    Ok(path)
}

/// The folder with the programs that are built from Go modules.
pub const GO_PROGRAMS: &str = "SLUICE_SUITES_BIN";

pub fn endpoint() -> SocketAddr {
    SocketAddr::new(IngressBed::endpoint(0).into(), PORT)
}

/// Writes an Ingress that sends every request to the endpoint, and a certificate. Returns the file
/// of the certificate, which is its own authority.
pub fn write_objects(bed: &IngressBed, annotations: Value) -> Result<PathBuf> {
    let backend = json!({"service": {"name": "suite", "port": {"number": 80}}});
    let http = json!({"paths": [{"path": "/", "pathType": "Prefix", "backend": backend}]});
    let (certificate, key) = (bed.folder().join("tls.crt"), bed.folder().join("tls.key"));
    let subject = format!("/CN={NAME}");
    let names = format!("subjectAltName=DNS:{NAME}");
    let mut openssl = Command::new("openssl");
    openssl.args(["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"]);
    openssl.args(["-days", "90", "-subj", &subject, "-addext", &names]);
    openssl.arg("-out").arg(&certificate).arg("-keyout").arg(&key);
    let output = openssl.output().context("run openssl (is it installed?)")?;
    ensure!(output.status.success(), "openssl: {}", String::from_utf8_lossy(&output.stderr));
    let text = |file: &Path| std::fs::read_to_string(file);
    bed.manifests.write(
        "suite.yaml",
        &[
            json!({
                "apiVersion": "v1", "kind": "Service", "metadata": {"name": "suite"},
                "spec": {"ports": [{"port": 80}]},
            }),
            slice("suite", PORT, &[(IngressBed::endpoint(0), EndpointState::Ready)]),
            json!({
                "apiVersion": "v1", "kind": "Secret", "type": "kubernetes.io/tls",
                "metadata": {"name": "suite"},
                "stringData": {"tls.crt": text(&certificate)?, "tls.key": text(&key)?},
            }),
            json!({
                "apiVersion": "networking.k8s.io/v1", "kind": "Ingress",
                "metadata": {"name": "suite", "annotations": annotations},
                "spec": {
                    "ingressClassName": "sluice",
                    "tls": [{"hosts": [NAME], "secretName": "suite"}],
                    "rules": [{"http": http}, {"host": NAME, "http": http}],
                },
            }),
        ],
    )?;
    Ok(certificate)
}

/// A server in the namespace of the bed. Dropping it ends the process.
pub struct Server(Child);

impl Server {
    /// Starts a server and waits until it accepts connections at [`endpoint`].
    pub fn start(bed: &IngressBed, program: &Path, arguments: &[&str]) -> Result<Self> {
        let mut command = bed.place.command(program)?;
        let child = command.args(arguments).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        let server = Self(child.spawn().with_context(|| format!("start {}", program.display()))?);
        let deadline = Instant::now() + patient(LIMIT);
        while bed.place.inside(|| std::net::TcpStream::connect(endpoint()))?.is_err() {
            if Instant::now() > deadline {
                bail!("{} does not listen at {}", program.display(), endpoint());
            }
            sleep(Duration::from_millis(10));
        }
        Ok(server)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // The process may have ended.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Runs a program to its end in the namespace of the bed. Returns whether it succeeded, and its
/// output.
pub fn run(bed: &IngressBed, program: &Path, arguments: &[&str]) -> Result<(bool, String)> {
    output(bed.place.command(program)?.args(arguments))
}

/// Runs a command to its end. Returns whether it succeeded, and its output.
pub fn output(command: &mut Command) -> Result<(bool, String)> {
    let output = command.stdin(Stdio::null()).output();
    let output = output.with_context(|| format!("run {}", command.get_program().display()))?;
    let text = [output.stdout, output.stderr].concat();
    Ok((output.status.success(), String::from_utf8_lossy(&text).into_owned()))
}
