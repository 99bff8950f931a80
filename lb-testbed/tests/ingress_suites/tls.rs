//! testssl.sh rates the TLS of the proxy.

use std::fs;
use std::os::unix::fs::symlink;

use anyhow::{Context as _, Result, ensure};
use lb_testbed::IngressBed;
use serde_json::{Value, json};

use crate::programs::{self, NAME, output, write_objects};

/// The folder with the unpacked package of testssl.sh.
const TESTSSL: &str = "SLUICE_TESTSSL";

/// Findings that are not about the proxy: the certificate has no authority that could revoke it,
/// and HSTS is a field that the owner of a site adds (docs/ingress.md).
const NOT_OURS: [&str; 2] = ["cert_revocation", "HSTS"];

#[test]
fn tls() -> Result<()> {
    let program = programs::path(TESTSSL, "usr/bin/testssl")?;
    // Its package has the lists of ciphers at a fixed place.
    let lists = programs::path(TESTSSL, "etc/testssl/cipher-mapping.txt")?;
    let bed = IngressBed::build()?;
    let certificate = write_objects(&bed, json!({}))?;
    let proxy = bed.start_proxy(&["--no-access-log"])?;
    let report = bed.folder().join("testssl.json");
    let (certificate, json) = (certificate.display().to_string(), report.display().to_string());
    let target = format!("{NAME}:{}", IngressBed::HTTPS.port());
    let ip = IngressBed::HTTPS.ip().to_string();
    let options = ["--quiet", "--color", "0", "--nodns", "none", "--ip", &ip, "--add-ca", &certificate];
    // testssl.sh fails without a resolver, also if it looks up no name.
    let resolver = bed.folder().join("resolver");
    fs::create_dir(&resolver)?;
    symlink("/bin/true", resolver.join("dig"))?;
    let path = std::env::var_os("PATH").unwrap_or_default();
    let folders = [resolver].into_iter().chain(std::env::split_paths(&path));
    let mut command = bed.place.command(&program)?;
    command.env("PATH", std::env::join_paths(folders)?);
    command.env("TESTSSL_INSTALL_DIR", lists.parent().context("the file is in a folder")?);
    let text = output(command.args(options).args(["--jsonfile", &json, &target]))?.1;
    let findings: Vec<Value> = serde_json::from_slice(
        &fs::read(&report).with_context(|| format!("testssl.sh wrote no report: {text}"))?,
    )?;
    let field = |finding: &Value, key: &str| finding[key].as_str().unwrap_or_default().to_owned();
    let weak: Vec<_> = findings
        .iter()
        .filter(|finding| {
            let severity = field(finding, "severity");
            ["LOW", "MEDIUM", "HIGH", "CRITICAL", "FATAL"].contains(&severity.as_str())
                && !NOT_OURS.contains(&field(finding, "id").as_str())
        })
        .map(|finding| ["id", "severity", "finding"].map(|key| field(finding, key)).join(": "))
        .collect();
    let grade = findings.iter().find(|finding| finding["id"] == "overall_grade");
    let grade =
        grade.map(|finding| field(finding, "finding")).with_context(|| format!("no grade: {text}"))?;
    println!("grade {grade}, {} findings", findings.len());
    println!("{}", weak.join("\n"));
    ensure!(weak.is_empty(), "weak: {}", weak.join("\n"));
    ensure!(grade.starts_with('A'), "grade {grade}");
    proxy.stop()
}
