//! Self-signed certificates, made by openssl.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};
use serde_json::{Value, json};

use crate::command::run;

/// The files of a certificate, which is its own authority, and of its key.
#[derive(Debug)]
pub struct Certificate {
    pub certificate: PathBuf,
    pub key: PathBuf,
}

impl Certificate {
    /// Makes a certificate for a host: `FILE.crt` and `FILE.key` in `folder`.
    pub fn create(folder: &Path, file: &str, host: &str) -> Result<Self> {
        let [certificate, key] = ["crt", "key"].map(|kind| folder.join(format!("{file}.{kind}")));
        let mut openssl = Command::new("openssl");
        openssl.args(["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"]);
        openssl.args(["-days", "90", "-subj", &format!("/CN={host}")]);
        openssl.args(["-addext", &format!("subjectAltName=DNS:{host}")]);
        run(openssl.arg("-out").arg(&certificate).arg("-keyout").arg(&key))?;
        Ok(Self { certificate, key })
    }

    /// Returns the Secret with the certificate in the namespace `default`.
    pub fn secret(&self, name: &str) -> Result<Value> {
        let text = |file: &Path| fs::read_to_string(file).with_context(|| file.display().to_string());
        Ok(json!({
            "apiVersion": "v1", "kind": "Secret", "type": "kubernetes.io/tls",
            "metadata": { "name": name, "namespace": "default" },
            "stringData": { "tls.crt": text(&self.certificate)?, "tls.key": text(&self.key)? },
        }))
    }
}
