//! The cases, in the order in which they run.

use std::fs;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use k8s_openapi::api::events::v1::Event;
use lb_testbed::agent::{lb_at, metric};
use lb_testbed::check::{answered_by, eventually, eventually_within, refused, spread_over, without_failure};
use lb_testbed::control_plane::{ACCOUNT, deploy, documents};
use lb_testbed::host::{HTTP_PORT, Listen, LoadKind, UDP_PORT};
use lb_testbed::manifests::{ServiceManifest, ServicePort};
use lb_testbed::{Family, IngressProxy, http, ingress};
use serde_json::{Value, json};

use crate::world::{INGRESS_ACCOUNT, ONE_DATAGRAM, Target, WATCH_LIMIT, World, cluster_ip};

pub type Run = fn(&mut World) -> Result<()>;

pub const CASES: &[(&str, Run)] = &[
    ("manifests_are_accepted", manifests_are_accepted),
    ("agent_has_only_the_rights_that_it_needs", agent_has_only_the_rights_that_it_needs),
    ("agent_adapts_to_the_release", agent_adapts_to_the_release),
    ("connections_follow_endpoints", connections_follow_endpoints),
    ("connections_follow_ports", connections_follow_ports),
    ("connections_follow_the_service", connections_follow_the_service),
    ("connections_follow_the_type", connections_follow_the_type),
    ("a_node_drains_by_command", a_node_drains_by_command),
    ("drained_endpoints_are_reported", drained_endpoints_are_reported),
    ("endpoints_that_are_left_out_are_reported", endpoints_that_are_left_out_are_reported),
    ("service_of_another_proxy_is_not_served", service_of_another_proxy_is_not_served),
    ("problems_are_reported_once_as_events", problems_are_reported_once_as_events),
    ("api_server_restarts", api_server_restarts),
    ("changes_while_no_agent_runs_are_applied_later", changes_while_no_agent_runs_are_applied_later),
    ("agent_starts_before_the_api_server", agent_starts_before_the_api_server),
    ("busy_service_is_written_ten_times_a_second", busy_service_is_written_ten_times_a_second),
    ("agent_uses_the_api_server_that_answers", agent_uses_the_api_server_that_answers),
    ("api_server_is_reached_through_its_own_service", api_server_is_reached_through_its_own_service),
    ("ingresses_are_served_behind_a_node_port", ingresses_are_served_behind_a_node_port),
    ("pods_have_weights_if_they_may_be_read", pods_have_weights_if_they_may_be_read),
    ("requests_follow_weights_of_pods", requests_follow_weights_of_pods),
    ("the_status_of_ingresses_outlives_its_leader", the_status_of_ingresses_outlives_its_leader),
];

/// The API server accepts all manifests of `deploy/` and its examples, and what the Helm chart
/// renders, with strict field validation.
fn manifests_are_accepted(world: &mut World) -> Result<()> {
    let mut files = 0;
    let folders = ["examples", "ingress", "ingress-host-network", "ingress-pod-weights", "pod-weights"];
    let folders = folders.into_iter().chain([".", "../xtask/tests/deploy/golden"]);
    for folder in folders.map(|folder| deploy().join(folder)) {
        for entry in fs::read_dir(&folder)? {
            let path = entry?.path();
            // A kustomization is an input of kubectl, not an object of the API server.
            if path.extension().is_none_or(|extension| extension != "yaml")
                || path.file_name().is_some_and(|name| name == "kustomization.yaml")
                || path.to_string_lossy().ends_with(".values.yaml")
            {
                continue;
            }
            // The Prometheus operator defines some kinds. It is not installed here.
            let is_known = |object: &Value| object["apiVersion"] != "monitoring.coreos.com/v1";
            for object in documents(&path)?.into_iter().filter(is_known) {
                // Objects in a namespace can be checked only if the namespace exists.
                let accepted = match object["kind"] == "Namespace" {
                    true => world.admin.apply(&object),
                    false => world.admin.check(&object),
                };
                accepted.with_context(|| path.display().to_string())?;
            }
            files += 1;
        }
    }
    ensure!(files >= 11, "only {files} files were found");
    let wrong = json!({
        "apiVersion": "v1", "kind": "Service", "metadata": { "name": "wrong" },
        "spec": { "externalname": "db.example.com", "type": "ExternalName" },
    });
    ensure!(world.admin.check(&wrong).is_err(), "an unknown field is accepted");
    Ok(())
}

fn agent_has_only_the_rights_that_it_needs(world: &mut World) -> Result<()> {
    // The agent has synced, so it has all rights to read.
    let log = world.agent_log()?;
    let is_refusal = |line: &&str| {
        ["forbidden", "cannot list", "cannot watch"].iter().any(|text| line.contains(text))
            // Kubernetes before 1.33 has no ServiceCIDRs.
            && !line.contains("could not find the requested resource")
    };
    ensure!(!log.lines().any(|line| is_refusal(&line)), "a request was refused:\n{log}");
    let (namespace, name) = ACCOUNT;
    let agent = world.control_plane.service_account(namespace, name)?;
    let rights = [
        ("watch", "", "services", true),
        ("create", "events.k8s.io", "events", true),
        ("patch", "events.k8s.io", "events", false),
        ("update", "", "services", false),
        ("update", "discovery.k8s.io", "endpointslices", false),
        ("patch", "", "nodes", false),
        ("get", "", "secrets", false),
        ("list", "", "pods", false),
    ];
    for (verb, group, resource, expected) in rights {
        ensure!(
            agent.may(verb, group, resource)? == expected,
            "the agent {} {verb} {resource}",
            if expected { "may not" } else { "may" }
        );
    }
    Ok(())
}

