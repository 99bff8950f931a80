//! `deploy/` as kustomize, Helm and Prometheus read it. `cargo xtask test --only deploy` builds
//! these programs and runs the tests.

mod chart;
mod monitoring;
mod tools;

use std::path::Path;

use serde_json::Value;

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("xtask is in the root of the workspace")
}

/// Parses the documents of a YAML text, without empty ones.
fn documents(yaml: &str) -> Vec<Value> {
    let documents =
        serde_saphyr::from_multiple::<Value>(yaml).unwrap_or_else(|error| panic!("{error}\n{yaml}"));
    documents.into_iter().filter(|document| !document.is_null()).collect()
}
