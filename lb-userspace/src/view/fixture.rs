//! Map contents for the tests of the views.

use std::collections::{HashMap, HashSet};

use lb_common::layout::{self, ServiceName};
use lb_common::load::Connections;
use lb_common::threshold::Thresholds;
use lb_datapath::apply::tables::BackendEntry;
use lb_datapath::{EndpointShortage, LeftOutEndpoint};
use lb_model::{IpFamily, Protocol};
use lb_plan::desired::ServicePortId;

use super::backends::EndpointFacts;
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

/// One endpoint has lacked source ports, one is left out, and one is overloaded: its Service has
/// thresholds.
pub fn endpoint_facts(loads: HashMap<(IpFamily, u32), Connections>) -> EndpointFacts {
    let service = ServicePortId {
        namespace: "default".into(),
        name: "web".into(),
        port_name: "http".into(),
        protocol: Protocol::Tcp,
    };
    let shortage = EndpointShortage {
        service: service.clone(),
        port: 80,
        endpoint: "10.244.1.2:8080".parse().unwrap(),
        backend_id: 1,
        packets: 12,
        last_ns: 0,
    };
    let left_out = LeftOutEndpoint {
        service,
        port: 80,
        endpoint: "10.244.2.2:8080".parse().unwrap(),
        backend_id: 2,
        level: 3,
        until_ns: 5_500_000_000,
    };
    EndpointFacts {
        shortages: vec![shortage],
        left_out: vec![left_out],
        loads,
        thresholds: HashMap::from([(2, Thresholds { upper: 4, lower: 2 })]),
        overloaded: HashSet::from([(IpFamily::V4, 4)]),
        now_ns: 2_000_000_000,
    }
}
