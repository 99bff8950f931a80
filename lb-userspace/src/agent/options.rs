//! Options of the data path and of the planner, as they follow from the settings.

use std::time::Duration;

use lb_datapath::LoadOptions;
use lb_plan::PlannerSettings;

use crate::config::{Config, DatapathLog, ExternalIps, SocketHooks};

/// Map entries that nothing refers to any more are reused after this time. It is longer than the
/// kernel programs work on one packet.
pub const GRACE: Duration = Duration::from_secs(2);

/// For how long XDP sends packets to a neighbour before the kernel checks it, in milliseconds.
const NEIGHBOUR_CHECK_MS: u32 = 1_000;

/// Returns the options for loading the kernel programs.
pub fn load_options(config: &Config) -> LoadOptions {
    let ports = &config.snat_ports.0;
    LoadOptions {
        sizes: config.maps.map_sizes(),
        snat_ports: (*ports.start(), *ports.end()),
        flow_timeouts: config.flow_timeouts.seconds(),
        log_level: match config.datapath_log {
            DatapathLog::Off => 0,
            DatapathLog::Error => 1,
            DatapathLog::Warn => 2,
            DatapathLog::Info => 3,
            DatapathLog::Debug => 4,
            DatapathLog::Trace => 5,
        },
        tc_attach: config.tc_attach.into(),
        protect_node_ports: config.protect_node_ports,
        host_sockets_only: config.socket_hooks == SocketHooks::Host,
        neighbour_check_ms: NEIGHBOUR_CHECK_MS,
    }
}

/// Returns the options of the planner.
pub fn planner_settings(config: &Config) -> PlannerSettings {
    let defaults = PlannerSettings { algorithm: config.algorithm.0, ..PlannerSettings::default() };
    match &config.external_ips {
        ExternalIps::Allow => defaults,
        ExternalIps::Deny => PlannerSettings { allowed_external_ips: Vec::new(), ..defaults },
        ExternalIps::Within(networks) => {
            PlannerSettings { allowed_external_ips: networks.clone(), ..defaults }
        }
    }
}
