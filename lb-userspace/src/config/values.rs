//! The types of the settings. Each is parsed from one string: a flag, an environment variable or a
//! value in the file.

use std::fmt;
use std::ops::RangeInclusive;
use std::str::FromStr;

use clap::builder::PossibleValue;
use http::Uri;
use ipnet::IpNet;
use lb_common::layout::FlowTimeouts;
use lb_datapath::TcAttach;
use lb_model::Algorithm;
use tracing_subscriber::EnvFilter;

use crate::node::addresses::NodePortAddresses;
use crate::node::devices::{AttachMode, DevicePatterns, PodInterfaces};

/// An invalid value. The message completes "invalid value 'X' for KEY: …" and names the accepted
/// values.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ValueError {
    #[error(
        "{0:?} is not a pattern of device names; give patterns like `eth*,ens3` or, for --devices, \
         `auto` (at most 15 characters each, no `/` and no spaces)"
    )]
    DevicePattern(String),
    #[error("{0:?} is not the address of an API server; give URLs like `https://192.0.2.10:6443`")]
    ApiServer(String),
    #[error("{0:?} is not a network; give CIDRs like `10.244.0.0/16,fd00:10:244::/56`")]
    Cidr(String),
    #[error("{0:?} is not `all`, `primary` or a list of CIDRs like `192.168.1.0/24,2001:db8::/64`")]
    NodePortAddresses(String),
    #[error("{0:?} is not `allow`, `deny` or a list of CIDRs like `203.0.113.0/24`")]
    ExternalIps(String),
    #[error(
        "{0:?} is not a port range; give two ports like `61000-65535`, the smaller one first, none \
         below 1024"
    )]
    PortRange(String),
    #[error("{0:?} is not a timeout; give a name and seconds like `udp=60`; the names are {1}")]
    FlowTimeout(String, String),
    #[error("{0}; give a level like `info`, or directives like `info,lb_plan=debug`")]
    LogFilter(String),
}

/// Splits a comma-separated list. Removes spaces around items, and empty items.
fn items(list: &str) -> impl Iterator<Item = &str> {
    list.split(',').map(str::trim).filter(|item| !item.is_empty())
}

/// Option `--api-server`. An empty list selects the address of the kubeconfig or the environment.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ApiServers(pub Vec<Uri>);

impl FromStr for ApiServers {
    type Err = ValueError;

    fn from_str(text: &str) -> Result<Self, ValueError> {
        let server = |item: &str| {
            let url = if item.contains("://") { item.to_owned() } else { format!("https://{item}") };
            let url: Option<Uri> = url.parse().ok();
            let is_server = |url: &Uri| {
                let scheme = matches!(url.scheme_str(), Some("http" | "https"));
                scheme && url.host().is_some_and(|host| !host.is_empty()) && url.query().is_none()
            };
            url.filter(is_server).ok_or_else(|| ValueError::ApiServer(item.to_owned()))
        };
        items(text).map(server).collect::<Result<_, _>>().map(Self)
    }
}

impl FromStr for DevicePatterns {
    type Err = ValueError;

    fn from_str(text: &str) -> Result<Self, ValueError> {
        if text.trim() == "auto" {
            return Ok(Self::Auto);
        }
        let PodInterfaces(patterns) = text.parse()?;
        if patterns.is_empty() {
            return Err(ValueError::DevicePattern(text.to_owned()));
        }
        Ok(Self::Globs(patterns))
    }
}

impl FromStr for PodInterfaces {
    type Err = ValueError;

    fn from_str(text: &str) -> Result<Self, ValueError> {
        let patterns: Vec<String> = items(text).map(str::to_owned).collect();
        // IFNAMSIZ is 16 and includes the final zero byte. The kernel refuses `/` and white space
        // in device names (dev_valid_name, net/core/dev.c).
        let valid =
            |p: &String| p.len() < libc::IFNAMSIZ && !p.contains(|c: char| c == '/' || c.is_whitespace());
        match patterns.iter().find(|pattern| !valid(pattern)) {
            Some(wrong) => Err(ValueError::DevicePattern(wrong.clone())),
            None => Ok(Self(patterns)),
        }
    }
}

impl clap::ValueEnum for AttachMode {
    fn value_variants<'a>() -> &'a [Self] {
        &[Self::Auto, Self::Xdp, Self::Tc]
    }

