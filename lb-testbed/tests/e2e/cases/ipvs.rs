//! Algorithms compared with the IPVS schedulers of the running kernel, connection by connection
//! (`docs/algorithms.md`). A Service and a virtual server of IPVS on the first node have the same
//! four servers with the same weights. A client opens and closes connections to both in the same
//! order.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::io::Write as _;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::Path;
use std::process::Stdio;
use std::slice;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use lb_testbed::Family;
use lb_testbed::command::finish;
use lb_testbed::host::{Held, Host, Listen, Process};
use lb_testbed::kernel::needs;
use lb_testbed::report::{Exchange, FailureKind};
use serde_json::{Value, json};

use super::algorithms::{annotate, weighted_slice};
use super::passive_health::from_addresses;
use crate::check::eventually;
use crate::exposed::{outside_ip, route_external_addresses};
use crate::world::{Published, To, World};

/// The number of servers. The first two are in pod 1, the others in pod 2: their order by address
/// and port is that of their numbers.
const SERVERS: usize = 4;
/// Each server listens on this port and its number for the Service, and on the other one for IPVS:
/// the two connections of a client may have the same source port.
const SERVICE_TARGET: u16 = 8100;
const IPVS_TARGET: u16 = 8200;
/// The first port of the virtual servers.
const VIRTUAL_PORT: u16 = 7000;

/// The connections that are opened and closed for one pair.
const STEPS: usize = 36;
/// A closed connection counts as inactive for 120 seconds in both. On a machine that needs longer
/// for one pair, some do not count any more, so the pair is compared once more.
const CLOSED_COUNT: Duration = Duration::from_secs(100);
/// The clients of algorithms that hash their address.
const CLIENTS: u16 = 48;
/// The addresses of the Service with `dh`.
const ADDRESSES: u8 = 12;

/// What is the same in both.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Same {
    /// The endpoint of each connection, and the counts of connections at the end.
    Choices,
    /// The same, if all connections stay open. A closed connection of a socket is gone at once,
    /// and one that IPVS has seen counts as inactive for two minutes.
    OpenChoices,
    /// The endpoint of each connection, but for the position in the list where the turns begin.
    Turns,
    /// The endpoint of a connection depends on the client's address. The endpoints get shares by
    /// their weights. The hashes differ, so the endpoints of a client do.
    Clients,
    /// The same, and the client's port matters.
    Ports,
    /// The endpoint depends on the address of the Service.
    Addresses,
    /// The first choice. Then Sluice goes on by `wlc`, and IPVS as this list shows.
    First(&'static [usize]),
}

/// One Service and one virtual server.
#[derive(Clone, Copy, Debug)]
struct Pair {
    scheduler: &'static str,
    /// Options of the virtual server, and annotations of the Service.
    flags: &'static str,
    annotations: &'static [(&'static str, &'static str)],
    /// Options of the servers of IPVS.
    thresholds: &'static str,
    weights: &'static [u32],
    same: Same,
}

const fn pair(scheduler: &'static str, weights: &'static [u32], same: Same) -> Pair {
    Pair { scheduler, flags: "", annotations: &[], thresholds: "", weights, same }
}

/// Clients whose connections are translated packet by packet. Debian's kernels have no `twos`.
const OF_PACKETS: &[Pair] = &[
    pair("rr", &[1, 1, 1, 1], Same::Turns),
    pair("rr", &[3, 0, 1, 2], Same::Turns),
    pair("wrr", &[1, 1, 1], Same::Turns),
    pair("wrr", &[4, 3, 2], Same::Turns),
    pair("wrr", &[6, 0, 4, 2], Same::Turns),
    pair("wrr", &[1, 5, 1, 3], Same::Turns),
    pair("lc", &[1, 1, 1], Same::Choices),
    pair("lc", &[1, 5, 0, 2], Same::Choices),
    pair("wlc", &[1, 1, 1, 1], Same::Choices),
    pair("wlc", &[3, 1, 2], Same::Choices),
    pair("sed", &[1, 3, 2], Same::Choices),
    pair("nq", &[5, 1, 4, 0], Same::Choices),
    pair("fo", &[1, 3, 2], Same::Choices),
    pair("fo", &[2, 3, 3], Same::Choices),
    pair("ovf", &[2, 1, 3], Same::Choices),
    Pair {
        annotations: &[("upper-threshold", "4")],
        thresholds: "-x 4",
        ..pair("wlc", &[1, 2, 1], Same::Choices)
    },
    pair("sh", &[1, 2, 3], Same::Clients),
    Pair {
        flags: "-b sh-port",
        annotations: &[("hash", "source-port")],
        ..pair("sh", &[1, 1, 2], Same::Ports)
    },
    pair("mh", &[1, 2, 3], Same::Clients),
    Pair {
        flags: "-b mh-port",
        annotations: &[("hash", "source-port")],
        ..pair("mh", &[1, 1, 2], Same::Ports)
    },
    pair("dh", &[1, 1, 1], Same::Addresses),
    pair("lblc", &[1, 1, 1], Same::First(&[1, 1, 2, 2, 3, 3, 3, 3, 3])),
    pair("lblcr", &[1, 1, 1], Same::First(&[1, 1, 2, 2, 3, 3, 3, 2, 1])),
];

