//! Service ports with their names in the Kubernetes API, and the maps that contain these names.

use std::collections::HashMap;

use ipnet::IpNet;
use lb_common::layout::{self, ServiceName};
use lb_datapath::apply::tables::BackendEntry;
use lb_model::IpFamily;
use serde::Serialize;

/// The map `SERVICE_NAMES`, by service id.
pub type Names = HashMap<u32, ServiceName>;

/// The backend ids in ranges of the map `SLOTS`, by first slot and number of slots.
pub type Slots = HashMap<(u32, u32), Vec<u32>>;

/// The maps `BACKENDS_V4` and `BACKENDS_V6`, by family and backend id.
pub type BackendsById = HashMap<(IpFamily, u32), BackendEntry>;

/// The maps `SOURCE_RANGES_V4` and `SOURCE_RANGES_V6`, by service id.
pub type SourceRangesById = HashMap<u32, Vec<IpNet>>;

/// A Service port, with its names in the Kubernetes API.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct NamedServicePort {
    pub namespace: String,
    pub name: String,
    /// Empty if the port has no name. A Service with one port needs none.
    pub port_name: String,
    pub port: u16,
}

impl NamedServicePort {
    /// Returns the Service port with this id. Its name can be missing for a moment, while the agent
    /// adds or removes the Service. Then the result has the name `id-<service_id>`.
    pub fn of(service_id: u32, names: &Names) -> Self {
        match names.get(&service_id) {
            Some(name) => Self {
                namespace: text(&name.namespace),
                name: text(&name.name),
                port_name: text(&name.port_name),
                port: name.port,
            },
            None => Self {
                namespace: "?".into(),
                name: format!("id-{service_id}"),
                port_name: String::new(),
                port: 0,
            },
        }
    }

    /// Returns `namespace/name:port`, with the name of the port if it has one.
    pub fn label(&self) -> String {
        let Self { namespace, name, port_name, port } = self;
        match port_name.as_str() {
            "" => format!("{namespace}/{name}:{port}"),
            port_name => format!("{namespace}/{name}:{port_name}"),
        }
    }
}

/// Selects the Services to list.
#[derive(Debug, Clone, Default)]
pub struct ServiceFilter {
    pub namespace: Option<String>,
    pub service: Option<String>,
}

impl ServiceFilter {
    /// Returns whether the Service of this port is selected.
    pub fn accepts(&self, port: &NamedServicePort) -> bool {
        self.namespace.as_ref().is_none_or(|namespace| *namespace == port.namespace)
            && self.service.as_ref().is_none_or(|service| *service == port.name)
    }
}

/// Returns a zero-padded name as text. Bytes that are not UTF-8 become replacement characters.
fn text(padded: &[u8]) -> String {
    let end = padded.iter().position(|&byte| byte == 0).unwrap_or(padded.len());
    String::from_utf8_lossy(&padded[..end]).into_owned()
}

pub fn protocol_name(protocol: u8) -> String {
    match protocol {
        layout::TCP => "TCP".into(),
        layout::UDP => "UDP".into(),
        layout::SCTP => "SCTP".into(),
        other => other.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::super::fixture;
    use super::*;

    #[test]
    fn service_ports_are_labelled_by_name_or_number() {
        let names = fixture::names();
        assert_eq!(NamedServicePort::of(1, &names).label(), "default/web:http");
        assert_eq!(NamedServicePort::of(3, &names).label(), "shop/cart:8080");
        assert_eq!(NamedServicePort::of(9, &names).label(), "?/id-9:0");
    }

    #[test]
    fn filters_match_exactly() {
        let port = NamedServicePort::of(1, &fixture::names());
        let filter = |namespace: Option<&str>, service: Option<&str>| ServiceFilter {
            namespace: namespace.map(Into::into),
            service: service.map(Into::into),
        };
        assert!(filter(None, None).accepts(&port));
        assert!(filter(Some("default"), Some("web")).accepts(&port));
        assert!(!filter(Some("shop"), Some("web")).accepts(&port));
        assert!(!filter(None, Some("we")).accepts(&port));
    }
}
