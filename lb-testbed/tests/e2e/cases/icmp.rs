//! Path MTU discovery, ping, and refusals of packets.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use anyhow::{Result, ensure};
use lb_testbed::host::Datagrams;
use lb_testbed::topology::FAR_MTU;
use lb_testbed::{AttachMode, Family, Host};
use serde_json::json;

use crate::check::{echoed, eventually, refused, transferred};
use crate::world::{To, World};

/// Bytes of a transfer. They exceed all buffers on the path, so many full-sized segments are sent.
const BYTES: u64 = 4 << 20;
/// A smaller MTU than that of any other link, and larger than the minimum of IPv6.
const SMALL_MTU: u32 = 1290;

/// A router between the entry node and the endpoint sends an ICMP error about the client's packets
/// to the entry node, which is their source. The client receives the error from the Service's
/// address.
pub fn path_mtu_to_an_endpoint(world: &mut World, family: Family) -> Result<()> {
    let service = world.publish(&[3])?;
    let pod = world.pod(3).host.address(family);
    let prefix = if pod.is_ipv4() { 32 } else { 128 };
    let router = &world.node(1).host.place;
    let target = service.node_port(world.node(0), family, To::Transfer);
    let client = world.client();
    router.ip(&format!("route replace {pod}/{prefix} dev veth-pod3 mtu lock {SMALL_MTU}\n"))?;
    let report = client.transfer(target, BYTES)?;
    let known = path_mtu(client, target.ip())?;
    router.ip(&format!("route replace {pod}/{prefix} dev veth-pod3\n"))?;
    forget_path_mtus(client, family)?;
    transferred(&report, BYTES)?;
    ensure!(known == Some(SMALL_MTU), "the client has a path MTU of {known:?} to {}", target.ip());
    Ok(())
}

/// A router between the entry node and the client sends an ICMP error about the replies to the
/// Service's address, which is their source. The endpoint, on this or on another node, receives the
/// error from the address that it sees as the client.
pub fn path_mtu_to_a_client(world: &mut World, family: Family) -> Result<()> {
    for endpoint in [1, 3] {
        let service = world.publish(&[endpoint])?;
        let node = world.node(0);
        let target = service.node_port(node, family, To::Transfer);
        let far = &world.topology.far;
        let pod = &world.pod(endpoint).host;
        transferred(&far.transfer(target, BYTES)?, BYTES)?;
        let mut clients = vec![far.address(family)];
        clients.extend(node.addresses().into_iter().filter(|address| Family::of(*address) == family));
        let mut known = Vec::new();
        for client in clients {
            known.extend(path_mtu(pod, client)?);
        }
        forget_path_mtus(pod, family)?;
        ensure!(known == [FAR_MTU], "pod{endpoint} has path MTUs of {known:?} to its clients");
    }
    Ok(())
}

/// Returns the path MTU to an address that a host has learned.
fn path_mtu(host: &Host, to: IpAddr) -> Result<Option<u32>> {
    let route = host.place.run("ip", ["route", "get", &to.to_string()])?;
    let mut words = route.split_whitespace().skip_while(|word| *word != "mtu").skip(1);
    Ok(words.next().map(str::parse).transpose()?)
}

fn forget_path_mtus(host: &Host, family: Family) -> Result<()> {
    let family = if family == Family::V4 { "-4" } else { "-6" };
    host.place.run("ip", [family, "route", "flush", "cache"]).map(drop)
}

/// Pings of any size from outside, from a pod and from a node are answered.
pub fn ping_service_address(world: &mut World, family: Family) -> Result<()> {
    const FILE: &str = "ping.yaml";
    // The nodes have unreachable routes for the ClusterIPs. So pods and nodes need an address
    // outside that range.
    let vip: IpAddr = match family {
        Family::V4 => Ipv4Addr::new(10, 30, 0, 1).into(),
        Family::V6 => Ipv6Addr::new(0xfd00, 0x30, 0, 0, 0, 0, 0, 1).into(),
    };
    let service = world.new_service();
    let mut objects = service.service.with_endpoints(&[world.pod(1)]);
    objects[0]["spec"]["type"] = "LoadBalancer".into();
    objects[0]["status"] = json!({ "loadBalancer": { "ingress": [{ "ip": vip.to_string() }] } });
    world.topology.manifests.write(FILE, &objects)?;
    let cluster_ip = service.cluster_ip(family, To::Http).ip();
    for (host, address) in [
        (world.client(), cluster_ip),
        (&world.topology.far, cluster_ip),
        (&world.pod(2).host, vip),
        (&world.node(0).host, vip),
    ] {
        eventually(|| echoed(&host.ping(address, 1, 56)?))?;
        echoed(&host.ping(address, 3, 1000)?)?;
        echoed(&host.ping(address, 1, 0)?)?;
    }
    world.topology.manifests.remove(FILE)
}

/// A TCP connection fails at once, and a UDP socket fails with the next call. This works also if
/// the node's device does not complete checksums: the answer to a packet with a partial checksum
/// has a partial one, too.
pub fn no_endpoint_is_refused_outside(world: &mut World, family: Family) -> Result<()> {
    let datagram = Datagrams { connected: true, count: 1, size: 32, dont_fragment: false };
    let service = world.publish(&[1])?;
    world.set_endpoints(&service, &[])?;
    let node = world.node(0);
    let refused_by_node = || -> Result<()> {
        eventually(|| refused(&world.client().get(&[service.node_port(node, family, To::Http)], 1)?))?;
        for target in [service.node_port(node, family, To::Udp), service.cluster_ip(family, To::Udp)] {
            eventually(|| refused(&world.client().send_datagrams(target, datagram)?))?;
        }
        Ok(())
    };
    refused_by_node()?;
    if world.topology.datapath == AttachMode::Tc {
        let offload = |state| node.host.place.run("ethtool", ["--offload", "eth0", "tx", state]);
        offload("off")?;
        let result = refused_by_node();
        offload("on")?;
        result?;
    }
    Ok(())
}