/// The agent does without what an older API server does not have.
fn agent_adapts_to_the_release(world: &mut World) -> Result<()> {
    let minor = world.admin.minor_version()?;
    for (text, since) in [
        ("the API server does not select Services by spec.clusterIP", 31),
        ("cannot watch servicecidrs.networking.k8s.io", 33),
    ] {
        let is_logged = || {
            let found = world.agent_log()?.contains(text);
            ensure!(found == (minor < since), "Kubernetes 1.{minor}: {text:?} is logged: {found}");
            Ok(())
        };
        eventually(is_logged)?;
    }
    // A headless Service, which an old API server sends too.
    let mut headless = world.new_service().object();
    headless["spec"] = json!({ "clusterIP": "None", "ports": headless["spec"]["ports"] });
    for port in headless["spec"]["ports"].as_array_mut().into_iter().flatten() {
        port.as_object_mut().map(|port| port.remove("nodePort"));
    }
    world.apply(&headless)?;
    world.publish(&[1, 3]).map(drop)
}

/// Pods 1 and 2 are on the node of the agent, pods 3 and 4 on the other node.
fn connections_follow_endpoints(world: &mut World) -> Result<()> {
    let unchanged = world.publish(&[1, 4])?;
    let loads = world.start_loads(&unchanged)?;
    let service = world.publish(&[1])?;
    world.set_endpoints(&service, &[1, 3])?;
    world.wait_until_served(&service, &[1, 3])?;
    world.set_endpoints(&service, &[3])?;
    world.wait_until_served(&service, &[3])?;
    world.delete_endpoints(&service)?;
    has_no_endpoint(world, &service)?;
    world.set_endpoints(&service, &[4, 1])?;
    world.wait_until_served(&service, &[1, 4])?;
    // A slice without endpoints, as after a scale-down to zero.
    world.set_endpoints(&service, &[])?;
    has_no_endpoint(world, &service)?;
    finish(loads)
}

/// When the last connection of an endpoint that drains has ended, the agent reports it by an Event
/// at the Service and a metric: of an endpoint with a connection of a socket, and of one with a
/// flow of packets.
fn drained_endpoints_are_reported(world: &mut World) -> Result<()> {
    let service = world.new_service();
    world.set_endpoints(&service, &[1, 3])?;
    // Only sockets of the pod connect to pod 3: the node counts the packets of a connection from
    // outside for two minutes after its end.
    let Target { http, udp } = cluster_ip(&service, Family::V4);
    let drain = |world: &mut World, drained: &str, left: usize| {
        let mut object = service.object();
        object["metadata"]["annotations"] = json!({"lb.sluice.dev/weights": format!("{drained}=0")});
        world.apply(&object)?;
        let pod = &world.pod(2).host;
        eventually(|| answered_by(&pod.get(&[http], 8)?, &[left]))?;
        eventually(|| (0..8).try_for_each(|_| answered_by(&pod.send_datagrams(udp, ONE_DATAGRAM)?, &[left])))
    };
    drain(world, "node1", 3)?;
    let node = world.node().host.clone();
    let [http_port, udp_port] = [0, 1].map(|port| service.ports[port].node_port.unwrap_or_default());
    let mut socket = world.pod(2).host.hold_http(http)?;
    let mut packets = world.topology.client.hold_udp(node.at(Family::V4, udp_port))?;
    for held in [&mut socket, &mut packets] {
        answered_by(&[held.request()?], &[3])?;
    }
    let drained = |world: &World| metric(world.node(), "sluice_drained_endpoints_total", "");
    let before = drained(world)?;
    drain(world, "node2", 1)?;
    // The agent reads the connections of endpoints that drain when it reads the flow table.
    let flows = |world: &World| metric(world.node(), "sluice_flows", "");
    let read_before = flows(world)?;
    let more = world.topology.client.hold_many(64, node.at(Family::V4, http_port))?;
    eventually(|| {
        let now = flows(world)?;
        ensure!(now >= read_before + 32.0, "the flow table was not read: {now} flows after {read_before}");
        Ok(())
    })?;
    answered_by(&[socket.request()?], &[3])?;
    drop((socket, packets, more));
    let endpoints = [HTTP_PORT, UDP_PORT].map(|port| world.pod(3).host.at(Family::V4, port).to_string());
    eventually_within(Duration::from_secs(120), || {
        let events = world.admin.events(&service.namespace, "Service", &service.name)?;
        for endpoint in &endpoints {
            let is_wanted = |event: &Event| {
                let note = event.note.as_deref().unwrap_or_default();
                event.reason.as_deref() == Some("EndpointDrained") && note.contains(endpoint.as_str())
            };
            ensure!(events.iter().any(is_wanted), "no Event about {endpoint}: {events:?}");
        }
        Ok(())
    })?;
    let count = drained(world)? - before;
    ensure!(count >= 2.0, "{count} endpoints have drained");
    Ok(())
}

