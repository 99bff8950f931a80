//! The cases, one file per kind of traffic or change.

mod affinity;
mod algorithms;
mod changes;
mod cluster_ip;
mod container;
mod conversion;
mod datagrams;
mod doctor;
mod drift;
mod each_algorithm;
mod examples;
mod explain;
mod floods;
mod forward;
mod guards;
mod health;
mod icmp;
mod ipvs;
mod lacking;
mod lifecycle;
mod matrix;
mod monitor;
mod node_port;
mod passive_health;
mod pod_interfaces;
mod reports;
mod routes;
mod scale;
mod sctp;
mod sockets;
mod sweep;
mod top;
mod transfers;
mod types;
mod vlan;

use anyhow::Result;
use lb_testbed::Family;

use crate::world::World;

/// A case. It runs with each data path.
pub struct Case {
    pub name: &'static str,
    pub underlays: Underlays,
    /// Additional arguments of the agents.
    pub agents: &'static [&'static str],
    pub run: Run,
}

/// The underlays that a case runs with.
pub enum Underlays {
    /// The traffic does not cross nodes, or an overlay makes no difference.
    Routed,
    /// The case tests a property of overlays.
    Vxlan,
    Both,
}

pub enum Run {
    EachFamily(fn(&mut World, Family) -> Result<()>),
    Once(fn(&mut World) -> Result<()>),
}

const fn each(name: &'static str, underlays: Underlays, run: fn(&mut World, Family) -> Result<()>) -> Case {
    Case { name, underlays, agents: &[], run: Run::EachFamily(run) }
}

const fn once(name: &'static str, underlays: Underlays, run: fn(&mut World) -> Result<()>) -> Case {
    Case { name, underlays, agents: &[], run: Run::Once(run) }
}

/// Programs are attached to the devices of pods.
const POD_INTERFACES: &[&str] = &["--pod-interfaces", "veth-*"];
/// Programs are attached to the devices of pods. Cgroup programs serve only sockets of the node
/// itself.
const SERVICE_MESH: &[&str] = &["--pod-interfaces", "veth-*", "--socket-hooks", "host"];
/// Programs are attached to the devices of pods. Cgroup programs are not attached.
const NO_SOCKETS: &[&str] = &["--pod-interfaces", "veth-*", "--socket-hooks", "off"];

/// Connections to endpoints on other nodes have 2,000 source ports.
const FEW_SOURCE_PORTS: &[&str] = &["--snat-ports", "1024-3023"];

/// The kernel forwards all translated packets.
const FORWARD_BY_KERNEL: &[&str] = &["--forward", "stack"];

/// Adds arguments of the agents to a case.
const fn with(agents: &'static [&'static str], case: Case) -> Case {
    Case { agents, ..case }
}

/// Cases for kernels that a part was taken away from. On other kernels, they cannot pass.
pub const LACKING: &[Case] = &[
    once("no_tc_filters", Underlays::Routed, lacking::no_tc_filters),
    once("no_jit", Underlays::Routed, lacking::no_jit),
];

