//! Translated packets that the kernel forwards, by its firewall and its IPsec policies.

use anyhow::{Context, Result, ensure};
use lb_testbed::Family;
use lb_testbed::host::Datagrams;
use lb_testbed::kernel::lacks;
use lb_testbed::place::Place;

use crate::check::{answered, eventually, transferred};
use crate::world::{Published, To, World};

/// Counts the packets that traverse the chain FORWARD of a host and arrived by the loopback device.
struct Watch<'a>(&'a Place);

impl<'a> Watch<'a> {
    fn start(place: &'a Place) -> Result<Self> {
        place.run(
            "nft",
            ["add table inet watch
              add chain inet watch forward { type filter hook forward priority filter; }
              add rule inet watch forward iifname lo counter"],
        )?;
        Ok(Self(place))
    }

    fn packets(&self) -> Result<u64> {
        let rules = self.0.run("nft", ["list chain inet watch forward"])?;
        let mut words = rules.split_whitespace().skip_while(|word| *word != "packets");
        words.nth(1).context("the rule has a counter")?.parse().context("the counter is a number")
    }
}

impl Drop for Watch<'_> {
    fn drop(&mut self) {
        let _ = self.0.run("nft", ["delete table inet watch"]);
    }
}

fn datagrams(world: &World, service: &Published, family: Family) -> Result<()> {
    let datagrams = Datagrams { connected: true, count: 2, size: 32, dont_fragment: false };
    let target = service.node_port(world.node(0), family, To::Udp);
    answered(&world.client().send_datagrams(target, datagrams)?, &[3], &world.node(0).addresses())
}

/// With `--forward stack`, requests and replies traverse the chain FORWARD.
pub fn by_kernel(world: &mut World, family: Family) -> Result<()> {
    const BYTES: u64 = 1 << 20;
    let service = world.publish(&[3])?;
    let watch = Watch::start(&world.node(0).host.place)?;
    let at = |to| service.node_port(world.node(0), family, to);
    answered(&world.client().get(&[at(To::Http)], 5)?, &[3], &world.node(0).addresses())?;
    // Each request has at least five packets of the client, and four of the endpoint. The last ones
    // close the connection, possibly after the client has ended.
    let mut after_tcp = 0;
    eventually(|| {
        after_tcp = watch.packets()?;
        ensure!(after_tcp >= 45, "{after_tcp} packets have traversed FORWARD");
        Ok(())
    })?;
    datagrams(world, &service, family)?;
    let after_udp = watch.packets()?;
    ensure!(after_udp >= after_tcp + 4, "{after_udp} packets after {after_tcp} have traversed FORWARD");
    transferred(&world.client().transfer(at(To::Transfer), BYTES)?, BYTES)
}

/// By default, translated packets take the way through the kernel if a policy applies to their
/// destination: a policy that blocks them holds them up.
pub fn ipsec(world: &mut World, family: Family) -> Result<()> {
    let service = world.publish(&[3])?;
    let node = &world.node(0).host.place;
    let watch = Watch::start(node)?;
    datagrams(world, &service, family)?;
    ensure!(watch.packets()? == 0, "the kernel forwarded packets without a policy");
    let (any, pod) = match family {
        Family::V4 => ("0.0.0.0/0", format!("{}/32", world.pod(3).host.v4)),
        Family::V6 => ("::/0", format!("{}/128", world.pod(3).host.v6)),
    };
    let policy = |what: &str, action: &[&str]| {
        let selector = ["src", any, "dst", &pod, "dir", "out"];
        let done = node.run("ip", [&["xfrm", "policy", what], &selector[..], action].concat());
        done.map_err(|error| lacks(error, "IPsec policies (CONFIG_XFRM_USER)"))
    };
    policy("add", &["action", "block"])?;
    let blocked = eventually(|| {
        ensure!(datagrams(world, &service, family).is_err(), "the policy does not block translated packets");
        Ok(())
    });
    policy("delete", &[])?;
    blocked?;
    eventually(|| datagrams(world, &service, family))
}