    fn to_possible_value(&self) -> Option<PossibleValue> {
        Some(match self {
            Self::Auto => PossibleValue::new("auto")
                .help("XDP on devices whose driver delivers complete checksums, tc on all others"),
            Self::Xdp => PossibleValue::new("xdp")
                .help("XDP on every device that supports it; warns if checksums may be incomplete"),
            Self::Tc => PossibleValue::new("tc").help("tc only"),
        })
    }
}

/// Option `--socket-hooks`: the processes whose connections are translated at the socket.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SocketHooks {
    All,
    Host,
    Off,
}

impl clap::ValueEnum for SocketHooks {
    fn value_variants<'a>() -> &'a [Self] {
        &[Self::All, Self::Host, Self::Off]
    }

    fn to_possible_value(&self) -> Option<PossibleValue> {
        Some(match self {
            Self::All => PossibleValue::new("all").help("all processes in the cgroup, including pods"),
            Self::Host => PossibleValue::new("host")
                .help("only processes of the node, for a service mesh; needs --pod-interfaces"),
            Self::Off => PossibleValue::new("off").help("none: processes of the node cannot reach Services"),
        })
    }
}

/// Option `--forward`: how translated packets are forwarded to other nodes and to clients.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ForwardMode {
    Auto,
    Stack,
    Fast,
}

impl clap::ValueEnum for ForwardMode {
    fn value_variants<'a>() -> &'a [Self] {
        &[Self::Auto, Self::Stack, Self::Fast]
    }

    fn to_possible_value(&self) -> Option<PossibleValue> {
        Some(match self {
            Self::Auto => PossibleValue::new("auto")
                .help("by the kernel to networks for which IPsec policies exist, otherwise by the programs"),
            Self::Stack => PossibleValue::new("stack").help("by the kernel"),
            Self::Fast => PossibleValue::new("fast").help("by the programs, in spite of IPsec policies"),
        })
    }
}

/// Option `--tc-attach`: how tc programs are attached.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TcAttachMode {
    Auto,
    Tcx,
    Clsact,
}

impl From<TcAttachMode> for TcAttach {
    fn from(mode: TcAttachMode) -> Self {
        match mode {
            TcAttachMode::Auto => Self::Auto,
            TcAttachMode::Tcx => Self::Tcx,
            TcAttachMode::Clsact => Self::Clsact,
        }
    }
}

impl clap::ValueEnum for TcAttachMode {
    fn value_variants<'a>() -> &'a [Self] {
        &[Self::Auto, Self::Tcx, Self::Clsact]
    }

    fn to_possible_value(&self) -> Option<PossibleValue> {
        Some(match self {
            Self::Auto => PossibleValue::new("auto")
                .help("tcx if the kernel supports it (since Linux 6.6), otherwise clsact"),
            Self::Tcx => PossibleValue::new("tcx").help("links that run before the programs of others"),
            Self::Clsact => {
                PossibleValue::new("clsact").help("filters with priority 1, as older CNI plugins use them")
            }
        })
    }
}

/// Option `--terminate-sockets`: connected sockets that are closed when their endpoint is removed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TerminateSockets {
    None,
    Udp,
    All,
}

impl clap::ValueEnum for TerminateSockets {
    fn value_variants<'a>() -> &'a [Self] {
        &[Self::None, Self::Udp, Self::All]
    }

    fn to_possible_value(&self) -> Option<PossibleValue> {
        Some(match self {
            Self::None => {
                PossibleValue::new("none").help("no sockets: the application waits until its own timeout")
            }
            Self::Udp => PossibleValue::new("udp")
                .help("UDP sockets: UDP does not detect that the endpoint was removed"),
            Self::All => PossibleValue::new("all").help("UDP and TCP sockets, so that clients fail fast"),
        })
    }
}

/// A list of IPv4 and IPv6 networks.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Cidrs(pub Vec<IpNet>);

impl FromStr for Cidrs {
    type Err = ValueError;

    fn from_str(text: &str) -> Result<Self, ValueError> {
        items(text)
            .map(|item| item.parse().map_err(|_| ValueError::Cidr(item.to_owned())))
            .collect::<Result<_, _>>()
            .map(Self)
    }
}

impl FromStr for NodePortAddresses {
    type Err = ValueError;

    fn from_str(text: &str) -> Result<Self, ValueError> {
        match text.trim() {
            "all" => Ok(Self::All),
            "primary" => Ok(Self::Primary),
            list => match list.parse::<Cidrs>() {
                Ok(Cidrs(networks)) if !networks.is_empty() => Ok(Self::Within(networks)),
                _ => Err(ValueError::NodePortAddresses(text.to_owned())),
            },
        }
    }
}