/// The agent reports an endpoint that refuses clients and is left out by an Event at the Service.
fn endpoints_that_are_left_out_are_reported(world: &mut World) -> Result<()> {
    let service = world.new_service();
    let mut object = service.object();
    object["metadata"]["annotations"] = json!({"lb.sluice.dev/passive-health": "on"});
    world.apply(&object)?;
    let mut slices = world.slices(&service, &[1]);
    for slice in &mut slices {
        let mut refusing = slice.clone();
        let name = slice["metadata"]["name"].as_str().context("a slice has a name")?;
        refusing["metadata"]["name"] = format!("{name}-refusing").into();
        refusing["ports"][0]["port"] = REFUSING_PORT.into();
        world.apply(slice)?;
        world.apply(&refusing)?;
    }
    let node_port = service.ports[0].node_port.context("the port has no nodePort")?;
    let target = world.node().host.at(Family::V4, node_port);
    let endpoint = world.pod(1).host.at(Family::V4, REFUSING_PORT).to_string();
    eventually_within(Duration::from_secs(120), || {
        world.topology.client.get(&[target], 8)?;
        let events = world.admin.events(&service.namespace, "Service", &service.name)?;
        let is_wanted = |event: &Event| {
            let note = event.note.as_deref().unwrap_or_default();
            event.reason.as_deref() == Some("EndpointLeftOut") && note.contains(&endpoint)
        };
        let event = events.into_iter().find(is_wanted);
        let event = event.with_context(|| format!("no Event about {endpoint}"))?;
        ensure!(event.type_.as_deref() == Some("Warning"), "{event:?}");
        Ok(())
    })
}

/// A port of pods where no server listens.
const REFUSING_PORT: u16 = 8099;

/// `lb drain` changes the Node. The agent of the other node moves new connections away.
fn a_node_drains_by_command(world: &mut World) -> Result<()> {
    let service = world.publish(&[1, 3])?;
    let name = world.topology.nodes[1].host.name.clone();
    let kubeconfig = format!("--kubeconfig={}", world.control_plane.admin_kubeconfig()?.display());
    let drain = |world: &World, node: &str, options: &[&str]| {
        let arguments = [&["drain", "--node", node, &kubeconfig], options].concat();
        lb_at(&world.topology.client.place, &arguments)
    };
    let text = drain(world, &name, &[])?;
    ensure!(text.contains("is cordoned and drains"), "{text}");
    let drained = world.wait_until_served(&service, &[1]);
    // Also after a failure: other cases use the node.
    let text = drain(world, &name, &["--off"])?;
    drained?;
    ensure!(text.contains(&format!("kubectl uncordon {name}")), "{text}");
    world.wait_until_served(&service, &[1, 3])?;
    // The Node stays cordoned, which affects no other case.
    let error = drain(world, "no-such-node", &[]).expect_err("there is no such Node");
    ensure!(format!("{error:#}").contains("there is no Node no-such-node"), "{error:#}");
    Ok(())
}

fn connections_follow_ports(world: &mut World) -> Result<()> {
    let before = world.publish(&[1, 3])?;
    let mut after = before.clone();
    for port in &mut after.ports {
        port.port += 1000;
        port.node_port = port.node_port.map(|number| number + 1000);
    }
    world.apply(&after.object())?;
    world.wait_until_served(&after, &[1, 3])?;
    world.wait_until_unserved(&before)
}

/// Services and slices can be created and deleted in any order.
fn connections_follow_the_service(world: &mut World) -> Result<()> {
    let service = world.publish(&[1, 3])?;
    world.delete(&service.object())?;
    world.wait_until_unserved(&service)?;
    world.apply(&service.object())?;
    world.wait_until_served(&service, &[1, 3])?;
    // Another object with the same name replaces the Service at once.
    world.delete(&service.object())?;
    let mut successor = world.new_service();
    successor.name = service.name.clone();
    world.apply(&successor.object())?;
    world.wait_until_served(&successor, &[1, 3])?;
    world.wait_until_unserved(&service)
}

fn connections_follow_the_type(world: &mut World) -> Result<()> {
    let unchanged = world.publish(&[3])?;
    let loads = world.start_loads(&unchanged)?;
    let service = world.publish(&[1, 3])?;
    let external = json!({
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": { "name": service.name, "namespace": service.namespace },
        "spec": { "type": "ExternalName", "externalName": "db.example.com" },
    });
    world.apply(&external)?;
    world.wait_until_unserved(&service)?;
    world.apply(&service.object())?;
    world.wait_until_served(&service, &[1, 3])?;
    let mut inside_only = service.clone();
    inside_only.ports.iter_mut().for_each(|port| port.node_port = None);
    world.apply(&inside_only.object())?;
    world.wait_until_unserved_outside(&service)?;
    world.wait_until_served(&inside_only, &[1, 3])?;
    world.apply(&external)?;
    world.wait_until_unserved(&service)?;
    world.apply(&inside_only.object())?;
    world.wait_until_served(&inside_only, &[1, 3])?;
    finish(loads)
}

