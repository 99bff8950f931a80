//! The cases, one file per kind of traffic or change.

mod affinity;
mod changes;
mod cluster_ip;
mod datagrams;
mod examples;
mod explain;
mod guards;
mod health;
mod icmp;
mod lifecycle;
mod matrix;
mod node_port;
mod pod_interfaces;
mod scale;
mod sctp;
mod sockets;
mod transfers;
mod types;

use anyhow::Result;
use lb_testbed::Family;

use crate::world::World;

/// A case, to be run with each data path.
pub struct Case {
    pub name: &'static str,
    pub place: Where,
    /// Arguments of the agents.
    pub agents: &'static [&'static str],
    pub run: Run,
}

/// The underlays that matter to a case.
pub enum Where {
    /// The path does not cross nodes, or the overlay makes no difference.
    Routed,
    /// Only an overlay has it.
    Vxlan,
    Both,
}

pub enum Run {
    EachFamily(fn(&mut World, Family) -> Result<()>),
    Once(fn(&mut World) -> Result<()>),
}

const fn each(name: &'static str, place: Where, run: fn(&mut World, Family) -> Result<()>) -> Case {
    Case { name, place, agents: &[], run: Run::EachFamily(run) }
}

const fn once(name: &'static str, place: Where, run: fn(&mut World) -> Result<()>) -> Case {
    Case { name, place, agents: &[], run: Run::Once(run) }
}

/// Pods' devices are served, for those whose sockets are not.
const POD_INTERFACES: &[&str] = &["--pod-interfaces", "veth-*"];
/// The same, and pods' sockets are left to a service mesh.
const SERVICE_MESH: &[&str] = &["--pod-interfaces", "veth-*", "--socket-hooks", "host"];
const NO_SOCKETS: &[&str] = &["--pod-interfaces", "veth-*", "--socket-hooks", "off"];

/// A case with arguments for the agents.
const fn with(agents: &'static [&'static str], case: Case) -> Case {
    Case { agents, ..case }
}