/// Clients whose connections are translated at the socket.
const OF_SOCKETS: &[Pair] = &[
    pair("rr", &[3, 0, 1, 2], Same::Turns),
    pair("wrr", &[4, 3, 2], Same::Turns),
    pair("lc", &[1, 1, 1], Same::OpenChoices),
    pair("wlc", &[3, 1, 2], Same::OpenChoices),
    pair("sed", &[1, 3, 2], Same::OpenChoices),
    pair("nq", &[5, 1, 4, 0], Same::OpenChoices),
    pair("fo", &[1, 3, 2], Same::OpenChoices),
    pair("ovf", &[2, 1, 3], Same::OpenChoices),
];

/// Each algorithm selects what the IPVS scheduler of the same name selects.
pub fn selects_alike(world: &mut World, family: Family) -> Result<()> {
    let node = &world.node(0).host.place;
    needs(node.inside(|| Path::new("/proc/thread-self/net/ip_vs").exists())?, "no IPVS (CONFIG_IP_VS)")?;
    let _servers = (1..=SERVERS).map(|number| serve(world, number)).collect::<Result<Vec<_>>>()?;
    let mut pairs = Vec::new();
    for (of_sockets, list) in [(false, OF_PACKETS), (true, OF_SOCKETS)] {
        for pair in list {
            let port = VIRTUAL_PORT + pairs.len() as u16;
            pairs.push(Compared::new(world, family, pair, of_sockets, port)?);
        }
    }
    route_external_addresses(world)?;
    route_virtual_addresses(world, "replace", family)?;
    wait_until_programmed(world, &pairs)?;
    let mut next_port = VIRTUAL_PORT + pairs.len() as u16;
    for pair in &mut pairs {
        let began = Instant::now();
        let mut compared = pair.compare(world);
        if compared.is_err() && began.elapsed() > CLOSED_COUNT {
            let mut again = Compared::new(world, family, pair.pair, pair.of_sockets, next_port)?;
            next_port += 1;
            wait_until_programmed(world, slice::from_ref(&again))?;
            compared = again.compare(world);
        }
        compared.with_context(|| pair.to_string())?;
    }
    world.node(0).host.place.run("ipvsadm", ["-C"])?;
    route_virtual_addresses(world, "delete", family)
}

/// Starts a server.
fn serve(world: &World, number: usize) -> Result<Process> {
    let port = number as u16;
    let listen = Listen { http: vec![SERVICE_TARGET + port, IPVS_TARGET + port], ..Listen::default() };
    world.pod(pod_of(number)).host.serve_at(&number.to_string(), &listen)
}

/// Returns the pod of a server.
fn pod_of(server: usize) -> usize {
    server.div_ceil(2)
}

/// Returns an address of a virtual server beside that of the first node. The first node has it.
fn virtual_ip(family: Family, number: u8) -> IpAddr {
    match family {
        Family::V4 => Ipv4Addr::new(203, 0, 113, number).into(),
        Family::V6 => Ipv6Addr::new(0x2001, 0xdb8, 0x113, 0, 0, 0, 0, number.into()).into(),
    }
}

/// Adds or removes these addresses and the client's route to them.
fn route_virtual_addresses(world: &World, command: &str, family: Family) -> Result<()> {
    let node = &world.node(0).host;
    let mut addresses = String::new();
    let mut routes = String::new();
    for number in 1..=ADDRESSES {
        let address = virtual_ip(family, number);
        writeln!(addresses, "address {command} {address} dev lo")?;
        writeln!(routes, "route {command} {address} via {}", node.address(family))?;
    }
    node.place.ip(&addresses)?;
    world.client().place.ip(&routes)
}