/// Option `--algorithm`: how endpoints are selected for Services that choose no algorithm.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DefaultAlgorithm(pub Algorithm);

impl clap::ValueEnum for DefaultAlgorithm {
    fn value_variants<'a>() -> &'a [Self] {
        const ALL: [DefaultAlgorithm; Algorithm::ALL.len()] = {
            let mut all = [DefaultAlgorithm(Algorithm::Random); Algorithm::ALL.len()];
            let mut index = 0;
            while index < all.len() {
                all[index] = DefaultAlgorithm(Algorithm::ALL[index]);
                index += 1;
            }
            all
        };
        &ALL
    }

    fn to_possible_value(&self) -> Option<PossibleValue> {
        let help = match self.0 {
            Algorithm::Random => "at random, in proportion to the weights",
            Algorithm::RoundRobin => "one after the other",
            Algorithm::WeightedRoundRobin => "one after the other, in proportion to the weights",
            Algorithm::SourceHash => "by a hash of the client's address",
            Algorithm::DestinationHash => "by a hash of the Service's address",
            Algorithm::Maglev => {
                "by a hash of the client's address that moves few clients when endpoints change"
            }
            Algorithm::Failover => "the endpoint with the greatest weight",
            Algorithm::LeastConnections => "the endpoint with the fewest connections",
            Algorithm::WeightedLeastConnections => "the endpoint with the fewest connections for its weight",
            Algorithm::ShortestExpectedDelay => {
                "the endpoint with the fewest active connections for its weight, the new one included"
            }
            Algorithm::NeverQueue => "an endpoint without active connections, otherwise as sed",
            Algorithm::Overflow => {
                "the endpoint with the greatest weight that has no more active connections than its weight"
            }
            Algorithm::TwoChoices => "of two endpoints at random, the one with fewer connections",
        };
        Some(PossibleValue::new(self.0.name()).help(help))
    }
}

/// Option `--external-ips`: which `spec.externalIPs` of Services are served. Users who may create a
/// Service can claim any address (CVE-2020-8554).
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ExternalIps {
    Allow,
    Deny,
    Within(Vec<IpNet>),
}

impl FromStr for ExternalIps {
    type Err = ValueError;

    fn from_str(text: &str) -> Result<Self, ValueError> {
        match text.trim() {
            "allow" => Ok(Self::Allow),
            "deny" => Ok(Self::Deny),
            list => match list.parse::<Cidrs>() {
                Ok(Cidrs(networks)) if !networks.is_empty() => Ok(Self::Within(networks)),
                _ => Err(ValueError::ExternalIps(text.to_owned())),
            },
        }
    }
}

/// Option `--snat-ports`: the ports for rewritten sources.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PortRange(pub RangeInclusive<u16>);

impl FromStr for PortRange {
    type Err = ValueError;

    fn from_str(text: &str) -> Result<Self, ValueError> {
        text.split_once('-')
            .and_then(|(first, last)| Some(first.trim().parse().ok()?..=last.trim().parse().ok()?))
            .filter(|range| *range.start() >= 1024 && !range.is_empty())
            .map(Self)
            .ok_or_else(|| ValueError::PortRange(text.to_owned()))
    }
}

/// Option `--flow-timeouts`: the default timeouts, with the changes of the operator.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FlowTimeoutList(FlowTimeouts);

impl FlowTimeoutList {
    /// Returns all timeouts, in seconds.
    pub fn seconds(self) -> FlowTimeouts {
        self.0
    }

    /// Returns the names of the timeouts on the command line, with their values.
    fn named(timeouts: &mut FlowTimeouts) -> [(&'static str, &mut u32); 11] {
        let FlowTimeouts {
            tcp_syn,
            tcp_established,
            tcp_half_closed,
            tcp_time_wait,
            tcp_reset,
            udp_unreplied,
            udp,
            udp_stream,
            sctp_opening,
            sctp_established,
            sctp_closed,
        } = timeouts;
        [
            ("tcp-syn", tcp_syn),
            ("tcp", tcp_established),
            ("tcp-close-wait", tcp_half_closed),
            ("tcpfin", tcp_time_wait),
            ("tcp-close", tcp_reset),
            ("udp-unreplied", udp_unreplied),
            ("udp", udp),
            ("udp-stream", udp_stream),
            ("sctp-init", sctp_opening),
            ("sctp", sctp_established),
            ("sctp-closed", sctp_closed),
        ]
    }
}

impl FromStr for FlowTimeoutList {
    type Err = ValueError;

