//! The manifests of `deploy/examples`: every port of every Service answers clients in and outside
//! the cluster.

use std::fs::File;
use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};
use lb_testbed::command::{finish, output};
use lb_testbed::controllers;
use lb_testbed::documents::commands;
use lb_testbed::host::{Datagrams, Listen};
use lb_testbed::manifests::Protocol;
use lb_testbed::{Family, agent};

use crate::check::{answered_by, eventually};
use crate::world::World;

/// The input of `lb migrate kube-proxy -`.
const KUBE_PROXY_CONFIG: &str =
    concat!(env!("CARGO_MANIFEST_DIR"), "/../lb-userspace/tests/captures/kube-proxy-config.yaml");

pub fn examples_are_served(world: &mut World) -> Result<()> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/examples");
    // Replicas are placed on pods 1, 3 and 4. Pod 2 is a client.
    let hosts = [1, 3, 4];
    let services = controllers::apply(&folder, hosts.len())?;
    let mut servers = Vec::new();
    for (index, listen) in controllers::listeners(&services) {
        let host = &world.pod(hosts[index]).host;
        // The pods already serve port 8080.
        let listen =
            Listen { http: listen.http.into_iter().filter(|port| *port != 8080).collect(), ..listen };
        servers.push(host.serve_at(&host.name, &listen)?);
    }
    for applied in &services {
        let pods: Vec<_> = applied.pods.iter().map(|index| world.pod(hosts[*index])).collect();
        applied.publish(&world.topology.manifests, &pods)?;
    }
    for applied in &services {
        let numbers: Vec<_> = applied.pods.iter().map(|index| hosts[*index]).collect();
        for (port, family) in
            applied.service.ports.iter().flat_map(|port| Family::BOTH.map(|family| (port, family)))
        {
            let mut routes = Vec::new();
            let ip = applied.cluster_ip(family).context("a dual-stack Service")?;
            // SCTP is translated as packets. Packets of pods and nodes do not arrive at a NIC.
            if port.protocol != Protocol::Sctp {
                routes.push((&world.pod(2).host, (ip, port.port).into()));
                routes.push((&world.node(1).host, (ip, port.port).into()));
            }
            if let Some(node_port) = port.node_port {
                routes.extend(
                    world.topology.nodes.iter().map(|n| (world.client(), n.host.at(family, node_port))),
                );
            }
            for (client, target) in routes {
                let datagrams = Datagrams { count: 3, size: 32, ..Datagrams::default() };
                let what = || format!("{} from {}", applied.service.name, client.name);
                eventually(|| match port.protocol {
                    Protocol::Tcp => answered_by(&client.get(&[target], 3)?, &numbers),
                    Protocol::Udp => answered_by(&client.send_datagrams(target, datagrams)?, &numbers),
                    Protocol::Sctp => answered_by(&client.associate(target, 3)?, &numbers),
                })
                .with_context(what)?;
            }
        }
    }
    run_documented_commands(world)?;
    for applied in &services {
        applied.withdraw(&world.topology.manifests)?;
    }
    Ok(())
}

/// Runs the `lb` commands of docs/operations.md. They name Services of the examples.
fn run_documented_commands(world: &World) -> Result<()> {
    let commands = commands(include_str!("../../../../docs/operations.md"));
    ensure!(commands.len() > 10, "the commands of docs/operations.md were not found");
    let mut printed_web = false;
    for command in &commands {
        let mut arguments: Vec<_> = command.iter().map(String::as_str).collect();
        match arguments[..] {
            // These have no data path to name.
            ["agent", ..] => {
                let output = output(Command::new(agent::program()?).args(&arguments))?;
                ensure!(output.status.success(), "lb {}: {output:?}", arguments.join(" "));
                continue;
            }
            // In the document, the ConfigMap of kube-proxy is the input.
            ["migrate", ..] => {
                let mut command = Command::new(agent::program()?);
                command.args(&arguments).stdin(File::open(KUBE_PROXY_CONFIG)?);
                let output = finish(command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?)?;
                ensure!(output.status.success(), "lb {}: {output:?}", arguments.join(" "));
                continue;
            }
            ["log-level", ..] => {
                let mut command = world.node(0).host.place.command(agent::program()?)?;
                let output = output(command.args(&arguments))?;
                ensure!(output.status.success(), "lb {}: {output:?}", arguments.join(" "));
                continue;
            }
            // The first would remove the data path. A case with an API server runs the second.
            ["cleanup"] | ["drain", ..] => continue,
            ["doctor", ..] => {
                // In the document, the command runs in a container with the node's root folder.
                arguments.iter_mut().filter(|argument| **argument == "/host").for_each(|root| *root = "/");
                arguments.extend(["--cgroup", world.node(0).host.place.cgroup().to_str().context("UTF-8")?]);
            }
            _ => {}
        }
        let printed = world.agent(0)?.lb(&arguments);
        let printed = printed.with_context(|| format!("docs/operations.md: lb {}", command.join(" ")))?;
        printed_web |= arguments[0] == "explain" && printed.contains("web-nodeport");
    }
    ensure!(printed_web, "no command explains a packet to the Service web-nodeport");
    Ok(())
}