/// In the order they run: what is simple first, because all else builds on it.
pub const CASES: &[Case] = &[
    once("attached_as_asked", Where::Routed, lifecycle::attached_as_asked),
    each("plain_traffic_is_untouched", Where::Both, cluster_ip::plain_traffic_is_untouched),
    each("pod_to_cluster_ip_same_node", Where::Routed, cluster_ip::pod_same_node),
    each("pod_to_cluster_ip_other_node", Where::Both, cluster_ip::pod_other_node),
    each("pod_to_itself", Where::Routed, cluster_ip::pod_to_itself),
    once("pod_with_mapped_address", Where::Routed, cluster_ip::mapped_address),
    each("host_to_cluster_ip", Where::Both, cluster_ip::host),
    each("outside_to_cluster_ip", Where::Both, cluster_ip::outside),
    each("requests_are_spread", Where::Both, cluster_ip::requests_are_spread),
    each("outside_to_node_port_local", Where::Routed, node_port::outside_local),
    each("outside_to_node_port_remote", Where::Both, node_port::outside_remote),
    each("pod_to_node_port", Where::Routed, node_port::pod),
    each("host_to_node_port", Where::Both, node_port::host),
    each("udp_pod_to_cluster_ip", Where::Both, datagrams::pod_to_cluster_ip),
    each("udp_host_to_cluster_ip", Where::Both, datagrams::host_to_cluster_ip),
    each("udp_outside_to_node_port", Where::Both, datagrams::outside_to_node_port),
    each("udp_fragments", Where::Routed, datagrams::fragments),
    each("udp_path_mtu_is_told", Where::Vxlan, datagrams::path_mtu_is_told),
    each("sctp_outside_to_node_port", Where::Both, sctp::outside_to_node_port),
    each("sctp_outside_to_cluster_ip", Where::Routed, sctp::outside_to_cluster_ip),
    each("transfer_pod_to_cluster_ip", Where::Both, transfers::pod_to_cluster_ip),
    each("transfer_outside_to_node_port", Where::Both, transfers::outside_to_node_port),
    each("path_mtu_to_an_endpoint", Where::Both, icmp::path_mtu_to_an_endpoint),
    each("path_mtu_to_a_client", Where::Both, icmp::path_mtu_to_a_client),
    each("ping_service_address", Where::Both, icmp::ping_service_address),
    each("one_address_two_protocols", Where::Routed, changes::one_address_two_protocols),
    each("no_endpoint_is_refused", Where::Routed, changes::no_endpoint_is_refused),
    each("no_endpoint_is_refused_outside", Where::Routed, icmp::no_endpoint_is_refused_outside),
    each("endpoint_added", Where::Routed, changes::endpoint_added),
    each("endpoint_removed_under_load", Where::Both, changes::endpoint_removed_under_load),
    each("service_deleted", Where::Routed, changes::service_deleted),
    each("every_source_to_every_address", Where::Routed, matrix::tcp),
    each("udp_every_source_to_every_address", Where::Routed, matrix::udp),
    each("source_ranges", Where::Routed, guards::source_ranges),
    each("unknown_ports_and_addresses", Where::Routed, guards::unknown_addresses),
    each("affinity_keeps_a_client", Where::Routed, affinity::a_client_stays),
    each("affinity_ends_with_its_timeout", Where::Routed, affinity::a_client_may_move_after_the_timeout),
    once("every_change_of_type", Where::Routed, types::changes),
    each("health_check_follows_endpoints", Where::Routed, health::health_check_follows_endpoints),
    once("health_check_port_in_use", Where::Routed, health::health_check_port_in_use),
    once("metrics_and_settings_are_served", Where::Routed, health::metrics_and_settings_are_served),
    each("udp_sockets_leave_an_endpoint", Where::Routed, sockets::udp_sockets_leave_an_endpoint_that_is_gone),
    once(
        "sockets_are_closed_by_the_next_agent",
        Where::Routed,
        sockets::sockets_are_closed_by_the_next_agent,
    ),
    once("node_ports_cannot_be_bound", Where::Routed, sockets::node_ports_cannot_be_bound),
    once("namespaces_are_known", Where::Routed, sockets::namespaces_are_known),
    once("examples_are_served", Where::Routed, examples::examples_are_served),
    once("bad_manifest_harms_nobody_else", Where::Routed, changes::bad_manifest_harms_nobody_else),
    each("agent_restarts_under_load", Where::Both, lifecycle::agent_restarts_under_load),
    once("second_agent_is_refused", Where::Routed, lifecycle::second_agent_is_refused),
    each("a_thousand_services", Where::Routed, scale::a_thousand_services),
    with(POD_INTERFACES, each("vm_to_cluster_ip", Where::Both, pod_interfaces::to_cluster_ip)),
    with(POD_INTERFACES, each("vm_to_node_port", Where::Routed, pod_interfaces::to_node_port)),
    with(POD_INTERFACES, each("vm_to_load_balancer", Where::Routed, pod_interfaces::to_load_balancer)),
    with(POD_INTERFACES, each("vm_to_itself", Where::Routed, pod_interfaces::to_itself)),
    with(POD_INTERFACES, each("vm_transfers", Where::Both, pod_interfaces::transfers)),
    with(
        POD_INTERFACES,
        each("vm_is_refused_without_endpoint", Where::Routed, pod_interfaces::refused_without_endpoint),
    ),
    with(POD_INTERFACES, each("vm_serves", Where::Both, pod_interfaces::serves)),
    with(POD_INTERFACES, each("vm_beside_processes", Where::Routed, pod_interfaces::beside_processes)),
    with(POD_INTERFACES, each("vm_appears_later", Where::Routed, pod_interfaces::appears_later)),
    with(POD_INTERFACES, once("vms_on_a_bridge", Where::Routed, pod_interfaces::on_a_bridge)),
    with(
        SERVICE_MESH,
        each("sockets_of_pods_are_left_alone", Where::Routed, pod_interfaces::sockets_left_alone),
    ),
    with(NO_SOCKETS, each("no_sockets_are_served", Where::Routed, pod_interfaces::no_sockets)),
    each("explain_agrees_with_traffic", Where::Routed, explain::agrees_with_traffic),
    each("explain_pings", Where::Routed, explain::pings),
    each("explain_refusals_agree_with_traffic", Where::Routed, explain::refusals_agree_with_traffic),
    each("explain_leaves_no_trace", Where::Routed, explain::leaves_no_trace),
    each("explain_without_an_agent", Where::Routed, explain::without_an_agent),
    once("cleanup_removes_everything", Where::Routed, lifecycle::cleanup_removes_everything),
];