/// A Service with the label of another proxy is not served (KEP-2447). The case copies the label to
/// the slices, as the EndpointSlice controller does.
fn service_of_another_proxy_is_not_served(world: &mut World) -> Result<()> {
    let service = world.new_service();
    let plain: Vec<_> = std::iter::once(service.object()).chain(world.slices(&service, &[1, 3])).collect();
    let labelled: Vec<_> = plain.iter().map(with_label_of_another_proxy).collect();
    labelled.iter().try_for_each(|object| world.apply(object))?;
    // When this later Service is served, the agent has also processed the first one.
    world.publish(&[4])?;
    world.wait_until_unserved(&service)?;
    plain.iter().try_for_each(|object| world.apply(object))?;
    world.wait_until_served(&service, &[1, 3])?;
    labelled.iter().try_for_each(|object| world.apply(object))?;
    world.wait_until_unserved(&service)
}

/// The agent creates Events about a Service whose address is taken, and about a Service whose
/// health-check port is in use. It does not create them again after a restart.
fn problems_are_reported_once_as_events(world: &mut World) -> Result<()> {
    let rivals = [world.new_service(), world.new_service()];
    for service in &rivals {
        let mut object = service.object();
        object["spec"]["externalIPs"] = json!(["203.0.113.7"]);
        world.apply(&object)?;
    }
    let events_of = |world: &World, service: &ServiceManifest, reason: &str| -> Result<Vec<Event>> {
        let events = world.admin.events(&service.namespace, "Service", &service.name)?;
        Ok(events.into_iter().filter(|event| event.reason.as_deref() == Some(reason)).collect())
    };
    // The older Service has the address, or the first by name if both have the same creation time.
    // The test accepts both.
    let taken = |world: &World| -> Result<Vec<Event>> {
        let [first, second] = &rivals;
        Ok([events_of(world, first, "AddressTaken")?, events_of(world, second, "AddressTaken")?].concat())
    };
    eventually(|| {
        let events = taken(world)?;
        // There is one Event for each port.
        ensure!(events.len() == 2, "{events:?}");
        for event in &events {
            let note = event.note.as_deref().unwrap_or_default();
            ensure!(note.starts_with("spec.externalIPs: 203.0.113.7 port "), "{event:?}");
            ensure!(event.type_.as_deref() == Some("Warning"), "{event:?}");
            let uid = event.regarding.as_ref().and_then(|regarding| regarding.uid.as_ref());
            ensure!(uid.is_some_and(|uid| !uid.is_empty()), "kubectl describe does not show {event:?}");
        }
        Ok(())
    })?;

    world.stop_agent()?;
    world.start_agent()?;
    let service = world.new_service();
    let port = 32000 + service.ports[0].node_port.context("the port has no nodePort")? - 30000;
    let node = &world.node().host;
    let occupant = node.serve_at("occupant", &Listen { http: vec![port], ..Listen::default() })?;
    let mut object = service.object();
    object["spec"]["type"] = "LoadBalancer".into();
    object["spec"]["externalTrafficPolicy"] = "Local".into();
    object["spec"]["healthCheckNodePort"] = port.into();
    world.apply(&object)?;
    eventually(|| {
        let events = events_of(world, &service, "FailedToStartServiceHealthcheck")?;
        // There is one Event for each family.
        ensure!(events.len() == 2, "{events:?}");
        ensure!(events.iter().all(|event| event.note.as_ref().is_some_and(|note| note.contains("in use"))));
        Ok(())
    })?;
    // The restarted agent reported all problems before it processed this Service. It did not create
    // the Events again.
    ensure!(taken(world)?.len() == 2, "reported again: {:?}", taken(world)?);

    drop(occupant);
    world.set_endpoints(&service, &[1])?;
    eventually(|| {
        let server = world.node().host.at(Family::V6, port);
        let answer = http::get(&world.topology.client.place, server, "/")?;
        ensure!(answer.status == 200, "{answer:?}");
        Ok(())
    })
}

/// The agent runs with `--pod-weights`. Without the right to read Pods it serves as before, and
/// reports which right is missing. With the rights of `deploy/pod-weights`, weights of Pods apply.
fn pods_have_weights_if_they_may_be_read(world: &mut World) -> Result<()> {
    let rights = documents(&deploy().join("pod-weights/rbac.yaml"))?;
    let before = world.agent_log()?;
    world.stop_agent()?;
    world.arguments.push("--pod-weights".to_owned());
    world.start_agent()?;
    let checked = weights_follow_the_right(world, &rights, &before);
    // Also after a failure: the next agent runs without the right.
    world.arguments.clear();
    for object in &rights {
        world.delete(object)?;
    }
    world.stop_agent()?;
    world.start_agent()?;
    checked
}

