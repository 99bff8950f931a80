//! Tests of the testbed itself, without an agent. If plain traffic fails here, all other end-to-end
//! results are meaningless. The tests need root.

use std::fs;
use std::io::{BufRead, BufReader};
use std::net::IpAddr;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use lb_testbed::command::{TimeLimit, finish};
use lb_testbed::host::{Datagrams, HTTP_PORT, Host, TRANSFER_PORT, UDP_PORT};
use lb_testbed::report::Exchange;
use lb_testbed::{AttachMode, Family, Topology, Underlay, run};
use rustix::process::{Pid, Signal};

fn tool() -> &'static Path {
    Path::new(env!("CARGO_BIN_EXE_lb-testbed"))
}

/// Checks that every answer comes from `server` and shows one of the client's own addresses.
fn assert_plain(exchanges: &[Exchange], client: &[IpAddr], server: &str) {
    for exchange in exchanges {
        let answer = exchange.result.as_ref().expect("an answer");
        assert_eq!(answer.greeting.pod, server);
        assert!(client.contains(&answer.greeting.client.ip()), "{answer:?} to {client:?}");
        assert!(answer.greeting.intact);
        assert_eq!(answer.peer, exchange.target);
    }
}

/// Checks that the server answers HTTP requests, and datagrams that are larger than any MTU and so
/// are sent as fragments.
fn assert_reaches(client: &Host, addresses: &[IpAddr], server: &Host) {
    for family in Family::BOTH {
        let exchanges = client.get(&[server.at(family, HTTP_PORT)], 1).expect("requests");
        assert_plain(&exchanges, addresses, &server.name);
        for connected in [true, false] {
            let datagrams = Datagrams { connected, count: 1, size: 4000, dont_fragment: false };
            let exchanges = client.send_datagrams(server.at(family, UDP_PORT), datagrams).expect("datagrams");
            assert_plain(&exchanges, addresses, &server.name);
        }
    }
}

/// Checks that no namespace, cgroup, mount or folder has the name of the run.
fn assert_nothing_left(id: &str) {
    let cgroups = run::cgroup2_root().expect("a cgroup-v2 hierarchy");
    for folder in [Path::new("/run/netns"), Path::new("/run/sluice-testbed"), &cgroups] {
        let names = fs::read_dir(folder).into_iter().flatten().flatten().map(|entry| entry.file_name());
        let left: Vec<_> = names.filter(|name| name.to_string_lossy().starts_with(id)).collect();
        assert!(left.is_empty(), "left in {}: {left:?}", folder.display());
    }
    let mounts = fs::read_to_string("/proc/mounts").expect("mounts");
    assert!(!mounts.contains(id), "still mounted: {mounts}");
}

/// Starts a process that builds a cluster. Returns it with the name of the cluster.
fn cluster_of_another_process() -> (Child, String) {
    let mut child = Command::new(tool()).arg("up").stdout(Stdio::piped()).spawn().expect("lb-testbed up");
    let _limit = TimeLimit::of(&child).expect("a time limit");
    let mut id = String::new();
    let output = child.stdout.take().expect("a pipe");
    BufReader::new(output).read_line(&mut id).expect("the name of the cluster");
    (child, id.trim().to_owned())
}

#[test]
fn an_interrupted_cluster_removes_itself() {
    let (child, id) = cluster_of_another_process();
    rustix::process::kill_process(Pid::from_child(&child), Signal::INT).expect("Ctrl-C");
    let output = finish(child).expect("wait for the process");
    assert_eq!(output.status.code(), Some(130));
    assert_nothing_left(&id);
}

#[test]
fn a_killed_cluster_is_removed_by_the_next_one() {
    let (mut child, id) = cluster_of_another_process();
    child.kill().expect("SIGKILL");
    child.wait().expect("wait for the process");
    run::sweep_dead().expect("remove dead runs");
    assert_nothing_left(&id);
}

fn plain_traffic_flows(underlay: Underlay, datapath: AttachMode) {
    let topology = Topology::build(underlay, datapath, tool()).expect("a testbed");
    let pods = topology.pods.iter().map(|pod| &pod.host);
    let nodes = topology.nodes.iter().map(|node| &node.host);
    let servers: Vec<_> =
        pods.clone().chain(nodes.clone()).map(|host| host.serve(&host.name).expect("servers")).collect();
    for pod in pods.clone() {
        pods.clone().for_each(|server| assert_reaches(pod, &[pod.v4.into(), pod.v6.into()], server));
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
    assert_nothing_left(&id);
}

#[test]
fn routed_pods_with_default_offloads() {
    plain_traffic_flows(Underlay::Routed, AttachMode::Tc);
}

#[test]
fn overlay_pods_prepared_for_xdp() {
    plain_traffic_flows(Underlay::Vxlan, AttachMode::Xdp);
}