/// Waits until the first node serves all Services.
fn wait_until_programmed(world: &World, pairs: &[Compared]) -> Result<()> {
    eventually(|| {
        let rows = world.rows(0, &["services"])?;
        for pair in pairs {
            let name = &pair.published.service.name;
            let of_pair = rows.iter().filter(|row| row["name"] == name.as_str());
            let endpoints: Vec<_> = of_pair
                .filter_map(|row| row["outsideEndpoints"].as_array())
                .filter(|endpoints| !endpoints.is_empty())
                .map(Vec::len)
                .collect();
            let addresses = if pair.pair.same == Same::Addresses { 2 + ADDRESSES } else { 2 };
            ensure!(
                endpoints.len() == usize::from(addresses)
                    && endpoints.iter().all(|count| *count == pair.eligible()),
                "{pair} has not {} endpoints: {rows:#?}",
                pair.eligible()
            );
        }
        Ok(())
    })
}

/// A Service and a virtual server that exist.
struct Compared {
    pair: &'static Pair,
    /// The weights of its servers. Once a server has left, they are fewer than those of the pair.
    weights: &'static [u32],
    family: Family,
    of_sockets: bool,
    published: Published,
    /// The address of the virtual server.
    ipvs: SocketAddr,
}

/// One of the two.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Balancer {
    Sluice,
    Ipvs,
}

impl std::fmt::Display for Compared {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Pair { scheduler, flags, thresholds, .. } = self.pair;
        let weights = self.weights;
        let path = if self.of_sockets { "sockets" } else { "packets" };
        write!(f, "{scheduler} {flags} {thresholds} {weights:?} ({path})")
    }
}

impl Compared {
    /// Writes the objects of the Service, and adds the virtual server.
    fn new(
        world: &mut World,
        family: Family,
        pair: &'static Pair,
        of_sockets: bool,
        port: u16,
    ) -> Result<Self> {
        let mut published = world.new_service();
        published.service.ports.truncate(1);
        let ipvs = SocketAddr::new(world.node(0).host.address(family), port);
        let compared = Self { pair, weights: pair.weights, family, of_sockets, published, ipvs };
        compared.write_objects(world)?;
        compared.add_virtual_servers(world)?;
        Ok(compared)
    }

    /// Writes the Service with a slice for each server.
    fn write_objects(&self, world: &mut World) -> Result<()> {
        let service = &self.published.service;
        let mut object = service.object();
        annotate(&mut object, "algorithm", self.pair.scheduler);
        for (name, value) in self.pair.annotations {
            annotate(&mut object, name, value);
        }
        if self.pair.same == Same::Addresses {
            let addresses: Vec<_> = (1..=ADDRESSES).map(|number| outside_ip(self.family, number)).collect();
            object["spec"]["externalIPs"] = json!(addresses);
        }
        let mut objects = vec![object];
        for (server, weight) in (1..).zip(self.weights) {
            let mut slice = weighted_slice(service, self.family, world.pod(pod_of(server)), server, *weight);
            slice["ports"][0]["port"] = (SERVICE_TARGET + server as u16).into();
            objects.push(slice);
        }
        world.write(&self.published, &objects)
    }