/// Applies pod 1 with a weight, and returns the object. The endpoints of
/// [`World::set_endpoints`] name it.
fn apply_first_pod(world: &mut World, weight: &str) -> Result<Value> {
    // The API server refuses a Pod without an account.
    world.apply(&json!({
        "apiVersion": "v1", "kind": "ServiceAccount",
        "metadata": { "namespace": "default", "name": "default" },
    }))?;
    let pod = json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {
            "namespace": "default",
            "name": world.pod(1).host.name,
            "annotations": { "lb.sluice.dev/weight": weight },
        },
        "spec": {
            "automountServiceAccountToken": false,
            "containers": [{ "name": "web", "image": "example.com/web" }],
        },
    });
    world.apply(&pod)?;
    Ok(pod)
}

fn weights_follow_the_right(world: &mut World, rights: &[Value], log: &str) -> Result<()> {
    apply_first_pod(world, "0")?;
    let service = world.publish(&[1, 3])?;
    let refused = ["pods is forbidden", "the verbs list and watch on pods (see deploy/pod-weights"];
    world.wait_for_log(&refused, log)?;

    rights.iter().try_for_each(|object| world.apply(object))?;
    world.wait_for_log(&["resolved", "pods is forbidden"], log)?;
    world.wait_until_served(&service, &[3])?;
    let backends = world.agent()?.lb(&["get", "backends", &service.name])?;
    ensure!(backends.contains("draining"), "{backends}");

    // The weight changes without a change of the slice.
    apply_first_pod(world, "3")?;
    world.wait_until_served(&service, &[1, 3])?;
    apply_first_pod(world, "0")?;
    world.wait_until_served(&service, &[3])?;
    // The next weight applies: there is none.
    apply_first_pod(world, "light")?;
    world.wait_until_served(&service, &[1, 3])?;
    eventually(|| {
        let events = world.admin.events("default", "Pod", &world.pod(1).host.name)?;
        let notes: Vec<_> = events.iter().filter_map(|event| event.note.as_deref()).collect();
        ensure!(notes.iter().any(|note| note.contains("`light` is not a weight")), "{notes:?}");
        Ok(())
    })?;
    let drained = apply_first_pod(world, "0")?;
    world.wait_until_served(&service, &[3])?;
    world.delete(&drained)?;
    world.wait_until_served(&service, &[1, 3])
}

/// Log messages of failed watches.
const WATCHES: [&str; 2] = ["cannot watch services", "cannot watch endpointslices"];

fn api_server_restarts(world: &mut World) -> Result<()> {
    let service = world.publish(&[1, 3])?;
    let loads = world.start_loads(&service)?;
    let log = world.agent_log()?;
    world.control_plane.stop_api_server();
    for watch in WATCHES {
        world.wait_for_log(&[watch, "check that the API server is reachable"], &log)?;
    }
    world.wait_until_served(&service, &[1, 3])?;
    // A failed watch must not make the agent unhealthy. Otherwise the kubelet would restart it.
    world.agent()?.wait_until_healthy()?;
    world.control_plane.start_api_server()?;
    let later = world.new_service();
    world.apply(&later.object())?;
    world.set_endpoints(&later, &[3])?;
    world.set_endpoints(&service, &[1, 3, 4])?;
    for watch in WATCHES {
        world.wait_for_log(&["resolved", watch], &log)?;
    }
    world.wait_until_served(&service, &[1, 3, 4])?;
    world.wait_until_served(&later, &[3])?;
    world.delete(&later.object())?;
    world.wait_until_unserved(&later)?;
    finish(loads)
}

/// Services are served during the restart of the agent. The new agent applies the changes that were
/// made while no agent ran.
fn changes_while_no_agent_runs_are_applied_later(world: &mut World) -> Result<()> {
    let stays = world.publish(&[1, 3])?;
    let changes = world.publish(&[1])?;
    let goes = world.publish(&[1, 3])?;
    let comes = world.new_service();
    let loads = world.start_loads(&stays)?;
    world.stop_agent()?;
    world.set_endpoints(&changes, &[4])?;
    world.delete(&goes.object())?;
    world.apply(&comes.object())?;
    world.set_endpoints(&comes, &[3])?;
    world.wait_until_served(&stays, &[1, 3])?;
    world.start_agent()?;
    world.wait_until_served(&changes, &[4])?;
    world.wait_until_unserved(&goes)?;
    world.wait_until_served(&comes, &[3])?;
    finish(loads)
}

/// An agent that cannot list objects must not remove map entries.
fn agent_starts_before_the_api_server(world: &mut World) -> Result<()> {
    let stays = world.publish(&[1, 3])?;
    let goes = world.publish(&[1, 4])?;
    let loads = world.start_loads(&stays)?;
    world.stop_agent()?;
    world.delete(&goes.object())?;
    let log = world.agent_log()?;
    world.control_plane.stop_api_server();
    world.spawn_agent()?;
    world.wait_for_log(&["cannot watch services"], &log)?;
    world.wait_until_served(&stays, &[1, 3])?;
    world.wait_until_served(&goes, &[1, 4])?;
    world.control_plane.start_api_server()?;
    world.agent()?.wait_until_healthy()?;
    world.wait_until_unserved(&goes)?;
    world.set_endpoints(&stays, &[1, 3, 4])?;
    world.wait_until_served(&stays, &[1, 3, 4])?;
    finish(loads)
}

