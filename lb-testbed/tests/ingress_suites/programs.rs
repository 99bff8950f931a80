//! The programs, and the objects that the proxy serves for them.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use lb_testbed::command::output_within;
use lb_testbed::ingress_bed::{EndpointState, ingress, service, slice};
use lb_testbed::{Certificate, IngressBed};
use serde_json::{Value, json};

/// The port of the endpoint.
pub const PORT: u16 = 20_000;
/// The name in the certificate.
pub const NAME: &str = "suites.example";

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

/// The time after which a program is killed. testssl.sh takes minutes.
const LIMIT: Duration = Duration::from_secs(30 * 60);

pub fn endpoint() -> SocketAddr {
    SocketAddr::new(IngressBed::endpoint(0).into(), PORT)
}

/// Writes an Ingress that sends every request to the endpoint, and a certificate. Returns the file
/// of the certificate, which is its own authority.
pub fn write_objects(bed: &IngressBed, annotations: Value) -> Result<PathBuf> {
    let certificate = Certificate::create(&bed.folder(), "tls", NAME)?;
    let mut ingress = ingress("suite", NAME);
    ingress["metadata"]["annotations"] = annotations;
    ingress["spec"]["tls"] = json!([{"hosts": [NAME], "secretName": "suite"}]);
    let rule = &ingress["spec"]["rules"][0];
    ingress["spec"]["rules"] = json!([{"http": rule["http"]}, rule]);
    let slice = slice("suite", PORT, &[(IngressBed::endpoint(0), EndpointState::Ready)]);
    let objects = [service("suite"), slice, certificate.secret("suite")?, ingress];
    bed.manifests.write("suite.yaml", &objects)?;
    Ok(certificate.certificate)
}

/// Runs a program to its end in the namespace of the bed. Returns whether it succeeded, and its
/// output.
pub fn run(bed: &IngressBed, program: &Path, arguments: &[&str]) -> Result<(bool, String)> {
    output(bed.place.command(program)?.args(arguments))
}

/// Runs a command to its end, or kills it after [`LIMIT`]. Returns whether it succeeded, and its
/// output.
pub fn output(command: &mut Command) -> Result<(bool, String)> {
    let output = output_within(LIMIT, command);
    let output = output.with_context(|| format!("run {}", command.get_program().display()))?;
    let text = [output.stdout, output.stderr].concat();
    Ok((output.status.success(), String::from_utf8_lossy(&text).into_owned()))
}