    /// Adds the virtual server, or one for each address. IPVS lists the newest server first.
    fn add_virtual_servers(&self, world: &World) -> Result<()> {
        let Pair { scheduler, flags, thresholds, .. } = self.pair;
        let mut rules = String::new();
        for address in self.virtual_addresses() {
            writeln!(rules, "-A -t {address} -s {scheduler} {flags}")?;
            for (index, weight) in self.weights.iter().enumerate().rev() {
                let target = self.ipvs_target(world, index + 1);
                writeln!(rules, "-a -t {address} -r {target} -m -w {weight} {thresholds}")?;
            }
        }
        let mut command = world.node(0).host.place.command("ipvsadm")?;
        let mut child = command.arg("-R").stdin(Stdio::piped()).stderr(Stdio::piped()).spawn()?;
        child.stdin.take().context("ipvsadm has no standard input")?.write_all(rules.as_bytes())?;
        let output = finish(child)?;
        let error = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success() && error.is_empty(), "ipvsadm: {error}\n{rules}");
        Ok(())
    }

    /// Returns the addresses of IPVS.
    fn virtual_addresses(&self) -> Vec<SocketAddr> {
        match self.pair.same {
            Same::Addresses => (1..=ADDRESSES)
                .map(|number| SocketAddr::new(virtual_ip(self.family, number), self.ipvs.port()))
                .collect(),
            _ => vec![self.ipvs],
        }
    }

    fn ipvs_target(&self, world: &World, server: usize) -> SocketAddr {
        world.pod(pod_of(server)).host.at(self.family, IPVS_TARGET + server as u16)
    }

    /// Returns the number of endpoints in the list of the Service.
    fn eligible(&self) -> usize {
        match self.pair.scheduler {
            "fo" => 1,
            _ => self.weights.iter().filter(|weight| **weight > 0).count(),
        }
    }

    /// Returns the address that a client uses.
    fn address(&self, world: &World, balancer: Balancer) -> SocketAddr {
        match balancer {
            Balancer::Ipvs => self.ipvs,
            Balancer::Sluice if self.of_sockets => self.published.cluster_ip(self.family, To::Http),
            Balancer::Sluice => self.published.node_port(world.node(0), self.family, To::Http),
        }
    }

    fn compare(&mut self, world: &mut World) -> Result<()> {
        match self.pair.same {
            Same::Choices => self.compare_choices(world, STEPS, true),
            Same::OpenChoices => self.compare_choices(world, STEPS, false),
            Same::Turns => {
                let choices = self.replay(world, STEPS, true)?;
                let is_shifted = |by: usize| {
                    choices.sluice.iter().zip(&choices.ipvs[by..]).all(|(one, other)| one == other)
                };
                ensure!((0..self.round()).any(is_shifted), "{choices:?}");
                Ok(())
            }
            Same::First(locality) => {
                let choices = self.replay(world, locality.len(), false)?;
                ensure!(choices.ipvs.iter().copied().eq(locality.iter().copied().map(Some)), "{choices:?}");
                let wlc = (0..locality.len()).map(|n| Some(n % self.weights.len() + 1));
                ensure!(choices.sluice.iter().copied().eq(wlc), "{choices:?}");
                Ok(())
            }
            Same::Clients => self.compare_clients(world),
            Same::Ports => self.compare_ports(world),
            Same::Addresses => self.compare_addresses(world),
        }
    }

    fn compare_choices(&self, world: &World, steps: usize, closes: bool) -> Result<()> {
        let choices = self.replay(world, steps, closes)?;
        ensure!(choices.sluice == choices.ipvs, "{choices:?}");
        Ok(())
    }

    /// Returns the number of connections after which the turns begin again.
    fn round(&self) -> usize {
        let weights = self.weights.iter().filter(|weight| **weight > 0);
        match self.pair.scheduler {
            "rr" => weights.count(),
            _ => weights.sum::<u32>() as usize,
        }
    }

    /// Opens and closes connections to both, in the same order: so many steps, which are always the
    /// same. With `closes`, a third of them close a connection. At the end, both must have counted
    /// the connections of each server.
    fn replay(&self, world: &World, steps: usize, closes: bool) -> Result<Choices> {
        let of_sluice = if self.of_sockets { &world.pod(2).host } else { world.client() };
        let mut sluice = Client::new(of_sluice, self.family, self.address(world, Balancer::Sluice))?;
        let mut ipvs = Client::new(world.client(), self.family, self.ipvs)?;
        let (mut state, mut open) = (1_u32, 0);
        for _ in 0..steps {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            let number = (state >> 16) as usize;
            if closes && open > 0 && number.is_multiple_of(3) {
                sluice.close(number / 3 % open)?;
                ipvs.close(number / 3 % open)?;
                open -= 1;
            } else {
                let is_open = sluice.open()?;
                let refuse_alike = ipvs.open()? == is_open;
                ensure!(refuse_alike, "one refuses: Sluice {:?}, IPVS {:?}", sluice.choices, ipvs.choices);
                open += usize::from(is_open);
            }
        }
        for (name, client, found) in
            [("Sluice", &sluice, self.counts_of_sluice(world)?), ("IPVS", &ipvs, self.counts_of_ipvs(world)?)]
        {
            // A socket that is closed is gone.
            let expected = client.counts(self.weights.len(), name == "Sluice" && self.of_sockets);
            ensure!(
                found.values().eq(&expected),
                "{name} counts {found:?}, not {expected:?}: {:?}",
                client.choices
            );
        }
        Ok(Choices { sluice: sluice.choices, ipvs: ipvs.choices })
    }

    /// Returns the active and the inactive connections of each server.
    fn counts_of_sluice(&self, world: &World) -> Result<BTreeMap<usize, [u64; 2]>> {
        let rows = world.rows(0, &["backends", &self.published.service.name])?;
        let count = |row: &Value| {
            let address: SocketAddr = row["address"].as_str()?.parse().ok()?;
            let server = usize::from(address.port() - SERVICE_TARGET);
            Some((server, [row["activeConnections"].as_u64()?, row["inactiveConnections"].as_u64()?]))
        };
        rows.iter().map(|row| count(row).with_context(|| format!("no counts: {row}"))).collect()
    }

    /// Returns the same of IPVS.
    fn counts_of_ipvs(&self, world: &World) -> Result<BTreeMap<usize, [u64; 2]>> {
        let list = world.node(0).host.place.run("ipvsadm", ["-L", "-n", "-t", &self.ipvs.to_string()])?;
        //   -> 10.244.1.11:8201             Masq    1      0          0
        let rows = list.lines().map(|line| line.split_whitespace().collect::<Vec<_>>());
        let rows = rows.filter(|row| row.first() == Some(&"->") && row.get(2) == Some(&"Masq"));
        let count = |row: &Vec<&str>| {
            let address: SocketAddr = row.get(1)?.parse().ok()?;
            let server = usize::from(address.port() - IPVS_TARGET);
            Some((server, [row.get(4)?.parse().ok()?, row.get(5)?.parse().ok()?]))
        };
        rows.map(|row| count(&row).with_context(|| format!("no counts: {list}"))).collect()
    }

    /// Returns the server of each client, by both. Each client connects twice: `is_one` is whether
    /// both connections must have the same server. Otherwise the result has the first one.
    fn servers_of_clients(&self, world: &World, sources: &[IpAddr], is_one: bool) -> Result<Choices> {
        let mut choices = Choices::default();
        for balancer in [Balancer::Sluice, Balancer::Ipvs] {
            let address = self.address(world, balancer);
            let mut held = world.client().hold_many(0, address)?;
            let mut differ = 0;
            for source in sources {
                let mut servers = Vec::new();
                for _ in 0..2 {
                    servers.push(server_of(&held.open(*source, address)?)?);
                    held.close(0)?;
                }
                differ += usize::from(servers[0] != servers[1]);
                match balancer {
                    Balancer::Sluice => choices.sluice.push(servers[0]),
                    Balancer::Ipvs => choices.ipvs.push(servers[0]),
                }
            }
            ensure!((differ == 0) == is_one, "{balancer:?}: {differ} clients have two servers: {choices:?}");
        }
        Ok(choices)
    }

    fn compare_clients(&mut self, world: &mut World) -> Result<()> {
        let mut before = Choices::default();
        from_addresses(world, self.family, CLIENTS, |sources| {
            before = self.servers_of_clients(world, sources, true)?;
            self.has_shares(&before.sluice)?;
            self.has_shares(&before.ipvs)
        })?;
        if self.pair.scheduler != "mh" {
            return Ok(());
        }
        // The last server leaves. In Maglev tables, nearly all clients of the others stay.
        let leaving = self.weights.len();
        let (ipvs, target) = (self.ipvs.to_string(), self.ipvs_target(world, leaving).to_string());
        world.node(0).host.place.run("ipvsadm", ["-d", "-t", &ipvs, "-r", &target])?;
        self.weights = &self.weights[..leaving - 1];
        self.write_objects(world)?;
        wait_until_programmed(world, slice::from_ref(self))?;
        from_addresses(world, self.family, CLIENTS, |sources| {
            let after = self.servers_of_clients(world, sources, true)?;
            for (before, after) in [(&before.sluice, &after.sluice), (&before.ipvs, &after.ipvs)] {
                let others = || before.iter().zip(after).filter(|(before, _)| **before != Some(leaving));
                let moved = others().filter(|(before, after)| before != after).count();
                ensure!(4 * moved < others().count(), "{moved} moved: {before:?}, then {after:?}");
            }
            Ok(())
        })
    }

    fn compare_ports(&self, world: &World) -> Result<()> {
        from_addresses(world, self.family, CLIENTS, |sources| {
            let choices = self.servers_of_clients(world, sources, false)?;
            self.has_shares(&choices.sluice)?;
            self.has_shares(&choices.ipvs)
        })
    }

    /// Compares the shares of the servers with their weights. Hashes and draws deviate.
    fn has_shares(&self, choices: &[Option<usize>]) -> Result<()> {
        let total: u32 = self.weights.iter().sum();
        for (server, weight) in (1..).zip(self.weights) {
            let found = choices.iter().filter(|choice| **choice == Some(server)).count() as f64;
            let share = choices.len() as f64 * f64::from(*weight) / f64::from(total);
            // Four standard deviations of a draw.
            let deviation = 4.0 * share.sqrt();
            ensure!(
                (found - share).abs() <= deviation,
                "server {server} has {found} of {}, not about {share}: {choices:?}",
                choices.len()
            );
        }
        Ok(())
    }

    /// All clients of an address have the same server, and the addresses have several.
    fn compare_addresses(&self, world: &World) -> Result<()> {
        from_addresses(world, self.family, 3, |sources| {
            let sluice = (1..=ADDRESSES).map(|number| {
                SocketAddr::new(outside_ip(self.family, number), self.published.service.ports[0].port)
            });
            for addresses in [sluice.collect::<Vec<_>>(), self.virtual_addresses()] {
                let mut held = world.client().hold_many(0, addresses[0])?;
                let mut all = BTreeSet::new();
                for address in addresses {
                    let mut of_address = BTreeSet::new();
                    for source in sources {
                        of_address.insert(server_of(&held.open(*source, address)?)?);
                        held.close(0)?;
                    }
                    ensure!(of_address.len() == 1, "{address} has the servers {of_address:?}");
                    all.extend(of_address);
                }
                ensure!(all.len() == self.weights.len(), "the addresses have the servers {all:?}");
            }
            Ok(())
        })
    }
}

