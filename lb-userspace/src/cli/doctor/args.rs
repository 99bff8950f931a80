//! The arguments of `lb doctor`.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::PathBuf;

use clap::Args;

use crate::cli::pin_args::PinArgs;
use crate::config::ApiServers;
use crate::view::doctor::DoctorFormat;

#[derive(Debug, Args)]
pub struct DoctorArgs {
    /// Output format
    #[arg(short, long, value_name = "FORMAT", value_enum, default_value = "table")]
    pub output: DoctorFormat,

    /// Check that the API server of this kubeconfig file is reachable. In a pod, its service
    /// account is used by default
    #[arg(long, env = "SLUICE_KUBECONFIG", value_name = "FILE")]
    pub kubeconfig: Option<PathBuf>,

    /// Addresses of the API server: the value of the agent's --api-server
    #[arg(long, env = "SLUICE_API_SERVER", value_name = "URLS", default_value = "")]
    pub api_server: ApiServers,

    /// Root folder of the node, if the command runs in a container: all paths but that of
    /// --kubeconfig are paths of the node then
    #[arg(long, value_name = "DIR")]
    pub host_root: Option<PathBuf>,

    /// cgroup-v2 folder of the agent: the value of its --cgroup. Default: the root of the cgroup-v2
    /// hierarchy
    #[arg(long, env = "SLUICE_CGROUP", value_name = "DIR")]
    pub cgroup: Option<PathBuf>,

    /// Folder of network namespaces of pods: the value of the agent's --netns-dir
    #[arg(long, env = "SLUICE_NETNS_DIR", value_name = "DIR", default_value = "/run/netns")]
    pub netns_dir: PathBuf,

    /// Address of /healthz of the agent: the value of its --health-bind
    #[arg(long, env = "SLUICE_HEALTH_BIND", value_name = "ADDRESS", default_value = "0.0.0.0:10256")]
    pub health_bind: SocketAddr,

    /// Address of /metrics of the agent: the value of its --metrics-bind
    #[arg(long, env = "SLUICE_METRICS_BIND", value_name = "ADDRESS", default_value = "127.0.0.1:10249")]
    pub metrics_bind: SocketAddr,

    #[command(flatten)]
    pub pins: PinArgs,
}

/// Returns the address at which a server that listens on `address` is reached on this node.
pub fn reachable(address: SocketAddr) -> SocketAddr {
    let ip = match address.ip() {
        ip if !ip.is_unspecified() => ip,
        IpAddr::V4(_) => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(_) => Ipv6Addr::LOCALHOST.into(),
    };
    SocketAddr::new(ip, address.port())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_server_on_all_addresses_is_reached_at_localhost() {
        let text = |address: &str| reachable(address.parse().unwrap()).to_string();
        assert_eq!(text("0.0.0.0:10256"), "127.0.0.1:10256");
        assert_eq!(text("[::]:10256"), "[::1]:10256");
        assert_eq!(text("192.0.2.1:80"), "192.0.2.1:80");
    }
}