/// The agent reaches the API server through the Service `kubernetes`, as pods do, and as an agent
/// without another address does.
fn api_server_is_reached_through_its_own_service(world: &mut World) -> Result<()> {
    let (namespace, name) = ACCOUNT;
    let address = world.control_plane.service_address();
    world.kubeconfig = world.control_plane.kubeconfig_of(namespace, name, &address)?;
    world.stop_agent()?;
    world.start_agent()?;
    let service = world.publish(&[1, 3])?;
    world.set_endpoints(&service, &[4])?;
    world.wait_until_served(&service, &[4])?;
    // No kube-proxy runs: after a reboot, nothing would serve the address.
    eventually(|| {
        let events = world.admin.events("default", "Service", "kubernetes")?;
        let found = events.iter().any(|event| event.reason.as_deref() == Some("ApiServerIsService"));
        ensure!(found, "{events:?}");
        let count = metric(world.node(), "sluice_problems_raised_total", "api_server_is_service")?;
        ensure!(count == 1.0, "counted {count} times");
        Ok(())
    })
}

fn busy_service_is_written_ten_times_a_second(world: &mut World) -> Result<()> {
    let busy = world.publish(&[1])?;
    let slice = world.slices(&busy, &[3]).swap_remove(0);
    let writes = |world: &World| {
        metric(world.node(), "kubeproxy_sync_proxy_rules_duration_seconds_count", "ip_family=\"IPv4\"")
    };
    let received =
        |world: &World| metric(world.node(), "kubeproxy_sync_proxy_rules_endpoint_changes_total", "");
    let (writes_before, received_before) = (writes(world)?, received(world)?);
    let began = Instant::now();
    for change in 0..300 {
        let mut changed = slice.clone();
        changed["endpoints"][0]["conditions"]["ready"] = (change % 2 == 0).into();
        world.apply(&changed)?;
    }
    world.set_endpoints(&busy, &[4])?;
    // The last change counts.
    world.wait_until_served(&busy, &[4])?;
    let seconds = began.elapsed().as_secs_f64();
    let (writes, received) = (writes(world)? - writes_before, received(world)? - received_before);
    ensure!(received >= 300.0, "only {received} changes arrived");
    // One write at the beginning, and one at the end of each period.
    ensure!(writes <= 10.0 * seconds + 2.0, "{writes} writes in {seconds} s for {received} changes");
    Ok(())
}

/// The first address answers nothing, the second one is that of the API server.
fn agent_uses_the_api_server_that_answers(world: &mut World) -> Result<()> {
    let address = world.control_plane.address();
    let dead = SocketAddr::new(address.ip(), address.port() + 1);
    world.stop_agent()?;
    world.arguments = vec![format!("--api-server=https://{dead},https://{address}")];
    world.start_agent()?;
    let service = world.publish(&[1, 3])?;
    world.control_plane.stop_api_server();
    world.control_plane.start_api_server()?;
    world.set_endpoints(&service, &[4])?;
    world.wait_until_served(&service, &[4])?;
    let log = world.agent_log()?;
    ensure!(
        log.contains(&format!("the API server https://{dead}/ failed, using https://{address}/")),
        "{log}"
    );
    world.stop_agent()?;
    world.arguments.clear();
    world.start_agent()
}

fn has_no_endpoint(world: &World, service: &ServiceManifest) -> Result<()> {
    for family in Family::BOTH {
        let target = cluster_ip(service, family);
        eventually(|| refused(&world.pod(2).host.get(&[target.http], 1)?))?;
        eventually(|| refused(&world.pod(2).host.send_datagrams(target.udp, ONE_DATAGRAM)?))?;
    }
    world.wait_until_unserved_outside(service)
}

fn with_label_of_another_proxy(object: &Value) -> Value {
    let mut object = object.clone();
    object["metadata"]["labels"]["service.kubernetes.io/service-proxy-name"] = "another".into();
    object
}

/// `lb ingress` runs in pod 2 with the rights of `deploy/ingress`. The agent translates the
/// nodePort 31188 to it.
fn ingresses_are_served_behind_a_node_port(world: &mut World) -> Result<()> {
    let (namespace, name) = INGRESS_ACCOUNT;
    let account = world.control_plane.service_account(namespace, name)?;
    for (verb, group, resource, expected) in [
        ("watch", "networking.k8s.io", "ingresses", true),
        ("get", "", "secrets", true),
        ("update", "networking.k8s.io", "ingresses", false),
        ("patch", "networking.k8s.io", "ingresses", false),
        ("create", "", "secrets", false),
        // In its own namespace only.
        ("create", "coordination.k8s.io", "leases", false),
    ] {
        ensure!(account.may(verb, group, resource)? == expected, "{verb} {resource}");
    }
    with_proxy(world, &[], requests_follow_ingresses)
}

