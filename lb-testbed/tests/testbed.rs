//! The testbed itself, without an agent: if plain traffic fails here, no other end-to-end result means anything. Needs root.

use std::net::IpAddr;
use std::path::Path;

use lb_testbed::host::{Datagrams, HTTP_PORT, Host, TRANSFER_PORT, UDP_PORT};
use lb_testbed::report::Exchange;
use lb_testbed::{Datapath, Family, Topology, Underlay};

fn tool() -> &'static Path {
    Path::new(env!("CARGO_BIN_EXE_lb-testbed"))
}

/// Every answer comes from `server` and shows one of the client's own addresses.
fn assert_plain(exchanges: &[Exchange], client: &[IpAddr], server: &str) {
    for exchange in exchanges {
        let answer = exchange.result.as_ref().expect("an answer");
        assert_eq!(answer.greeting.pod, server);
        assert!(client.contains(&answer.greeting.client.ip()), "{answer:?} to {client:?}");
        assert!(answer.greeting.intact);
        assert_eq!(answer.peer, exchange.target);
    }
}

/// HTTP and datagrams larger than any MTU here, which travel as fragments.
fn assert_reaches(client: &Host, addresses: &[IpAddr], server: &Host) {
    for family in Family::BOTH {
        let exchanges = client.get(&[server.at(family, HTTP_PORT)], 1).expect("requests");
        assert_plain(&exchanges, addresses, &server.name);
        for connected in [true, false] {
            let datagrams = Datagrams { connected, count: 1, size: 4000, dont_fragment: false };
            let exchanges = client.ask(server.at(family, UDP_PORT), datagrams).expect("datagrams");
            assert_plain(&exchanges, addresses, &server.name);
        }
    }
}

fn plain_traffic_flows(underlay: Underlay, datapath: Datapath) {
    let topology = Topology::build(underlay, datapath, tool()).expect("a testbed");
    let pods = topology.pods.iter().map(|pod| &pod.host);
    let nodes = topology.nodes.iter().map(|node| &node.host);
    let servers: Vec<_> =
        pods.clone().chain(nodes.clone()).map(|host| host.serve(&host.name).expect("servers")).collect();
    for pod in pods.clone() {
        pods.clone().for_each(|other| assert_reaches(pod, &[pod.v4.into(), pod.v6.into()], other));
    }
    for node in &topology.nodes {
        pods.clone().for_each(|pod| assert_reaches(&node.host, &node.addresses(), pod));
    }
    let client = &topology.client;
    nodes.for_each(|node| assert_reaches(client, &[client.v4.into(), client.v6.into()], node));
    for family in Family::BOTH {
        let server = &topology.pods[2].host;
        let report =
            topology.pods[0].host.transfer(server.at(family, TRANSFER_PORT), 4 << 20).expect("a transfer");
        assert_eq!(report.intact, Ok(()));
        assert_eq!((report.sent, report.received), (4 << 20, 4 << 20));
    }
    drop(servers);
    let id = topology.id().to_string();
    drop(topology);
    let left = std::fs::read_dir("/run/netns").expect("namespaces").flatten();
    let left: Vec<_> = left.filter(|entry| entry.file_name().to_string_lossy().starts_with(&id)).collect();
    assert!(left.is_empty(), "left behind: {left:?}");
}

#[test]
fn routed_pods_with_default_offloads() {
    plain_traffic_flows(Underlay::Routed, Datapath::Tc);
}

#[test]
fn overlay_pods_prepared_for_xdp() {
    plain_traffic_flows(Underlay::Vxlan, Datapath::Xdp);
}