    fn from_str(text: &str) -> Result<Self, ValueError> {
        let mut timeouts = FlowTimeouts::DEFAULT;
        for item in items(text) {
            let mut named = Self::named(&mut timeouts);
            let setting = item.split_once('=').and_then(|(name, seconds)| {
                let seconds = seconds.trim().parse().ok().filter(|seconds| *seconds > 0)?;
                Some((named.iter_mut().find(|(known, _)| *known == name.trim())?, seconds))
            });
            match setting {
                Some(((_, value), seconds)) => **value = seconds,
                None => {
                    let names = named.map(|(name, _)| name).join(", ");
                    return Err(ValueError::FlowTimeout(item.to_owned(), names));
                }
            }
        }
        Ok(Self(timeouts))
    }
}

/// Option `--log-level`: a level, or directives for `tracing_subscriber::EnvFilter`. They are
/// valid.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LogFilter(String);

/// The crates to which a plain level applies.
const OWN_CRATES: [&str; 6] =
    ["lb_datapath", "lb_ingress", "lb_model", "lb_objects", "lb_plan", "lb_userspace"];

const LEVELS: [&str; 6] = ["off", "error", "warn", "info", "debug", "trace"];

impl LogFilter {
    /// Returns the level or the directives as they were given.
    pub fn text(&self) -> &str {
        &self.0
    }

    pub fn to_env_filter(&self) -> EnvFilter {
        EnvFilter::new(self.directives())
    }

    /// Returns the directives for the filter. A plain level applies to the crates of this project,
    /// not to the libraries. The API client is silenced: it logs failed requests without their
    /// purpose, and the sources log them with it. All lines of the kernel programs pass: they have
    /// a level of their own (`--datapath-log`).
    fn directives(&self) -> String {
        let text = self.0.trim();
        let plain = match text {
            "off" => text.to_owned(),
            level if LEVELS.contains(&level) => {
                let own = OWN_CRATES.map(|name| format!("{name}={level}")).join(",");
                format!("error,kube_client=off,{own}")
            }
            directives => directives.to_owned(),
        };
        format!("lb_ebpf=trace,{plain}")
    }
}

impl fmt::Display for LogFilter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl FromStr for LogFilter {
    type Err = ValueError;

    fn from_str(text: &str) -> Result<Self, ValueError> {
        // EnvFilter would take a word that is no level for the name of a module.
        if let Some(word) = items(text).find(|item| !item.contains('=') && !LEVELS.contains(item)) {
            return Err(ValueError::LogFilter(format!("{word:?} is not a log level")));
        }
        match EnvFilter::try_new(text) {
            Ok(_) => Ok(Self(text.to_owned())),
            Err(error) => Err(ValueError::LogFilter(error.to_string())),
        }
    }
}

/// Option `--log-format`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum LogFormat {
    /// Text for people
    Text,
    /// JSON objects for programs
    Json,
}

/// Option `--datapath-log`: the log level of the kernel programs. Logging costs time for each
/// packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, clap::ValueEnum)]
pub enum DatapathLogLevel {
    Off,
    Error,
    Warn,
    Info,
    Debug,
    Trace,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn api_servers_are_urls() {
        let urls = |text: &str| {
            text.parse::<ApiServers>().map(|servers| servers.0.iter().map(Uri::to_string).collect::<Vec<_>>())
        };
        assert_eq!(urls(""), Ok(vec![]));
        assert_eq!(
            urls("https://192.0.2.10:6443, [2001:db8::1]:6443,api.example.com"),
            Ok(vec![
                "https://192.0.2.10:6443/".to_owned(),
                "https://[2001:db8::1]:6443/".to_owned(),
                "https://api.example.com/".to_owned(),
            ])
        );
        for wrong in ["ftp://192.0.2.10", "https://", "https://a b", "https://a?b=c"] {
            assert_eq!(urls(wrong), Err(ValueError::ApiServer(wrong.to_owned())), "{wrong}");
        }
    }

