//! Derives the options of the data path and of the planner from the settings.

use std::time::Duration;

use lb_datapath::LoadOptions;
use lb_objects::ObjectSelection;
use lb_plan::PlannerSettings;

use crate::config::{Config, DatapathLogLevel, ExternalIps, SocketHooks};

/// Map entries without references are reused after this time. No kernel program works on one packet
/// for that long.
pub const GRACE: Duration = Duration::from_secs(2);

/// The time for which XDP sends packets to a neighbour before the kernel checks it, in
/// milliseconds.
const NEIGHBOUR_CHECK_MS: u32 = 1_000;

/// Returns the options for loading the kernel programs. For `kernel_fragments` see
/// [`LoadOptions::kernel_fragments`].
pub fn load_options(config: &Config, kernel_fragments: bool) -> LoadOptions {
    let ports = &config.snat_ports.0;
    LoadOptions {
        sizes: config.maps.0,
        map_memory: (config.max_map_memory as usize) << 20,
        snat_ports: (*ports.start(), *ports.end()),
        flow_timeouts: config.flow_timeouts.seconds(),
        log_level: match config.datapath_log {
            DatapathLogLevel::Off => 0,
            DatapathLogLevel::Error => 1,
            DatapathLogLevel::Warn => 2,
            DatapathLogLevel::Info => 3,
            DatapathLogLevel::Debug => 4,
            DatapathLogLevel::Trace => 5,
        },
        tc_attach: config.tc_attach.into(),
        protect_node_ports: config.protect_node_ports,
        host_sockets_only: config.socket_hooks == SocketHooks::Host,
        neighbour_check_ms: NEIGHBOUR_CHECK_MS,
        kernel_fragments,
    }
}

/// Returns the objects that the planner needs.
pub fn selection(config: &Config) -> ObjectSelection {
    ObjectSelection::of_services(config.node_name.as_str()).with_pod_weights(config.pod_weights)
}

/// Returns the options of the planner.
pub fn planner_settings(config: &Config) -> PlannerSettings {
    let Config { pod_weights, .. } = *config;
    let defaults =
        PlannerSettings { algorithm: config.algorithm.0, pod_weights, ..PlannerSettings::default() };
    match &config.external_ips {
        ExternalIps::Allow => defaults,
        ExternalIps::Deny => PlannerSettings { allowed_external_ips: Vec::new(), ..defaults },
        ExternalIps::Within(networks) => {
            PlannerSettings { allowed_external_ips: networks.clone(), ..defaults }
        }
    }
}