/// Runs `check` with the Service `backend` and `lb ingress` in pod 2, behind the nodePort 31188.
fn with_proxy(
    world: &mut World,
    arguments: &[&str],
    check: fn(&mut World, &IngressProxy, &ServiceManifest) -> Result<()>,
) -> Result<()> {
    for class in documents(&deploy().join("ingress/ingress-class.yaml"))? {
        world.apply(&class)?;
    }
    let (namespace, name) = INGRESS_ACCOUNT;
    let kubeconfig = world.control_plane.kubeconfig_of(namespace, name, &world.control_plane.address())?;
    let (client, host) = (world.topology.client.clone(), world.pod(2).host.clone());
    // The API server runs on the client's host, which has no route to pods.
    let (pods, gateway) = (world.node().pod_cidr_v4(), world.node().host.v4.to_string());
    client.place.run("ip", ["route", "replace", &pods, "via", &gateway])?;
    let logs = world.topology.folder();
    let proxy = IngressProxy::start_with(&host, "--kubeconfig", &kubeconfig, arguments, &logs)?;
    let mut entry = world.new_service();
    entry.ports = vec![ServicePort::tcp("http", 80, ingress::HTTP_PORT).node_port(31188)];
    world.apply(&entry.object())?;
    world.set_endpoints(&entry, &[2])?;
    let backend = world.publish(&[1, 3])?;
    check(world, &proxy, &backend).with_context(|| proxy.log_tail())?;
    proxy.stop()?;
    client.place.run("ip", ["route", "del", &pods]).map(drop)
}

/// Returns an Ingress of a class that sends all requests to a Service.
fn ingress_of(backend: &ServiceManifest, name: &str, class: &str) -> Value {
    json!({
        "apiVersion": "networking.k8s.io/v1", "kind": "Ingress",
        "metadata": { "name": name, "namespace": backend.namespace },
        "spec": { "ingressClassName": class, "rules": [{ "http": { "paths": [{
            "path": "/", "pathType": "Prefix",
            "backend": { "service": { "name": backend.name, "port": { "name": "http" } } },
        }] } }] },
    })
}

/// `lb ingress` runs with `--pod-weights`. Without the right to read Pods it serves, and reports
/// which right is missing. With the rights of `deploy/ingress-pod-weights`, weights of Pods apply.
fn requests_follow_weights_of_pods(world: &mut World) -> Result<()> {
    with_proxy(world, &["--pod-weights"], |world, proxy, backend| {
        let (client, entry) = (world.topology.client.clone(), world.node().host.at(Family::V4, 31188));
        apply_first_pod(world, "0")?;
        world.apply(&ingress_of(backend, "shop", "sluice"))?;
        eventually(|| spread_over(&client.get(&[entry], 10)?, &[1, 3]))?;
        let wait_for_log = |texts: &[&str]| {
            eventually_within(WATCH_LIMIT, || {
                let log = proxy.log()?;
                let matches = |line: &str| texts.iter().all(|text| line.contains(text));
                ensure!(log.lines().any(matches), "the proxy did not log {texts:?}");
                Ok(())
            })
        };
        wait_for_log(&["pods is forbidden", "on pods (see deploy/ingress-pod-weights"])?;

        for object in documents(&deploy().join("ingress-pod-weights/rbac.yaml"))? {
            world.apply(&object)?;
        }
        wait_for_log(&["resolved", "pods is forbidden"])?;
        eventually(|| answered_by(&client.get(&[entry], 10)?, &[3]))?;
        // The weight changes without a change of the slice.
        apply_first_pod(world, "1")?;
        eventually(|| spread_over(&client.get(&[entry], 10)?, &[1, 3]))?;
        apply_first_pod(world, "0")?;
        eventually(|| answered_by(&client.get(&[entry], 10)?, &[3]))
    })
}

fn requests_follow_ingresses(
    world: &mut World,
    _proxy: &IngressProxy,
    backend: &ServiceManifest,
) -> Result<()> {
    let client = world.topology.client.clone();
    let entry = world.node().host.at(Family::V4, 31188);
    let status_is = |status: u16| {
        eventually(|| {
            let answer = http::get(&client.place, entry, "/")?;
            ensure!(answer.status == status, "{answer:?}");
            Ok(())
        })
    };
    status_is(404)?;
    world.apply(&ingress_of(backend, "of-another-controller", "another"))?;
    let mut ingress = ingress_of(backend, "shop", "sluice");
    ingress["spec"]["rules"][0]["http"]["paths"][0]["backend"]["service"]["port"]["name"] = "none".into();
    world.apply(&ingress)?;
    // The Ingress of another class has no fault, so the 503 shows that it is left alone.
    status_is(503)?;
    eventually(|| {
        let events = world.admin.events(&backend.namespace, "Ingress", "shop")?;
        let names_port = |event: &Event| event.note.as_ref().is_some_and(|note| note.contains("none"));
        ensure!(events.iter().any(names_port), "{events:?}");
        Ok(())
    })?;
    ingress["spec"]["rules"][0]["http"]["paths"][0]["backend"]["service"]["port"]["name"] = "http".into();
    world.apply(&ingress)?;
    eventually(|| spread_over(&client.get(&[entry], 10)?, &[1, 3]))?;

    let load = client.start_load(LoadKind::NewConnections, entry, 20)?;
    world.set_endpoints(backend, &[3])?;
    eventually(|| answered_by(&client.get(&[entry], 10)?, &[3]))?;
    world.set_endpoints(backend, &[1, 3])?;
    eventually(|| spread_over(&client.get(&[entry], 10)?, &[1, 3]))?;
    without_failure("requests while endpoints change", &load.finish()?)?;

    world.delete(&ingress)?;
    status_is(404)
}