    #[test]
    fn devices_are_auto_or_patterns() {
        assert_eq!("auto".parse(), Ok(DevicePatterns::Auto));
        assert_eq!("eth*, ens3,".parse(), Ok(DevicePatterns::Globs(vec!["eth*".into(), "ens3".into()])));
        for wrong in ["", ",", "a/b", "a b", "sixteencharacter"] {
            assert!(
                matches!(wrong.parse::<DevicePatterns>(), Err(ValueError::DevicePattern(_))),
                "{wrong:?}"
            );
        }
    }

    #[test]
    fn pod_interfaces_are_patterns_or_none() {
        assert_eq!("".parse(), Ok(PodInterfaces::default()));
        assert_eq!("cali*,tap?".parse(), Ok(PodInterfaces(vec!["cali*".into(), "tap?".into()])));
        assert!("a/b".parse::<PodInterfaces>().is_err());
    }

    #[test]
    fn networks_of_both_families() {
        let Cidrs(networks) = "10.244.0.0/16, fd00::/8".parse().unwrap();
        assert_eq!(networks.iter().map(IpNet::to_string).collect::<Vec<_>>(), ["10.244.0.0/16", "fd00::/8"]);
        assert_eq!("".parse(), Ok(Cidrs(vec![])));
        assert_eq!("10.0.0.0/8,10.0.0.0/33".parse::<Cidrs>(), Err(ValueError::Cidr("10.0.0.0/33".into())));
        assert_eq!("10.0.0.1".parse::<Cidrs>(), Err(ValueError::Cidr("10.0.0.1".into())));
    }

    #[test]
    fn keywords_and_networks() {
        assert_eq!("all".parse(), Ok(NodePortAddresses::All));
        assert_eq!("primary".parse(), Ok(NodePortAddresses::Primary));
        assert!(matches!("192.168.0.0/16".parse(), Ok(NodePortAddresses::Within(n)) if n.len() == 1));
        assert!("".parse::<NodePortAddresses>().is_err());
        assert!("primary,10.0.0.0/8".parse::<NodePortAddresses>().is_err());
        assert_eq!("deny".parse(), Ok(ExternalIps::Deny));
        assert!("everything".parse::<ExternalIps>().unwrap_err().to_string().contains("`allow`, `deny`"));
    }

    #[test]
    fn port_ranges() {
        assert_eq!("61000-65535".parse(), Ok(PortRange(61000..=65535)));
        assert_eq!("2000 - 2000".parse(), Ok(PortRange(2000..=2000)));
        for wrong in ["61000", "65535-61000", "80-2000", "61000-65536", "-", "a-b"] {
            assert_eq!(wrong.parse::<PortRange>(), Err(ValueError::PortRange(wrong.into())));
        }
    }

    #[test]
    fn flow_timeouts_replace_defaults_by_name() {
        let seconds = |text: &str| text.parse::<FlowTimeoutList>().unwrap().seconds();
        assert_eq!(seconds(""), FlowTimeouts::DEFAULT);
        let expected =
            FlowTimeouts { udp: 60, tcp_time_wait: 30, tcp_established: 7_200, ..FlowTimeouts::DEFAULT };
        assert_eq!(seconds("udp=60, tcpfin=30,tcp=7200"), expected);
        for wrong in ["udp", "udp=0", "udp=-1", "udp=a", "icmp=3", "=3"] {
            let error = wrong.parse::<FlowTimeoutList>().unwrap_err().to_string();
            assert!(error.contains(wrong) && error.contains("sctp-closed"), "{error}");
        }
    }

    #[test]
    fn a_plain_level_applies_to_own_crates() {
        let directives = |text: &str| text.parse::<LogFilter>().unwrap().directives();
        assert_eq!(
            directives("debug"),
            "lb_ebpf=trace,error,kube_client=off,lb_datapath=debug,lb_ingress=debug,lb_model=debug,\
             lb_objects=debug,lb_plan=debug,lb_userspace=debug"
        );
        assert!(directives("error").ends_with(",lb_userspace=error"));
        assert_eq!(directives("off"), "lb_ebpf=trace,off");
        assert_eq!(directives("debug,kube=info"), "lb_ebpf=trace,debug,kube=info");
    }

    #[test]
    fn log_levels_and_directives() {
        assert_eq!("info,lb_plan=debug".parse::<LogFilter>().unwrap().to_string(), "info,lb_plan=debug");
        assert!("inof".parse::<LogFilter>().unwrap_err().to_string().contains("\"inof\" is not a log level"));
        assert!("info,x=loud".parse::<LogFilter>().is_err());
    }
}
