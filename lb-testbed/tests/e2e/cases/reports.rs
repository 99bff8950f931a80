//! Faults that users of other load balancers reported.

use anyhow::Result;
use lb_testbed::Family;
use lb_testbed::kernel::lacks;
use lb_testbed::place::Place;

use crate::check::{answered, eventually};
use crate::world::{To, World};

/// A host with a network namespace of its own is behind a pod, which masquerades its packets (a VPN
/// gateway). It reaches a ClusterIP if programs are attached to the device of the pod
/// (cilium#26847).
pub fn namespace_behind_a_pod(world: &mut World, family: Family) -> Result<()> {
    let pod = world.pod(2).host.clone();
    let mut behind = pod.clone();
    let name = format!("behind-{family}").to_lowercase();
    let id = world.topology.id();
    behind.place = Place::create(id.netns(&name), id.cgroup()?.join(&name))?;
    let (gateway, host, prefix, any) = match family {
        Family::V4 => ("172.30.0.1", "172.30.0.2", 24, "0.0.0.0/0"),
        Family::V6 => ("fd00:30::1", "fd00:30::2", 64, "::/0"),
    };
    pod.place.ip(&format!(
        "link add behind type veth peer name eth0 netns {}\n\
         link set behind up\n\
         address add {gateway}/{prefix} dev behind\n",
        behind.place.netns()
    ))?;
    behind.place.sysctl(&["net/ipv6/conf/all/disable_ipv6=0", "net/ipv6/conf/default/accept_dad=0"])?;
    pod.place.sysctl(&["net/ipv4/ip_forward=1", "net/ipv6/conf/all/forwarding=1"])?;
    behind.place.ip(&format!(
        "link set lo up\nlink set eth0 up\naddress add {host}/{prefix} dev eth0\n\
         route add {any} via {gateway}\n"
    ))?;
    let rules = "add table inet gateway
        add chain inet gateway out { type nat hook postrouting priority srcnat; }
        add rule inet gateway out oifname eth0 masquerade";
    pod.place.run("nft", [rules]).map_err(|error| lacks(error, "masquerading (CONFIG_NFT_MASQ)"))?;
    let mut asked = Ok(());
    for endpoint in [1, 3] {
        let service = world.publish(&[endpoint])?;
        let target = service.cluster_ip(family, To::Http);
        asked = eventually(|| answered(&behind.get(&[target], 3)?, &[endpoint], &[pod.address(family)]));
        if asked.is_err() {
            break;
        }
    }
    pod.place.run("nft", ["delete table inet gateway"])?;
    pod.place.ip("link delete behind\n")?;
    asked
}