/// The servers that both have selected. `None`: the connection was refused.
#[derive(Debug, Default)]
struct Choices {
    sluice: Vec<Option<usize>>,
    ipvs: Vec<Option<usize>>,
}

/// A client of one address, with the servers that it has got.
struct Client {
    held: Held,
    source: IpAddr,
    target: SocketAddr,
    choices: Vec<Option<usize>>,
    /// The servers of the open connections, and of those that are closed.
    open: Vec<usize>,
    closed: Vec<usize>,
}

impl Client {
    fn new(host: &Host, family: Family, target: SocketAddr) -> Result<Self> {
        let held = host.hold_many(0, target)?;
        let source = host.address(family);
        Ok(Self { held, source, target, choices: Vec::new(), open: Vec::new(), closed: Vec::new() })
    }

    /// Opens a connection. Returns false if it is refused.
    fn open(&mut self) -> Result<bool> {
        let server = server_of(&self.held.open(self.source, self.target)?)?;
        self.choices.push(server);
        self.open.extend(server);
        Ok(server.is_some())
    }

    /// Closes an open connection. Its server must still be the same.
    fn close(&mut self, number: usize) -> Result<()> {
        let server = self.open.remove(number);
        let found = server_of(&self.held.close(number)?)?;
        ensure!(found == Some(server), "a connection with server {server} was answered by {found:?}");
        self.closed.push(server);
        Ok(())
    }

    /// Returns the number of active and of inactive connections of each server.
    fn counts(&self, servers: usize, is_gone_when_closed: bool) -> Vec<[u64; 2]> {
        let of = |list: &[usize], server| list.iter().filter(|other| **other == server).count() as u64;
        let inactive = |server| if is_gone_when_closed { 0 } else { of(&self.closed, server) };
        (1..=servers).map(|server| [of(&self.open, server), inactive(server)]).collect()
    }
}

/// Returns the server that has answered, or `None` if the connection was refused.
fn server_of(exchange: &Exchange) -> Result<Option<usize>> {
    match &exchange.result {
        Ok(answer) => Ok(Some(answer.greeting.pod.parse()?)),
        Err(failure) if failure.kind == FailureKind::Refused => Ok(None),
        Err(failure) => anyhow::bail!("{}: {failure}", exchange.target),
    }
}
