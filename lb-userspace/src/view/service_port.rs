//! Service ports in the words of the API, and the maps by which their names are found.

use std::collections::HashMap;

use ipnet::IpNet;
use lb_common::layout::{self, ServiceName};
use lb_datapath::apply::tables::BackendEntry;
use lb_model::IpFamily;
use serde::Serialize;

/// `SERVICE_NAMES` by service id.
pub type Names = HashMap<u32, ServiceName>;

/// Backend ids in ranges of `SLOTS`, by first slot and number of slots.
pub type Slots = HashMap<(u32, u32), Vec<u32>>;

/// `BACKENDS_V4` and `BACKENDS_V6` by family and backend id.
pub type Backends = HashMap<(IpFamily, u32), BackendEntry>;

/// `SOURCE_RANGES_V4` and `SOURCE_RANGES_V6` by service id.
pub type SourceRanges = HashMap<u32, Vec<IpNet>>;

/// A Service port in the words of the API.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ServicePort {
    pub namespace: String,
    pub name: String,
    /// Empty for the only port of a Service.
    pub port_name: String,
    pub port: u16,
}

impl ServicePort {
    /// The Service port with this id. A name can be missing for a moment, while the agent adds or removes the Service.
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

    /// `namespace/name:port`, the port by its name if it has one.
    pub fn label(&self) -> String {
        let Self { namespace, name, port_name, port } = self;
        match port_name.as_str() {
            "" => format!("{namespace}/{name}:{port}"),
            port_name => format!("{namespace}/{name}:{port_name}"),
        }
    }
}

/// Which Services are shown.
#[derive(Debug, Clone, Default)]
pub struct Filter {
    pub namespace: Option<String>,
    pub service: Option<String>,
}

impl Filter {
    pub fn accepts(&self, port: &ServicePort) -> bool {
        self.namespace.as_ref().is_none_or(|namespace| *namespace == port.namespace)
            && self.service.as_ref().is_none_or(|service| *service == port.name)
    }
}

/// A zero-padded name. The agent writes UTF-8; anything else is shown as it can be.
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
        assert_eq!(ServicePort::of(1, &names).label(), "default/web:http");
        assert_eq!(ServicePort::of(3, &names).label(), "shop/cart:8080");
        assert_eq!(ServicePort::of(9, &names).label(), "?/id-9:0");
    }

    #[test]
    fn filters_match_exactly() {
        let port = ServicePort::of(1, &fixture::names());
        let filter = |namespace: Option<&str>, service: Option<&str>| Filter {
            namespace: namespace.map(Into::into),
            service: service.map(Into::into),
        };
        assert!(filter(None, None).accepts(&port));
        assert!(filter(Some("default"), Some("web")).accepts(&port));
        assert!(!filter(Some("shop"), Some("web")).accepts(&port));
        assert!(!filter(None, Some("we")).accepts(&port));
    }
}
