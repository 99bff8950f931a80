//! Map contents for the tests of the views.

use std::collections::HashMap;

use lb_common::layout::{self, ServiceName};
use lb_datapath::apply::tables::BackendEntry;
use lb_model::IpFamily;

use super::service_port::{BackendsById, Names};

pub fn name(namespace: &str, name: &str, port_name: &str, port: u16, protocol: u8) -> ServiceName {
    let mut value =
        ServiceName { namespace: [0; 64], name: [0; 64], port_name: [0; 64], port, protocol, pad: 0 };
    value.namespace[..namespace.len()].copy_from_slice(namespace.as_bytes());
    value.name[..name.len()].copy_from_slice(name.as_bytes());
    value.port_name[..port_name.len()].copy_from_slice(port_name.as_bytes());
    value
}

pub fn names() -> Names {
    HashMap::from([
        (1, name("default", "web", "http", 80, layout::TCP)),
        (2, name("kube-system", "kube-dns", "dns", 53, layout::UDP)),
        (3, name("shop", "cart", "", 8080, layout::TCP)),
    ])
}

pub fn backend(address: &str, flags: u16, service_id: u32) -> BackendEntry {
    BackendEntry { address: address.parse().unwrap(), flags, service_id, weight: 1 }
}

pub fn backends() -> BackendsById {
    use layout::backend_flags::{IN_CLUSTER, IN_LOCAL, LOCAL, PRESENT};
    HashMap::from([
        ((IpFamily::V4, 1), backend("10.244.1.2:8080", PRESENT | LOCAL | IN_CLUSTER | IN_LOCAL, 1)),
        ((IpFamily::V4, 2), backend("10.244.2.2:8080", PRESENT | IN_CLUSTER, 1)),
        ((IpFamily::V4, 3), backend("10.244.2.3:8080", PRESENT, 1)),
        ((IpFamily::V6, 1), backend("[fd00:10:244:1::2]:8080", PRESENT | LOCAL | IN_CLUSTER, 1)),
        ((IpFamily::V4, 4), backend("10.244.2.10:53", PRESENT | IN_CLUSTER, 2)),
    ])
}
