//! The settings of `lb ingress`.

use std::net::SocketAddr;
use std::path::PathBuf;

use clap::Args;
use ipnet::IpNet;
use lb_ingress::ingress::DefaultBackend;
use lb_model::ObjectName;

use crate::config::{LogFilter, LogFormat};

#[derive(Debug, Args)]
pub struct IngressArgs {
    /// Kubeconfig file for the API server. Default: the service account of the pod
    #[arg(long, env = "SLUICE_KUBECONFIG", value_name = "FILE", help_heading = "Kubernetes")]
    pub kubeconfig: Option<PathBuf>,

    /// Folder with YAML and JSON files of Ingresses, IngressClasses, Services, EndpointSlices and
    /// Secrets, to use instead of an API server. Later changes of the files are applied
    #[arg(
        long,
        env = "SLUICE_MANIFESTS",
        value_name = "DIR",
        conflicts_with = "kubeconfig",
        help_heading = "Kubernetes"
    )]
    pub manifests: Option<PathBuf>,

    /// Name of the Node object of this node. Default: the host name in lower case
    #[arg(long, env = "SLUICE_NODE_NAME", value_name = "NAME", help_heading = "Kubernetes")]
    pub node_name: Option<String>,

    /// Read the annotation `lb.sluice.dev/weight` of Pods: those with weight 0 get no requests. The
    /// proxy needs the right to watch Pods, see deploy/ingress-pod-weights
    #[arg(long, env = "SLUICE_POD_WEIGHTS", help_heading = "Kubernetes")]
    pub pod_weights: bool,

    /// Name of a class to serve, also without an IngressClass object. Can be repeated
    #[arg(long, value_name = "NAME", default_value = "sluice", help_heading = "Kubernetes")]
    pub ingress_class: Vec<Box<str>>,

    /// Value of spec.controller of the IngressClasses to serve. Can be repeated
    #[arg(long, value_name = "NAME", default_value = "sluice.dev/ingress", help_heading = "Kubernetes")]
    pub controller: Vec<Box<str>>,

    /// Serve Ingresses without a class even if no IngressClass is the default one
    #[arg(long, help_heading = "Kubernetes")]
    pub without_class: bool,

    /// Service for requests that no Ingress matches: namespace/name or namespace/name:port
    #[arg(long, value_name = "SERVICE", help_heading = "Kubernetes")]
    pub default_backend: Option<DefaultBackend>,

    /// Addresses and names of the proxies for the status of the Ingresses. One proxy of the
    /// cluster, the leader, writes it
    #[arg(
        long,
        value_name = "ADDRESSES",
        value_delimiter = ',',
        conflicts_with_all = ["publish_service", "manifests"],
        help_heading = "Status"
    )]
    pub status_address: Vec<String>,

    /// Service whose addresses are written to the status of the Ingresses: those of its load
    /// balancer, or of the nodes for a NodePort or headless Service
    #[arg(
        long,
        value_name = "NAMESPACE/NAME",
        value_parser = object_name,
        conflicts_with = "manifests",
        help_heading = "Status"
    )]
    pub publish_service: Option<ObjectName>,

    /// Lease by which the proxies elect the leader. Default: `sluice-ingress` in the namespace of
    /// the pod
    #[arg(
        long,
        value_name = "NAMESPACE/NAME",
        value_parser = object_name,
        conflicts_with = "manifests",
        help_heading = "Status"
    )]
    pub lease: Option<ObjectName>,

    /// Seconds after which another proxy takes the Lease of a leader that is gone. A leader that
    /// cannot renew it for two thirds of this time leads no longer
    #[arg(
        long,
        value_name = "SECONDS",
        default_value_t = 15,
        value_parser = clap::value_parser!(u16).range(2..),
        conflicts_with = "manifests",
        help_heading = "Status"
    )]
    pub lease_duration: u16,

    /// The leader removes the addresses from the Ingresses when it is stopped. By default they stay
    #[arg(long, conflicts_with = "manifests", help_heading = "Status")]
    pub clear_status_on_exit: bool,

    /// Address and port for HTTP/1.1 and HTTP/2 without TLS. `:80` means all IPv4 addresses
    #[arg(long, value_name = "ADDRESS", default_value = ":80", value_parser = address, help_heading = "Ports")]
    pub http: SocketAddr,

    /// Address and port for HTTP/1.1 and HTTP/2 with TLS
    #[arg(long, value_name = "ADDRESS", default_value = ":443", value_parser = address, help_heading = "Ports")]
    pub https: SocketAddr,

    /// Address and port of /readyz, /healthz and /metrics
    #[arg(long, value_name = "ADDRESS", default_value = ":10254", value_parser = address, help_heading = "Ports")]
    pub admin: SocketAddr,

    /// The port of https that clients use, for redirects. Default: the port of --https
    #[arg(long, value_name = "PORT", help_heading = "Ports")]
    pub public_https_port: Option<u16>,

    /// Secret with the certificate for names that have none. Default: a self-signed certificate
    #[arg(long, value_name = "NAMESPACE/NAME", value_parser = object_name, help_heading = "Clients")]
    pub default_certificate: Option<ObjectName>,

    /// Networks of proxies whose X-Forwarded-* fields are believed
    #[arg(long, value_name = "CIDRS", value_delimiter = ',', help_heading = "Clients")]
    pub trusted_proxies: Vec<IpNet>,

    /// Expect a PROXY protocol header (version 1 or 2) at the start of each connection
    #[arg(long, help_heading = "Clients")]
    pub proxy_protocol: bool,

    /// Connections of clients at a time. More wait in the queue of the kernel
    #[arg(long, value_name = "COUNT", default_value_t = 65_536, help_heading = "Clients")]
    pub max_connections: usize,

    /// UNIX socket by which the next process of this node gets the listening sockets. This process
    /// gets those of a process that serves it already
    #[arg(long, value_name = "FILE", help_heading = "Operation")]
    pub handover: Option<PathBuf>,

    /// Seconds after SIGTERM in which requests are served as before, and HTTP/1 connections close
    /// after a response
    #[arg(long, value_name = "SECONDS", default_value_t = 0, help_heading = "Operation")]
    pub shutdown_grace_period: u64,

    /// Seconds that open requests and connections have to end after SIGTERM and the grace period
    #[arg(long, value_name = "SECONDS", default_value_t = 30, help_heading = "Operation")]
    pub drain: u64,

    /// Write no access log. By default each request is a JSON object on standard output
    #[arg(long, help_heading = "Operation")]
    pub no_access_log: bool,

    /// Log level (off, error, warn, info, debug, trace), also per module
    #[arg(
        long,
        env = "SLUICE_LOG_LEVEL",
        value_name = "LEVEL",
        default_value = "info",
        help_heading = "Operation"
    )]
    pub log_level: LogFilter,

    /// Format of log lines
    #[arg(
        long,
        env = "SLUICE_LOG_FORMAT",
        value_name = "FORMAT",
        value_enum,
        default_value = "text",
        help_heading = "Operation"
    )]
    pub log_format: LogFormat,
}

fn address(text: &str) -> Result<SocketAddr, String> {
    let full = if text.starts_with(':') { format!("0.0.0.0{text}") } else { text.to_owned() };
    full.parse().map_err(|_| "is not ADDRESS:PORT, such as :80 or [::]:80".to_owned())
}

fn object_name(text: &str) -> Result<ObjectName, String> {
    match text.split_once('/') {
        Some((namespace, name)) if !namespace.is_empty() && !name.is_empty() && !name.contains('/') => {
            Ok(ObjectName::new(namespace, name))
        }
        _ => Err("is not NAMESPACE/NAME".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses() {
        assert_eq!(address(":80"), Ok("0.0.0.0:80".parse().unwrap()));
        assert_eq!(address("[::]:80"), Ok("[::]:80".parse().unwrap()));
        assert!(address("80").is_err());
    }

    #[test]
    fn names_of_objects() {
        assert_eq!(object_name("a/b"), Ok(ObjectName::new("a", "b")));
        for wrong in ["b", "/b", "a/", "a/b/c"] {
            assert!(object_name(wrong).is_err(), "{wrong}");
        }
    }
}