/// All cases, in the order in which they run. Simple cases run first: if they fail, complex ones
/// fail too. Cases with the same agents follow each other: every change of the arguments restarts
/// the agents.
pub const CASES: &[Case] = &[
    once("attached_as_configured", Underlays::Routed, lifecycle::attached_as_configured),
    each("plain_traffic_is_untouched", Underlays::Both, cluster_ip::plain_traffic_is_untouched),
    each("pod_to_cluster_ip_same_node", Underlays::Routed, cluster_ip::pod_same_node),
    each("pod_to_cluster_ip_other_node", Underlays::Both, cluster_ip::pod_other_node),
    each("pod_to_itself", Underlays::Routed, cluster_ip::pod_to_itself),
    once("pod_with_mapped_address", Underlays::Routed, cluster_ip::mapped_address),
    each("host_to_cluster_ip", Underlays::Both, cluster_ip::host),
    each("outside_to_cluster_ip", Underlays::Both, cluster_ip::outside),
    each("a_moved_connection_is_reset", Underlays::Routed, cluster_ip::a_moved_connection_is_reset),
    each("cluster_ip_of_a_local_process", Underlays::Routed, cluster_ip::of_a_local_process),
    each("requests_are_spread", Underlays::Both, cluster_ip::requests_are_spread),
    each("outside_to_node_port_local", Underlays::Routed, node_port::outside_local),
    each("endpoints_without_node_name", Underlays::Both, node_port::outside_local_without_node_name),
    each("outside_to_node_port_remote", Underlays::Both, node_port::outside_remote),
    each("pod_to_node_port", Underlays::Routed, node_port::pod),
    each("host_to_node_port", Underlays::Both, node_port::host),
    each("udp_pod_to_cluster_ip", Underlays::Both, datagrams::pod_to_cluster_ip),
    each("udp_host_to_cluster_ip", Underlays::Both, datagrams::host_to_cluster_ip),
    each("udp_outside_to_node_port", Underlays::Both, datagrams::outside_to_node_port),
    each("masqueraded_with_a_node_port", Underlays::Routed, datagrams::masqueraded_with_a_node_port),
    each("udp_fragments", Underlays::Routed, datagrams::fragments),
    once("packets_larger_than_the_path", Underlays::Both, datagrams::larger_than_the_path),
    each("udp_path_mtu_is_reported", Underlays::Vxlan, datagrams::path_mtu_is_reported),
    each("sctp_outside_to_node_port", Underlays::Both, sctp::outside_to_node_port),
    each("sctp_outside_to_cluster_ip", Underlays::Routed, sctp::outside_to_cluster_ip),
    each("transfer_pod_to_cluster_ip", Underlays::Both, transfers::pod_to_cluster_ip),
    each("transfer_outside_to_node_port", Underlays::Both, transfers::outside_to_node_port),
    each("path_mtu_to_an_endpoint", Underlays::Both, icmp::path_mtu_to_an_endpoint),
    each("path_mtu_to_a_client", Underlays::Both, icmp::path_mtu_to_a_client),
    each("ping_service_address", Underlays::Both, icmp::ping_service_address),
    each("one_address_two_protocols", Underlays::Routed, changes::one_address_two_protocols),
    each("no_endpoint_is_refused", Underlays::Routed, changes::no_endpoint_is_refused),
    each("no_endpoint_is_refused_outside", Underlays::Routed, icmp::no_endpoint_is_refused_outside),
    each("endpoint_added", Underlays::Routed, changes::endpoint_added),
    each("endpoint_removed_under_load", Underlays::Both, changes::endpoint_removed_under_load),
    each("service_deleted", Underlays::Routed, changes::service_deleted),
    each("every_source_to_every_address", Underlays::Routed, matrix::tcp),
    each("udp_every_source_to_every_address", Underlays::Routed, matrix::udp),
    each("source_ranges", Underlays::Routed, guards::source_ranges),
    each("unknown_ports_and_addresses", Underlays::Routed, guards::unknown_addresses),
    each("affinity_keeps_the_endpoint", Underlays::Routed, affinity::a_client_keeps_its_endpoint),
    each("affinity_ends_with_its_timeout", Underlays::Routed, affinity::a_client_may_move_after_the_timeout),
    each("algorithm_rr_takes_turns", Underlays::Routed, algorithms::endpoints_take_turns),
    each(
        "algorithm_mh_is_alike_on_all_nodes",
        Underlays::Routed,
        algorithms::maglev_selects_alike_on_all_nodes,
    ),
    each("thresholds_limit_connections", Underlays::Routed, algorithms::thresholds_limit_connections),
    each(
        "thresholds_give_a_socket_one_place",
        Underlays::Routed,
        algorithms::a_socket_that_connects_again_has_one_place,
    ),
    each("algorithm_lc_evens_out_connections", Underlays::Routed, algorithms::lc_evens_out_connections),
    each(
        "failover_moves_unanswered_connections",
        Underlays::Routed,
        algorithms::failover_moves_unanswered_connections,
    ),
    each("passive_health_and_a_local_policy", Underlays::Routed, passive_health::with_a_local_policy),
    each("passive_health_and_affinity", Underlays::Routed, passive_health::with_affinity),
    each("passive_health_and_maglev", Underlays::Routed, passive_health::with_maglev),
    each(
        "counts_are_exact_under_concurrency",
        Underlays::Routed,
        algorithms::counts_are_exact_under_concurrency,
    ),
    each("each_algorithm_selects_by_its_rule", Underlays::Routed, each_algorithm::selects_by_its_rule),
    each("affinity_precedes_each_algorithm", Underlays::Routed, each_algorithm::affinity_precedes),
    once("ages_of_sockets_survive_restarts", Underlays::Routed, algorithms::ages_of_sockets_survive_restarts),
    each("ipvs_selects_alike", Underlays::Routed, ipvs::selects_alike),
    each("weight_0_drains", Underlays::Routed, algorithms::weight_0_drains),
    each("pods_have_weights", Underlays::Routed, algorithms::pods_have_weights),
    each(
        "a_drained_node_gets_no_new_connections",
        Underlays::Routed,
        algorithms::a_drained_node_gets_no_new_connections,
    ),
    each("a_time_limit_ends_a_drain", Underlays::Routed, algorithms::a_time_limit_ends_a_drain),
    each("old_connections_are_reset", Underlays::Routed, algorithms::old_connections_are_reset),
    once("every_change_of_type", Underlays::Routed, types::changes),
    each("health_check_follows_endpoints", Underlays::Routed, health::health_check_follows_endpoints),
    once("health_check_port_in_use", Underlays::Routed, health::health_check_port_in_use),
    once("metrics_and_settings_are_served", Underlays::Routed, health::metrics_and_settings_are_served),
    each(
        "udp_sockets_of_a_removed_endpoint_are_closed",
        Underlays::Routed,
        sockets::udp_sockets_of_a_removed_endpoint_are_closed,
    ),
    once(
        "sockets_are_closed_by_the_next_agent",
        Underlays::Routed,
        sockets::sockets_are_closed_by_the_next_agent,
    ),
    each(
        "unconnected_socket_sends_to_two_services",
        Underlays::Routed,
        sockets::one_socket_sends_to_two_services,
    ),
    each(
        "unconnected_socket_after_an_eviction",
        Underlays::Routed,
        sockets::an_evicted_reply_entry_is_made_again,
    ),
    each(
        "unconnected_socket_and_a_terminating_endpoint",
        Underlays::Routed,
        sockets::udp_sockets_stay_with_a_terminating_endpoint,
    ),
    each("prepared_sockets", Underlays::Routed, sockets::prepared_sockets),
    once("node_ports_cannot_be_bound", Underlays::Routed, sockets::node_ports_cannot_be_bound),
    once(
        "namespace_addresses_are_in_the_map",
        Underlays::Routed,
        sockets::namespace_addresses_are_in_the_map,
    ),
    once("examples_are_served", Underlays::Routed, examples::examples_are_served),
    once("bad_manifest_affects_nothing_else", Underlays::Routed, changes::bad_manifest_affects_nothing_else),
    once("priority_tags_are_ignored", Underlays::Routed, vlan::priority_tags_are_ignored),
    once("frames_of_other_vlans_are_ignored", Underlays::Routed, vlan::frames_of_other_vlans_are_ignored),
    once("doctor_finds_faults", Underlays::Routed, doctor::healthy_and_faulty),
    once("doctor_of_a_root_folder", Underlays::Routed, doctor::of_a_root_folder),
    once("drift_of_programs", Underlays::Routed, drift::programs),
    once("drift_of_order", Underlays::Routed, drift::order),
    once("drift_of_sockets", Underlays::Routed, drift::sockets),
    once("drift_of_entries", Underlays::Routed, drift::entries),
    once("drift_of_pins", Underlays::Routed, drift::pins),
    once("agent_restarts", Underlays::Routed, lifecycle::agent_restarts),
    each("agent_restarts_under_load", Underlays::Both, lifecycle::agent_restarts_under_load),
    each("layout_changes_under_load", Underlays::Routed, conversion::layout_changes_under_load),
    each("sizes_change_under_load", Underlays::Routed, conversion::sizes_change_under_load),
    each("maps_grow_under_load", Underlays::Routed, conversion::maps_grow_under_load),
    once("maps_grow_within_their_memory", Underlays::Routed, conversion::maps_grow_within_their_memory),
    once("maps_do_not_grow", Underlays::Routed, conversion::maps_do_not_grow),
    once("sweeps_delay_nothing", Underlays::Routed, sweep::sweeps_delay_nothing),
    once("layout_change_is_killed", Underlays::Routed, conversion::layout_change_is_killed),
    once("size_change_is_killed", Underlays::Routed, conversion::size_change_is_killed),
    once("no_ingress_without_egress", Underlays::Routed, lifecycle::no_ingress_without_egress),
    once("refused_programs_are_reported", Underlays::Routed, lacking::refused_programs_are_reported),
    once("no_bpf_file_system", Underlays::Routed, lacking::no_bpf_file_system),
    once("no_cgroup2", Underlays::Routed, lacking::no_cgroup2),
    once("no_btf", Underlays::Routed, lacking::no_btf),
    once("container_with_least_privilege", Underlays::Routed, container::serves_with_least_privilege),
    once("container_without_a_capability", Underlays::Routed, container::names_missing_capabilities),
    once("settings_change_while_running", Underlays::Routed, lifecycle::settings_change_while_running),
    once("second_agent_is_refused", Underlays::Routed, lifecycle::second_agent_is_refused),
    each("a_thousand_services", Underlays::Routed, scale::a_thousand_services),
    each("explain_agrees_with_traffic", Underlays::Routed, explain::agrees_with_traffic),
    each("explain_pings", Underlays::Routed, explain::pings),
    each("explain_refusals_agree_with_traffic", Underlays::Routed, explain::refusals_agree_with_traffic),
    once("explain_names_other_programs", Underlays::Routed, explain::names_other_programs),
    each("explain_leaves_no_trace", Underlays::Routed, explain::leaves_no_trace),
    each("explain_without_an_agent", Underlays::Routed, explain::without_an_agent),
    each("monitor_follows_connections", Underlays::Routed, monitor::connections),
    each("monitor_names_refusals", Underlays::Routed, monitor::refusals),
    once("monitor_has_one_reader", Underlays::Routed, monitor::readers),
    once("monitor_counts_what_it_does_not_show", Underlays::Routed, monitor::floods),
    once("top_in_a_terminal", Underlays::Routed, top::in_a_terminal),
    each("one_way_datagrams_block_no_endpoint", Underlays::Routed, floods::one_way_datagrams),
    once("forged_syns_block_no_endpoint", Underlays::Routed, floods::forged_syns),
    each("ports_are_reused_within_time_wait", Underlays::Routed, reports::ports_are_reused),
    each("second_nic_with_rules", Underlays::Routed, reports::second_nic_with_rules),
    each("a_neighbour_moves", Underlays::Routed, routes::neighbour_moves),
    each("ipsec_policies_hold_up_translated_packets", Underlays::Routed, forward::ipsec),
    once("cleanup_removes_everything", Underlays::Routed, lifecycle::cleanup_removes_everything),
    with(
        FORWARD_BY_KERNEL,
        each("the_kernel_forwards_translated_packets", Underlays::Both, forward::by_kernel),
    ),
    with(
        FORWARD_BY_KERNEL,
        each("rules_apply_to_translated_packets", Underlays::Routed, routes::rules_of_the_kernel),
    ),
    with(
        FEW_SOURCE_PORTS,
        each("many_connections_to_one_endpoint", Underlays::Routed, floods::many_connections_to_one_endpoint),
    ),
    with(POD_INTERFACES, each("vm_to_cluster_ip", Underlays::Both, pod_interfaces::to_cluster_ip)),
    with(POD_INTERFACES, each("vm_to_node_port", Underlays::Routed, pod_interfaces::to_node_port)),
    with(POD_INTERFACES, each("vm_to_load_balancer", Underlays::Routed, pod_interfaces::to_load_balancer)),
    with(POD_INTERFACES, each("vm_to_itself", Underlays::Routed, pod_interfaces::to_itself)),
    with(POD_INTERFACES, each("vm_transfers", Underlays::Both, pod_interfaces::transfers)),
    with(
        POD_INTERFACES,
        each("vm_is_refused_without_endpoint", Underlays::Routed, pod_interfaces::refused_without_endpoint),
    ),
    with(POD_INTERFACES, each("vm_serves", Underlays::Both, pod_interfaces::serves)),
    with(
        POD_INTERFACES,
        each("vm_and_process_in_one_pod", Underlays::Routed, pod_interfaces::vm_and_process),
    ),
    with(POD_INTERFACES, each("vm_appears_later", Underlays::Routed, pod_interfaces::appears_later)),
    with(POD_INTERFACES, each("namespace_behind_a_pod", Underlays::Routed, reports::namespace_behind_a_pod)),
    with(POD_INTERFACES, once("vms_on_a_bridge", Underlays::Routed, pod_interfaces::on_a_bridge)),
    with(
        SERVICE_MESH,
        each("sockets_of_pods_are_not_translated", Underlays::Routed, pod_interfaces::sockets_not_translated),
    ),
    with(NO_SOCKETS, each("no_sockets_are_translated", Underlays::Routed, pod_interfaces::no_sockets)),
];
