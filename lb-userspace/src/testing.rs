//! Helpers of the unit tests.

use std::path::Path;

use lb_model::Protocol;
use lb_plan::desired::{DesiredServicePort, ServicePortId};

/// Returns a TCP port without addresses and endpoints.
pub fn desired_port() -> DesiredServicePort {
    DesiredServicePort {
        id: ServicePortId {
            namespace: "default".into(),
            name: "web".into(),
            port_name: String::new(),
            protocol: Protocol::Tcp,
        },
        port: 80,
        algorithm: Default::default(),
        hash: Default::default(),
        failover: false,
        passive_health: false,
        thresholds: None,
        fallback: false,
        max_connection_age: None,
        affinity_seconds: None,
        source_ranges: Default::default(),
        frontends: Vec::new(),
        v4: Default::default(),
        v6: Default::default(),
    }
}

/// Compares `actual` with the file `tests/golden/NAME`. With `SLUICE_BLESS=1` the file is
/// written instead, and the change is reviewed in the diff.
#[track_caller]
pub fn assert_golden(name: &str, actual: &str) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(name);
    if std::env::var_os("SLUICE_BLESS").is_some() {
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(&path, actual).unwrap();
        return;
    }
    let expected = std::fs::read_to_string(&path)
        .unwrap_or_else(|error| panic!("{}: {error}; create it with SLUICE_BLESS=1", path.display()));
    assert!(
        actual == expected,
        "{} differs; if the new text is right, write it with SLUICE_BLESS=1\n\
         --- expected\n{expected}\n--- actual\n{actual}",
        path.display()
    );
}
