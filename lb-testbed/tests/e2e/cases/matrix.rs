//! Requests from each source to each kind of address under each traffic policy: the endpoints that
//! answer, and the client address that they see. `lb explain` must report the same.

use std::thread;

use anyhow::{Context, Result, ensure};
use lb_testbed::Family;
use lb_testbed::topology::AttachMode;

use super::explain;
use crate::check::eventually;
use crate::exposed::{Exposed, Requester, route_external_addresses};
use crate::world::{To, World};

/// Endpoints are pod numbers: pod 1 runs on the first node, pod 3 on the second. The columns are
/// sources: pod 2 of the first node, pod 4 of the second node, a process of the first node, a
/// process of the first node that uses its loopback address, and the outside client. Requests to
/// NodePorts go to the first node. External addresses are routed to the first node.
///
/// A cell has exactly the endpoints that answer. They see the client's address, or with a `'` an
/// address of the first node. `refused` is ECONNREFUSED. `unreachable` is EHOSTUNREACH, returned at
/// once by the socket call. `drop` is a time-out.
const TABLE: &str = "
address       policy   endpoints | pod here | pod there | node    | localhost | outside
ClusterIP     Cluster  1 3       | 1 3      | 1 3       | 1 3     | -         | 1 3'
NodePort      Cluster  1 3       | 1 3      | 1 3'      | 1 3     | 1 3       | 1 3'
ExternalIP    Cluster  1 3       | 1 3      | 1 3       | 1 3     | -         | 1 3'
LoadBalancer  Cluster  1 3       | 1 3      | 1 3       | 1 3     | -         | 1 3'

ClusterIP     Local    1 3       | 1        | 3         | 1       | -         | 1
NodePort      Local    1 3       | 1 3      | 1         | 1 3     | 1 3       | 1
ExternalIP    Local    1 3       | 1 3      | 1 3       | 1 3     | -         | 1
LoadBalancer  Local    1 3       | 1 3      | 1 3       | 1 3     | -         | 1

ClusterIP     Cluster  3         | 3        | 3         | 3       | -         | 3'
NodePort      Cluster  3         | 3        | 3'        | 3       | 3         | 3'
ExternalIP    Cluster  3         | 3        | 3         | 3       | -         | 3'
LoadBalancer  Cluster  3         | 3        | 3         | 3       | -         | 3'

ClusterIP     Local    3      | unreachable | 3      | unreachable | -         | drop
NodePort      Local    3         | 3        | drop      | 3       | 3         | drop
ExternalIP    Local    3         | 3        | 3         | 3       | -         | drop
LoadBalancer  Local    3         | 3        | 3         | 3       | -         | drop

ClusterIP     Cluster            | refused  | refused   | refused | -         | refused
NodePort      Cluster            | refused  | refused   | refused | refused   | refused
ExternalIP    Cluster            | refused  | refused   | refused | -         | refused
LoadBalancer  Cluster            | refused  | refused   | refused | -         | refused

ClusterIP     Local              | refused  | refused   | refused | -         | refused
NodePort      Local              | refused  | refused   | refused | refused   | refused
ExternalIP    Local              | refused  | refused   | refused | -         | refused
LoadBalancer  Local              | refused  | refused   | refused | -         | refused
";

/// Each run compares `lb explain` with one of this many cells. Other variants of the case compare
/// the other cells.
const SHARES: usize = 4;

pub fn tcp(world: &mut World, family: Family) -> Result<()> {
    matrix(world, family, To::Http)
}

pub fn udp(world: &mut World, family: Family) -> Result<()> {
    matrix(world, family, To::Udp)
}

fn matrix(world: &mut World, family: Family, to: To) -> Result<()> {
    route_external_addresses(world)?;
    let mut services: Vec<((&str, Vec<usize>), Exposed)> = Vec::new();
    for row in rows() {
        let key = (row.policy, row.endpoints);
        if !services.iter().any(|(known, _)| *known == key) {
            let service = Exposed::publish(world, key.0, &key.1, |_| {})?;
            services.push((key, service));
        }
    }
    for ((_, endpoints), service) in &services {
        service.wait_until_programmed(world, endpoints)?;
    }
    let find_service = |row: &Row<'_>| {
        let of_row =
            |(policy, endpoints): &(&str, Vec<usize>)| (*policy, endpoints) == (row.policy, &row.endpoints);
        services.iter().find(|(key, _)| of_row(key)).map(|(_, service)| service)
    };
    let mut wrong = Vec::new();
    let mut silent = Vec::new();
    // `lb explain` takes a second, because it loads the programs. So each combination of family,
    // protocol and data path explains only a share of the cells.
    let explained = [family == Family::V6, to == To::Udp, world.topology.datapath == AttachMode::Xdp];
    let explained = explained.into_iter().fold(0, |share, bit| 2 * share + usize::from(bit));
    let mut cells = 0;
    for row in rows() {
        let service = find_service(&row).context("the Service of the row was not published")?;
        for (source, expected) in &row.cells {
            if *expected == "-" {
                continue;
            }
            cells += 1;
            if cells % SHARES == explained % SHARES {
                let target = service.address(row.address, world, family, to);
                explain::agrees_with_cell(world, source, target, to, row.address, expected)
                    .with_context(|| format!("{} {} from {source}", row.address, row.policy))?;
            }
            let target = service.address(row.address, world, family, to);
            let requester = Requester::new(world, source, target, to);
            let name = format!("{} {} {:?} from {source}", row.address, row.policy, row.endpoints);
            if *expected == "drop" {
                silent.push((name, requester));
            } else if let Err(error) = eventually(|| requester.expect(expected)) {
                wrong.push(format!("{name}: {error:#}"));
            }
        }
    }
    // Time-outs are slow, so all requests that should time out run in parallel.
    thread::scope(|scope| {
        let waiting: Vec<_> =
            silent.iter().map(|(name, requester)| (name, scope.spawn(|| requester.expect("drop")))).collect();
        for (name, thread) in waiting {
            match thread.join() {
                Ok(Ok(())) => {}
                Ok(Err(error)) => wrong.push(format!("{name}: {error:#}")),
                Err(_) => wrong.push(format!("{name}: panicked")),
            }
        }
    });
    ensure!(wrong.is_empty(), "{} cells are wrong:\n{}", wrong.len(), wrong.join("\n"));
    Ok(())
}

struct Row<'a> {
    address: &'a str,
    policy: &'a str,
    endpoints: Vec<usize>,
    /// Source and expected result.
    cells: Vec<(&'a str, &'a str)>,
}

fn rows() -> impl Iterator<Item = Row<'static>> {
    let mut lines = TABLE.lines().filter(|line| !line.is_empty());
    let sources: Vec<_> = lines.next().unwrap_or_default().split('|').skip(1).map(str::trim).collect();
    lines.map(move |line| {
        let mut columns = line.split('|').map(str::trim);
        let mut words = columns.next().unwrap_or_default().split_whitespace();
        Row {
            address: words.next().unwrap_or_default(),
            policy: words.next().unwrap_or_default(),
            endpoints: words.map(|number| number.parse().unwrap_or_default()).collect(),
            cells: sources.iter().copied().zip(columns).collect(),
        }
    })
}
