//! Services with every kind of address, and requests to them from every kind of client.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use anyhow::{Context, Result, bail, ensure};
use lb_testbed::Family;
use lb_testbed::host::{Datagrams, Host};
use lb_testbed::report::{Exchange, FailureKind};
use serde_json::{Value, json};

use crate::check::{answered_by, eventually, failed_as, refused};
use crate::world::{Published, To, World};

/// Returns an external address that the client reaches through the first node.
pub fn outside_ip(family: Family, number: u8) -> IpAddr {
    match family {
        Family::V4 => Ipv4Addr::new(198, 51, 100, number).into(),
        Family::V6 => Ipv6Addr::new(0x2001, 0xdb8, 0x51, 0, 0, 0, 0, number.into()).into(),
    }
}

/// Makes the outside client route external addresses to the first node, as a router in front of a
/// cluster would.
pub fn route_external_addresses(world: &World) -> Result<()> {
    let via = &world.node(0).host;
    let client = &world.client().place;
    client.ip(&format!(
        "route replace 198.51.100.0/24 via {}\nroute replace 2001:db8:51::/48 via {}\n",
        via.v4, via.v6
    ))
}

/// The kinds of address of a Service.
const KINDS: [&str; 4] = ["ClusterIP", "NodePort", "ExternalIP", "LoadBalancer"];

/// A published Service with every kind of address.
pub struct Exposed {
    pub published: Published,
    number: u8,
}

impl Exposed {
    /// Publishes a new Service. `policy` is the internal and the external traffic policy. `change`
    /// can change the Service object further. Does not wait.
    pub fn publish(
        world: &mut World,
        policy: &str,
        endpoints: &[usize],
        change: impl FnOnce(&mut Value),
    ) -> Result<Self> {
        let published = world.new_service();
        let exposed = Self { number: u8::try_from(published.number())?, published };
        exposed.write(world, policy, endpoints, change)?;
        Ok(exposed)
    }

    /// Writes the objects again, see [`Self::publish`].
    pub fn write(
        &self,
        world: &mut World,
        policy: &str,
        endpoints: &[usize],
        change: impl FnOnce(&mut Value),
    ) -> Result<()> {
        let mut object = self.published.service.object();
        let external = Family::BOTH.map(|family| self.external_ip(family).to_string());
        let ingress = Family::BOTH.map(|family| json!({"ip": self.load_balancer_ip(family).to_string()}));
        object["spec"]["type"] = "LoadBalancer".into();
        object["spec"]["externalIPs"] = json!(external);
        object["spec"]["internalTrafficPolicy"] = policy.into();
        object["spec"]["externalTrafficPolicy"] = policy.into();
        object["status"] = json!({"loadBalancer": {"ingress": ingress}});
        change(&mut object);
        let pods: Vec<_> = endpoints.iter().map(|number| world.pod(*number)).collect();
        let mut objects = vec![object];
        objects.extend(self.published.service.slices(&pods));
        world.write(&self.published, &objects)
    }

    /// Waits until both agents have written all addresses of the Service, with these pods as
    /// endpoints. An agent writes one address after the other, and the endpoints possibly later.
    pub fn wait_until_programmed(&self, world: &World, pods: &[usize]) -> Result<()> {
        let name = &self.published.service.name;
        let hosts = pods.iter().map(|pod| &world.pod(*pod).host);
        let expected: BTreeSet<IpAddr> = hosts.flat_map(|host| [host.v4.into(), host.v6.into()]).collect();
        let addresses = self.published.service.ports.len() * KINDS.len() * Family::BOTH.len();
        for node in [0, 1] {
            eventually(|| {
                let rows = world.rows(node, &["services"])?;
                let rows: Vec<_> = rows.iter().filter(|row| row["name"] == name.as_str()).collect();
                ensure!(rows.len() == addresses, "node{} serves {rows:#?}", node + 1);
                for port in &self.published.service.ports {
                    let of_port = rows.iter().filter(|row| row["portName"] == port.name.as_str());
                    let endpoints = of_port
                        .flat_map(|row| ["endpoints", "outsideEndpoints"].map(|list| &row[list]))
                        .flat_map(|list| list.as_array().into_iter().flatten());
                    let endpoints = endpoints.map(|endpoint| {
                        let endpoint = endpoint.as_str().context("an endpoint is a text")?;
                        Ok(endpoint.parse::<SocketAddr>()?.ip())
                    });
                    let endpoints = endpoints.collect::<Result<BTreeSet<_>>>()?;
                    ensure!(
                        endpoints == expected,
                        "node{}, {name}:{}: endpoints {endpoints:?}",
                        node + 1,
                        port.name
                    );
                }
                Ok(())
            })?;
        }
        Ok(())
    }