/// Proxies run in the pods 1 and 2. They publish the addresses of their node.
fn the_status_of_ingresses_outlives_its_leader(world: &mut World) -> Result<()> {
    let (namespace, name) = INGRESS_ACCOUNT;
    let address = world.control_plane.address();
    let kubeconfig = world.control_plane.kubeconfig_of(namespace, name, &address)?;
    for class in documents(&deploy().join("ingress/ingress-class.yaml"))? {
        world.apply(&class)?;
    }
    let (pods, gateway) = (world.node().pod_cidr_v4(), world.node().host.v4.to_string());
    world.topology.client.place.run("ip", ["route", "replace", &pods, "via", &gateway])?;
    let service = world.publish(&[1, 2])?;
    let ingress = |name: &str, class: &str| {
        json!({
            "apiVersion": "networking.k8s.io/v1", "kind": "Ingress",
            "metadata": { "name": name, "namespace": service.namespace },
            "spec": { "ingressClassName": class, "defaultBackend": {
                "service": { "name": service.name, "port": { "name": "http" } },
            } },
        })
    };
    let (first, other) = (ingress("first", "sluice"), ingress("other", "another"));
    world.apply(&first)?;
    world.apply(&other)?;

    let publish = format!("--publish-service={}/{}", service.namespace, service.name);
    let arguments = [publish.as_str(), "--lease=sluice-ingress/sluice-ingress", "--lease-duration=4"];
    let start = |world: &World, pod: usize| {
        let (host, logs) = (&world.pod(pod).host, world.topology.folder());
        IngressProxy::start_with(host, "--kubeconfig", &kubeconfig, &arguments, &logs)
    };
    let mut proxies = vec![(1, start(world, 1)?), (2, start(world, 2)?)];
    let host = &world.node().host;
    let mut expected = vec![json!({ "ip": host.v4 }), json!({ "ip": host.v6 })];
    let sort = |list: &mut Vec<Value>| list.sort_by_key(ToString::to_string);
    sort(&mut expected);
    let has_addresses = |world: &World, object: &Value| {
        let status = world.admin.get(object)?["status"]["loadBalancer"]["ingress"].clone();
        let mut found = status.as_array().cloned().unwrap_or_default();
        sort(&mut found);
        ensure!(found == expected, "{status} instead of {expected:?}");
        Ok(())
    };
    let wait_for = |world: &World, proxies: &[(usize, IngressProxy)], object: &Value| {
        let logs = || proxies.iter().map(|(_, proxy)| proxy.log_tail()).collect::<Vec<_>>().join("\n");
        eventually(|| has_addresses(world, object)).with_context(logs)
    };
    wait_for(world, &proxies, &first)?;
    let leads = |world: &World, pod: usize| {
        Ok::<_, anyhow::Error>(
            IngressProxy::metrics(&world.pod(pod).host)?.contains("sluice_ingress_leader 1"),
        )
    };
    // The Lease may change hands between the two questions.
    let mut leaders = [false; 2];
    eventually(|| {
        leaders = [leads(world, 1)?, leads(world, 2)?];
        ensure!(leaders[0] != leaders[1], "leaders: {leaders:?}");
        Ok(())
    })?;

    // The leader dies without giving the Lease up. The other one takes it over.
    let dead = proxies.remove(usize::from(leaders[1]));
    drop(dead);
    let second = ingress("second", "sluice");
    world.apply(&second)?;
    wait_for(world, &proxies, &second)?;
    has_addresses(world, &first)?;

    // Another program empties a status: the leader writes it again.
    let mut emptied = first.clone();
    emptied["status"] = json!({ "loadBalancer": { "ingress": null } });
    world.apply(&emptied)?;
    wait_for(world, &proxies, &first)?;

    // The last one is stopped: it gives the Lease up, and the status stays.
    let (_, last) = proxies.remove(0);
    last.stop()?;
    has_addresses(world, &first)?;
    let lease = json!({
        "apiVersion": "coordination.k8s.io/v1", "kind": "Lease",
        "metadata": { "name": "sluice-ingress", "namespace": "sluice-ingress" },
    });
    let holder = world.admin.get(&lease)?["spec"]["holderIdentity"].clone();
    ensure!(holder == "", "the Lease belongs to {holder}");
    let untouched = world.admin.get(&other)?["status"].clone();
    ensure!(untouched["loadBalancer"]["ingress"].is_null(), "the status of another class: {untouched}");
    world.topology.client.place.run("ip", ["route", "del", &pods]).map(drop)
}

/// Ends all loads, and returns an error that names each load with failures.
pub fn finish(loads: Vec<(impl AsRef<str>, lb_testbed::host::Load)>) -> Result<()> {
    let mut failures = Vec::new();
    for (name, load) in loads {
        if let Err(error) = without_failure(name.as_ref(), &load.finish()?) {
            failures.push(format!("{error:#}"));
        }
    }
    ensure!(failures.is_empty(), "{}", failures.join("\n"));
    Ok(())
}