    pub fn external_ip(&self, family: Family) -> IpAddr {
        self.outside_ip(family, 1)
    }

    pub fn load_balancer_ip(&self, family: Family) -> IpAddr {
        self.outside_ip(family, 2)
    }

    fn outside_ip(&self, family: Family, kind: u8) -> IpAddr {
        // Each Service uses two of 254 addresses.
        outside_ip(family, (self.number - 1) % 126 * 2 + kind)
    }

    /// Returns the Service's address of a kind: `NodePort` (of the first node), `ExternalIP`,
    /// `LoadBalancer` or `ClusterIP`.
    pub fn address(&self, kind: &str, world: &World, family: Family, to: To) -> SocketAddr {
        let port = self.published.cluster_ip(family, to).port();
        match kind {
            "NodePort" => self.published.node_port(world.node(0), family, to),
            "ExternalIP" => SocketAddr::new(self.external_ip(family), port),
            "LoadBalancer" => SocketAddr::new(self.load_balancer_ip(family), port),
            _ => self.published.cluster_ip(family, to),
        }
    }
}

/// A client that sends requests to one address.
pub struct Requester<'a> {
    world: &'a World,
    client: &'a Host,
    /// The client's own addresses.
    own: Vec<IpAddr>,
    target: SocketAddr,
    to: To,
}

impl<'a> Requester<'a> {
    /// Returns a client. `source` is `pod here` (pod 2 of the first node), `pod there` (pod 4 of
    /// the second node), `outside`, `node` (a process of the first node), or `localhost` (the same,
    /// with the loopback address as target).
    pub fn new(world: &'a World, source: &str, mut target: SocketAddr, to: To) -> Self {
        let node = world.node(0);
        if source == "localhost" {
            target.set_ip(match target.ip() {
                IpAddr::V4(_) => Ipv4Addr::LOCALHOST.into(),
                IpAddr::V6(_) => Ipv6Addr::LOCALHOST.into(),
            });
        }
        let (client, own) = match source {
            "pod here" => (&world.pod(2).host, None),
            "pod there" => (&world.pod(4).host, None),
            "outside" => (world.client(), None),
            _ => (&node.host, Some(node.addresses().to_vec())),
        };
        let own = own.unwrap_or_else(|| vec![client.v4.into(), client.v6.into()]);
        Self { world, client, own, target, to }
    }

    /// Sends `count` requests, each on its own socket.
    pub fn send(&self, count: u32) -> Result<Vec<Exchange>> {
        match self.to {
            To::Udp => {
                // The kernel reports ICMP errors only to connected sockets.
                let one = Datagrams { connected: true, count: 1, size: 32, dont_fragment: false };
                let mut exchanges = Vec::new();
                for _ in 0..count {
                    exchanges.extend(self.client.send_datagrams(self.target, one)?);
                }
                Ok(exchanges)
            }
            _ => self.client.get(&[self.target], count),
        }
    }

    /// Checks the result of requests. `cell` is a cell of the [matrix](crate::cases::matrix), or
    /// `forbidden` (EPERM).
    pub fn expect(&self, cell: &str) -> Result<()> {
        match cell {
            "refused" => refused(&self.send(1)?),
            "unreachable" => failed_as(&self.send(1)?, FailureKind::Unreachable),
            "forbidden" => failed_as(&self.send(1)?, FailureKind::NotPermitted),
            "drop" => failed_as(&self.send(1)?, FailureKind::TimedOut),
            _ => self.expect_answers(cell),
        }
    }

    /// Sends requests until all endpoints of the cell have answered. Fails if another endpoint
    /// answers.
    fn expect_answers(&self, cell: &str) -> Result<()> {
        let expected: BTreeSet<&str> = cell.split_whitespace().collect();
        let pods = expected.iter().map(|word| word.trim_end_matches('\'').parse());
        let pods: Vec<usize> =
            pods.collect::<Result<_, _>>().with_context(|| format!("parse the cell `{cell}`"))?;
        let mut seen = BTreeSet::new();
        for _ in 0..16 {
            let exchanges = self.send(4)?;
            answered_by(&exchanges, &pods)?;
            for exchange in &exchanges {
                let Ok(answer) = &exchange.result else { continue };
                let client = answer.greeting.client.ip();
                let rewritten = if self.own.contains(&client) {
                    ""
                } else if self.world.node(0).addresses().contains(&client) {
                    "'"
                } else {
                    bail!("the endpoint saw {client}: {exchange:?}");
                };
                seen.insert(format!("{}{rewritten}", answer.greeting.pod.trim_start_matches("pod")));
            }
            if seen.iter().map(String::as_str).eq(expected.iter().copied()) {
                return Ok(());
            }
        }
        bail!("expected {expected:?}, got {seen:?}")
    }
}
