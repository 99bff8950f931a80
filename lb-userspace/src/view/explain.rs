//! `lb explain`: puts the record of a program into words.
//!
//! **Invariant:** this code decides nothing. All decisions are in the record.

use std::collections::{BTreeSet, HashMap};
use std::fmt::Write as _;
use std::net::SocketAddr;

use lb_common::layout::{Record, backend_flags, kind, record_client, record_source, service_flags};
use lb_common::load::{Connections, SAMPLE};
use lb_common::reason::{Outcome, Reason};
use lb_datapath::apply::max_age_of;
use lb_datapath::attachments::is_own_program;
use lb_datapath::{Recorded, TestRun};
use lb_model::{Algorithm, IpFamily};
use serde::Serialize;

use super::doctor::DevicePrograms;
use super::output::OutputError;
use super::service_port::{BackendsById, NamedServicePort, Names};
use crate::probe::origin::{Hook, Origin};
use crate::probe::packet::{ProbePacket, rewritten_addresses};

/// Option `-o` of `lb explain`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, clap::ValueEnum)]
pub enum ExplanationFormat {
    /// Text for people
    #[default]
    Table,
    /// A JSON object
    Json,
    /// The same object as YAML
    Yaml,
}

/// The data for an [`Explanation`].
#[derive(Debug)]
pub struct Observation<'a> {
    pub packet: &'a ProbePacket,
    pub origin: &'a Origin,
    pub recorded: &'a Recorded,
    /// Median duration of a run.
    pub nanoseconds: u32,
    pub names: &'a Names,
    pub backends: &'a BackendsById,
    /// Backend ids in the slots of the record.
    pub slots: &'a [u32],
    /// The open connections of endpoints.
    pub loads: &'a HashMap<(IpFamily, u32), Connections>,
    /// Name of the device through which the packet leaves.
    pub device: Option<String>,
    /// The programs at the device that the packet arrives at.
    pub programs: Option<DevicePrograms>,
    /// Whether the source is an address of this node.
    pub source_is_node: bool,
}

/// The result for a packet. This is the object of the JSON and YAML output.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Explanation {
    pub packet: PacketSummary,
    /// `None` if the destination is no Service address.
    pub service: Option<ServiceSummary>,
    /// Endpoints that can get a new connection.
    pub endpoints: Vec<SocketAddr>,
    pub chosen: Option<SocketAddr>,
    pub verdict: ExplainedVerdict,
    /// Label of the counter that a real packet would increment.
    pub reason: Option<&'static str>,
    pub source_rewritten: bool,
    /// The source that the endpoint sees. `None` if the packet does not reach an endpoint.
    pub source_after: Option<String>,
    pub program: &'static str,
    pub nanoseconds: u32,
    /// The device through which the packet leaves the program.
    pub device: Option<String>,
    /// The kernel forwards the translated packet: by its IPsec policies, its firewall and its
    /// rules, or in fragments.
    pub forwarded_by_kernel: bool,
    /// The programs of other owners at the hooks of the device that the packet arrives at.
    pub others: Vec<OtherProgram>,
    pub why: ReasonTexts,
}

#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct OtherProgram {
    pub program: String,
    pub hook: &'static str,
    pub device: String,
    /// Whether it runs before the program of Sluice, and can take the packet.
    pub runs_first: bool,
}

#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct PacketSummary {
    pub protocol: &'static str,
    pub source: String,
    pub destination: String,
    pub from: String,
}

#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct ServiceSummary {
    pub namespace: String,
    pub name: String,
    pub port: u16,
    pub kind: &'static str,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum ExplainedVerdict {
    /// The packet is translated and sent to an endpoint.
    Forward,
    /// The packet stays unchanged.
    Pass,
    /// The sender gets an error.
    Reject,
    Drop,
}

impl ExplainedVerdict {
    fn word(self) -> &'static str {
        match self {
            Self::Forward => "forward",
            Self::Pass => "pass",
            Self::Reject => "reject",
            Self::Drop => "drop",
        }
    }
}

/// The reasons, as text for people.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct ReasonTexts {
    pub from: String,
    pub client: Option<String>,
    pub chosen: Option<String>,
    /// When the connection will be reset.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub age: Option<String>,
    pub verdict: String,
    pub source: Option<String>,
}

/// Return codes of tc programs (include/uapi/linux/pkt_cls.h).
const TC_ACT_SHOT: u32 = 2;
const TC_ACT_REDIRECT: u32 = 7;

/// Index of the loopback device. Packets that the kernel forwards for the programs arrive by it.
const LOOPBACK: u32 = 1;

/// Explains a run.
pub fn explain(observation: &Observation<'_>) -> Explanation {
    let Recorded { program, record, run } = observation.recorded;
    let packet = observation.packet;
    let reason = reason(record);
    let verdict = verdict(run, reason);
    let after = source_after(observation, verdict);
    let family = IpFamily::of(&packet.source.ip());
    let endpoint = |id: u32| {
        let entry = observation.backends.get(&(family, id))?;
        (entry.flags & backend_flags::PRESENT != 0).then_some(entry.address)
    };
    let endpoints: BTreeSet<SocketAddr> = observation.slots.iter().filter_map(|id| endpoint(*id)).collect();
    let chosen = endpoint(record.backend_id);
    Explanation {
        packet: PacketSummary {
            protocol: packet.protocol.name(),
            source: packet.format_address(packet.source),
            destination: packet.format_address(packet.destination),
            from: observation.origin.from.clone(),
        },
        service: (record.service_id != 0).then(|| service_summary(record, observation.names)),
        why: ReasonTexts {
            from: observation.origin.why.clone(),
            client: describe_client(observation),
            chosen: chosen.map(|_| why_chosen(observation, &endpoints)),
            age: max_age_of(record.flags).filter(|_| verdict == ExplainedVerdict::Forward).map(describe_age),
            verdict: why_verdict(observation, verdict, reason),
            source: after
                .filter(|_| verdict == ExplainedVerdict::Forward)
                .map(|after| why_source(observation, after)),
        },
        endpoints: endpoints.into_iter().collect(),
        chosen,
        verdict,
        reason: reason.map(Reason::label),
        source_rewritten: after.is_some_and(|after| after != packet.source),
        source_after: after.map(|after| packet.format_address(after)),
        program,
        nanoseconds: observation.nanoseconds,
        device: observation.device.clone(),
        forwarded_by_kernel: record.ifindex == LOOPBACK && !is_socket(observation),
        others: observation.programs.as_ref().map(others).unwrap_or_default(),
    }
}

/// Returns the programs of other owners at the hooks of a device for packets that arrive. Returns
/// none for a device without programs of Sluice, and for hooks whose programs cannot be listed:
/// `lb doctor` reports these.
fn others(device: &DevicePrograms) -> Vec<OtherProgram> {
    let ingress = device.ingress.as_deref().unwrap_or_default();
    let Some(own) = ingress.iter().position(|program| is_own_program(program)) else { return Vec::new() };
    let other = |program: &String, hook, runs_first| OtherProgram {
        program: program.clone(),
        hook,
        device: device.name.clone(),
        runs_first,
    };
    let xdp = device.xdp.iter().map(|program| ("XDP", program, true));
    let ingress = ingress.iter().enumerate().map(|(n, program)| ("tc ingress", program, n < own));
    xdp.chain(ingress)
        .filter(|(_, program, _)| !is_own_program(program))
        .map(|(hook, program, runs_first)| other(program, hook, runs_first))
        .collect()
}

/// Returns the reason that a real packet would be counted under.
fn reason(record: &Record) -> Option<Reason> {
    let number = record.reason.checked_sub(1)?;
    Reason::ALL.iter().copied().find(|reason| *reason as u32 == number)
}

fn verdict(run: &TestRun, reason: Option<Reason>) -> ExplainedVerdict {
    match (run.return_code, reason.map(Reason::outcome)) {
        (TC_ACT_SHOT, _) => ExplainedVerdict::Drop,
        (_, None | Some(Outcome::Passed | Outcome::Evicted)) => ExplainedVerdict::Pass,
        (_, Some(Outcome::Translated)) => ExplainedVerdict::Forward,
        // The program turned the packet into an error for the sender. The counter may be that of a
        // drop.
        (_, Some(Outcome::Rejected)) | (TC_ACT_REDIRECT, Some(Outcome::Dropped)) => ExplainedVerdict::Reject,
        (_, Some(Outcome::Dropped)) => ExplainedVerdict::Drop,
    }
}

fn is_socket(observation: &Observation<'_>) -> bool {
    matches!(observation.origin.hook, Hook::Socket { .. })
}

/// Returns the source that the endpoint sees.
fn source_after(observation: &Observation<'_>, verdict: ExplainedVerdict) -> Option<SocketAddr> {
    match verdict {
        ExplainedVerdict::Pass => Some(observation.packet.source),
        // The socket program changes only the destination. If the source is a loopback address, the
        // kernel chooses another one for the route to the endpoint.
        ExplainedVerdict::Forward if is_socket(observation) => {
            Some(observation.packet.source).filter(|source| !source.ip().is_loopback())
        }
        ExplainedVerdict::Forward => {
            rewritten_addresses(observation.packet, &observation.recorded.run.packet)
                .map(|(source, _)| source)
        }
        ExplainedVerdict::Reject | ExplainedVerdict::Drop => None,
    }
}

fn service_summary(record: &Record, names: &Names) -> ServiceSummary {
    let NamedServicePort { namespace, name, port, .. } = NamedServicePort::of(record.service_id, names);
    ServiceSummary { namespace, name, port, kind: kind_name(record.kind) }
}

fn kind_name(number: u32) -> &'static str {
    match u8::try_from(number) {
        Ok(kind::CLUSTER_IP) => "ClusterIP",
        Ok(kind::NODE_PORT) => "NodePort",
        Ok(kind::EXTERNAL_IP) => "ExternalIP",
        Ok(kind::LOAD_BALANCER) => "LoadBalancer",
        _ => "?",
    }
}

/// Describes the client: inside or outside the cluster, and what follows for the endpoints.
fn describe_client(observation: &Observation<'_>) -> Option<String> {
    let record = &observation.recorded.record;
    let ip = observation.packet.source.ip();
    let (mut text, local) = match record.client {
        record_client::INSIDE => {
            let because = match (is_socket(observation), observation.source_is_node) {
                (true, _) => "a process of this node or of a pod on this node".to_owned(),
                (false, true) => format!("{ip} is an address of this node"),
                (false, false) => format!("{ip} is an address of a pod"),
            };
            (format!("inside the cluster: {because}"), service_flags::INSIDE_LOCAL)
        }
        record_client::OUTSIDE => (
            format!("outside the cluster: {ip} is not an address of this node or of a pod"),
            service_flags::OUTSIDE_LOCAL,
        ),
        _ => return None,
    };
    if record.flags & local != 0 {
        let policy = if kind_name(record.kind) == "ClusterIP" { "internal" } else { "external" };
        text += &format!("; {policy}TrafficPolicy Local: only endpoints on this node");
    }
    Some(text)
}

fn why_chosen(observation: &Observation<'_>, endpoints: &BTreeSet<SocketAddr>) -> String {
    let record = &observation.recorded.record;
    let mut text = if record.known_flow != 0 {
        return "this connection is open: it keeps its endpoint".into();
    } else if record.by_affinity != 0 {
        return "session affinity: this client used this endpoint last".into();
    } else if endpoints.len() == 1 {
        return "the only endpoint".into();
    } else {
        by_algorithm(observation, endpoints.len())
    };
    let family = IpFamily::of(&observation.packet.source.ip());
    if let Some(left_out) = observation.backends.get(&(family, record.left_out)) {
        text += &format!(
            "; {} was selected first, but is left out: it refuses clients or does not answer them",
            left_out.address
        );
    }
    if let Some(passed_over) = passed_over(observation) {
        text += &format!("; {passed_over}");
    }
    text
}

/// Describes when a connection is reset because of its age. See `agent/connection_ages.rs`.
fn describe_age(seconds: u32) -> String {
    format!(
        "the connection is reset {} to {seconds} s after it was opened (max-connection-age)",
        seconds - seconds / 4
    )
}

/// Names the first endpoint that was passed over because it is overloaded.
fn passed_over(observation: &Observation<'_>) -> Option<String> {
    let family = IpFamily::of(&observation.packet.source.ip());
    let id = observation.recorded.record.overloaded;
    let endpoint = observation.backends.get(&(family, id))?;
    let connections = observation.loads.get(&(family, id)).copied().unwrap_or_default().sum();
    Some(format!(
        "{} is overloaded: it reached its upper threshold and has {connections} connections now",
        endpoint.address
    ))
}

/// Returns how the algorithm has selected the endpoint.
fn by_algorithm(observation: &Observation<'_>, count: usize) -> String {
    let scheduler = u8::try_from(observation.recorded.record.scheduler).ok();
    let algorithm = scheduler.and_then(Algorithm::numbered).unwrap_or_default();
    let rule = match algorithm {
        Algorithm::Random => {
            return format!("one of {count} endpoints at random; another run may choose another one");
        }
        Algorithm::RoundRobin | Algorithm::WeightedRoundRobin => {
            format!("the next of {count} endpoints in turn")
        }
        Algorithm::SourceHash | Algorithm::DestinationHash | Algorithm::Maglev => {
            format!("one of {count} endpoints by a hash: the same one for the same client or address")
        }
        Algorithm::Failover => "the endpoint with the greatest weight".into(),
        Algorithm::LeastConnections => "the fewest connections".into(),
        Algorithm::WeightedLeastConnections => "the fewest connections for the weight".into(),
        Algorithm::ShortestExpectedDelay => "the fewest active connections for the weight".into(),
        Algorithm::NeverQueue => "one without active connections, or the fewest for the weight".into(),
        Algorithm::Overflow => "the greatest weight with no more active connections than the weight".into(),
        Algorithm::TwoChoices => "of two at random, the fewer connections for the weight".into(),
    };
    let compared = if algorithm.compares_connections() { counts(observation) } else { String::new() };
    format!("{algorithm}: {rule}{compared}")
}

/// Returns the connections of the endpoints that the algorithm has compared.
fn counts(observation: &Observation<'_>) -> String {
    let family = IpFamily::of(&observation.packet.source.ip());
    let ids: BTreeSet<u32> = observation.slots.iter().copied().collect();
    let counts: BTreeSet<_> = ids
        .into_iter()
        .filter_map(|id| {
            let endpoint = observation.backends.get(&(family, id))?;
            let load = observation.loads.get(&(family, id)).copied().unwrap_or_default();
            Some((endpoint.address, load.active, load.inactive, endpoint.weight))
        })
        .collect();
    let most = usize::try_from(SAMPLE).unwrap_or(usize::MAX);
    let sampled = if counts.len() > most { format!(", of {most} in a sample") } else { String::new() };
    let listed: Vec<_> = counts
        .into_iter()
        .take(most)
        .map(|(address, active, inactive, weight)| {
            format!("{address} has {active} active and {inactive} inactive, weight {weight}")
        })
        .collect();
    format!("{sampled} ({})", listed.join("; "))
}

fn why_verdict(observation: &Observation<'_>, verdict: ExplainedVerdict, reason: Option<Reason>) -> String {
    let Some(reason) = reason else {
        return "no Service has this address and port, and no open connection has these addresses".into();
    };
    let mut text = reason.describe().trim().to_owned();
    if let Some(passed_over) = passed_over(observation)
        && observation.recorded.record.backend_id == 0
    {
        text += &format!(" {passed_over}.");
    }
    if is_socket(observation) && matches!(verdict, ExplainedVerdict::Reject | ExplainedVerdict::Drop) {
        text += &format!(" The call fails at once with {}.", reason.errno().name());
    }
    text
}

fn why_source(observation: &Observation<'_>, after: SocketAddr) -> String {
    let record = &observation.recorded.record;
    let kept = after == observation.packet.source;
    let because = match record.source {
        _ if is_socket(observation) => "the process connects directly to the endpoint",
        _ if record.known_flow != 0 => "as at the start of the connection",
        record_source::KEPT_ENDPOINT_HERE | record_source::KEPT_CLIENT_HERE if !kept => {
            "another connection from this source port to the endpoint is open"
        }
        record_source::KEPT_ENDPOINT_HERE => {
            "the endpoint is on this node, so its reply passes through this node"
        }
        record_source::KEPT_CLIENT_HERE => {
            "the client is on this node, so the reply passes through this node"
        }
        record_source::ENDPOINT_ELSEWHERE => {
            "the endpoint is on another node, and its reply must return to this node"
        }
        record_source::HAIRPIN => {
            "the endpoint is the client itself, and its reply must pass through this node"
        }
        _ => "",
    };
    match (kept, because) {
        (true, "") => "kept".into(),
        (false, "") => "rewritten".into(),
        (true, because) => format!("kept: {because}"),
        (false, because) => format!("rewritten: {because}"),
    }
}

impl Explanation {
    /// Returns the explanation in the given format.
    pub fn render(&self, format: ExplanationFormat) -> Result<String, OutputError> {
        Ok(match format {
            ExplanationFormat::Json => serde_json::to_string_pretty(self)? + "\n",
            ExplanationFormat::Yaml => serde_saphyr::to_string(self)?,
            ExplanationFormat::Table => self.lines(),
        })
    }

    fn lines(&self) -> String {
        let Self { packet, why, .. } = self;
        let mut text = String::new();
        let mut line = |label: &str, value: String| {
            // Writing to a string does not fail.
            let _ = writeln!(text, "{label:<11}{value}");
        };
        line("PACKET", format!("{} {} to {}", packet.protocol, packet.source, packet.destination));
        line("FROM", format!("{}: {}", packet.from, why.from));
        line(
            "SERVICE",
            match &self.service {
                Some(ServiceSummary { namespace, name, port, kind }) => {
                    format!("{namespace}/{name} port {port}, through its {kind} address")
                }
                None => "none".into(),
            },
        );
        if let Some(client) = &why.client {
            line("CLIENT", client.clone());
        }
        if self.service.is_some() {
            let endpoints: Vec<_> = self.endpoints.iter().map(SocketAddr::to_string).collect();
            let none = endpoints.is_empty();
            line("ENDPOINTS", if none { "none is eligible".into() } else { endpoints.join(", ") });
        }
        if let (Some(chosen), Some(why)) = (self.chosen, &why.chosen) {
            line("CHOSEN", format!("{chosen}: {why}"));
        }
        if let Some(age) = &why.age {
            line("AGE", age.clone());
        }
        let reason = self.reason.map(|reason| format!(" ({reason})")).unwrap_or_default();
        line("VERDICT", format!("{}{reason}: {}", self.verdict.word(), why.verdict));
        if let (Some(after), Some(why)) = (&self.source_after, &why.source) {
            line("SOURCE", format!("{after}, {why}"));
        }
        match &self.device {
            Some(device) if self.forwarded_by_kernel => {
                line(
                    "EGRESS",
                    format!("{device}, from where the kernel forwards it (--forward, or in fragments)"),
                );
            }
            Some(device) => line("EGRESS", device.clone()),
            None => {}
        }
        for OtherProgram { program, hook, device, runs_first } in &self.others {
            let order = match (*hook, *runs_first) {
                ("XDP", _) => "before the program of Sluice, and can take the packet",
                (_, true) => "before the tc program of Sluice, and can take packets that reach tc",
                (_, false) => "after the tc program of Sluice",
            };
            line("OTHERS", format!("{program}, at {hook} of {device}: runs {order}"));
        }
        line("RUN", format!("{} in {} ns", self.program, self.nanoseconds));
        text
    }
}

#[cfg(test)]
mod tests {
    use super::super::fixture;
    use super::*;
    use crate::probe::packet::{AddressArg, PacketProtocol};
    use crate::testing::assert_golden;

    const SOURCE: &str = "10.10.0.1";
    const TC_ACT_UNSPEC: u32 = u32::MAX;

    fn packet(protocol: PacketProtocol, source: &str, destination: &str) -> ProbePacket {
        let argument = |text: &str| text.parse::<AddressArg>().unwrap();
        ProbePacket::new(protocol, argument(source), argument(destination)).unwrap()
    }

    /// Returns the explanation of a packet to `default/web`. The program returns `return_code` and
    /// `record`, and changes the packet to `after`.
    fn explained(packet: &ProbePacket, after: &ProbePacket, return_code: u32, record: Record) -> Explanation {
        let origin = match record.netns_cookie {
            netns_cookie @ 1.. => Origin {
                from: "pod".into(),
                hook: Hook::Socket { netns_cookie },
                why: "--in pod: a process there calls connect".into(),
            },
            0 => Origin {
                from: "external".into(),
                hook: Hook::Device { ifindex: 2 },
                why: "--in external; arrives at eth0, the device on the route to it".into(),
            },
        };
        let program = if record.netns_cookie == 0 { "lb_tc_ingress" } else { "lb_explain_call" };
        let run = TestRun { return_code, packet: after.build(), nanoseconds: 999 };
        let slots = if record.slot_count > 0 { &[1, 2, 1][..] } else { &[] };
        explain(&Observation {
            packet,
            origin: &origin,
            recorded: &Recorded { program, record, run },
            nanoseconds: 250,
            names: &fixture::names(),
            backends: &fixture::backends(),
            slots,
            loads: &HashMap::from([((IpFamily::V4, 1), Connections { active: 3, inactive: 1 })]),
            device: (record.ifindex != 0).then(|| "eth0".into()),
            programs: None,
            source_is_node: false,
        })
    }

    fn counted(reason: Reason) -> Record {
        Record { reason: reason as u32 + 1, ..Record::default() }
    }

    /// A request to a NodePort, forwarded to an endpoint on another node.
    fn forwarded() -> Explanation {
        let asked = packet(PacketProtocol::Tcp, SOURCE, "10.10.0.11:30088");
        let after = packet(PacketProtocol::Tcp, "10.10.0.11:61234", "10.244.2.2:8080");
        let record = Record {
            service_id: 1,
            kind: kind::NODE_PORT.into(),
            flags: 3_600 << service_flags::MAX_AGE_SHIFT,
            client: record_client::OUTSIDE,
            slot_count: 3,
            backend_id: 2,
            source: record_source::ENDPOINT_ELSEWHERE,
            ifindex: 2,
            ..counted(Reason::Forwarded)
        };
        explained(&asked, &after, TC_ACT_REDIRECT, record)
    }

    #[test]
    fn programs_of_other_owners_are_named_with_their_order() {
        let names = |names: &[&str]| names.iter().copied().map(str::to_owned).collect();
        let device = DevicePrograms {
            name: "eth0".into(),
            xdp: Some("xdp_dispatcher".into()),
            ingress: Ok(names(&["guard", "lb_tc_ingress", "cil_from_netdev"])),
            egress: Ok(names(&["lb_tc_egress", "cil_to_netdev"])),
        };
        let text = Explanation { others: others(&device), ..forwarded() };
        let text = text.render(ExplanationFormat::Table).unwrap();
        let lines: Vec<_> = text.lines().filter(|line| line.starts_with("OTHERS")).collect();
        assert_eq!(
            lines,
            [
                "OTHERS     xdp_dispatcher, at XDP of eth0: runs before the program of Sluice, and can take \
                 the packet",
                "OTHERS     guard, at tc ingress of eth0: runs before the tc program of Sluice, and can take \
                 packets that reach tc",
                "OTHERS     cil_from_netdev, at tc ingress of eth0: runs after the tc program of Sluice",
            ]
        );
        let without_ours = DevicePrograms { ingress: Ok(names(&["cil_from_netdev"])), ..device };
        assert_eq!(others(&without_ours), []);
    }

    #[test]
    fn table() {
        assert_golden("explain.txt", &forwarded().render(ExplanationFormat::Table).unwrap());
    }

    #[test]
    fn a_packet_that_the_kernel_forwards() {
        let asked = packet(PacketProtocol::Tcp, SOURCE, "10.10.0.11:30088");
        let after = packet(PacketProtocol::Tcp, "10.10.0.11:61234", "10.244.2.2:8080");
        let record = Record { ifindex: LOOPBACK, ..counted(Reason::Forwarded) };
        let explanation = explained(&asked, &after, TC_ACT_REDIRECT, record);
        assert!(explanation.forwarded_by_kernel && !forwarded().forwarded_by_kernel);
        let text = explanation.render(ExplanationFormat::Table).unwrap();
        assert!(text.contains("from where the kernel forwards it"), "{text}");
    }

    #[test]
    fn json() {
        assert_golden("explain.json", &forwarded().render(ExplanationFormat::Json).unwrap());
    }

    #[test]
    fn yaml() {
        assert_golden("explain.yaml", &forwarded().render(ExplanationFormat::Yaml).unwrap());
    }

    #[test]
    fn table_of_a_call_at_a_socket() {
        let asked = packet(PacketProtocol::Udp, "10.244.1.9", "10.96.0.10:53");
        let record = Record {
            netns_cookie: 5,
            service_id: 1,
            kind: kind::CLUSTER_IP.into(),
            flags: service_flags::INSIDE_LOCAL,
            client: record_client::INSIDE,
            slot_count: 3,
            backend_id: 1,
            by_affinity: 1,
            ..counted(Reason::SocketTranslated)
        };
        let explanation = explained(&asked, &asked, TC_ACT_UNSPEC, record);
        assert_eq!(
            (explanation.source_rewritten, explanation.source_after.as_deref()),
            (false, Some("10.244.1.9:40000"))
        );
        assert_golden("explain-socket.txt", &explanation.render(ExplanationFormat::Table).unwrap());
    }

    #[test]
    fn the_algorithm_and_the_counts_that_it_compares() {
        let asked = packet(PacketProtocol::Tcp, SOURCE, "10.10.0.11:30088");
        let after = packet(PacketProtocol::Tcp, "10.10.0.11:61234", "10.244.2.2:8080");
        let chosen = |algorithm: Algorithm, left_out, overloaded| {
            let record = Record {
                service_id: 1,
                slot_count: 3,
                backend_id: 2,
                scheduler: algorithm as u32,
                left_out,
                overloaded,
                ..counted(Reason::Forwarded)
            };
            explained(&asked, &after, TC_ACT_REDIRECT, record).why.chosen.unwrap()
        };
        assert_eq!(
            chosen(Algorithm::LeastConnections, 0, 0),
            "lc: the fewest connections (10.244.1.2:8080 has 3 active and 1 inactive, weight 1; \
             10.244.2.2:8080 has 0 active and 0 inactive, weight 1)"
        );
        assert_eq!(
            chosen(Algorithm::RoundRobin, 1, 0),
            "rr: the next of 2 endpoints in turn; 10.244.1.2:8080 was selected first, but is left out: \
             it refuses clients or does not answer them"
        );
        assert_eq!(
            chosen(Algorithm::RoundRobin, 0, 1),
            "rr: the next of 2 endpoints in turn; 10.244.1.2:8080 is overloaded: it reached its upper \
             threshold and has 4 connections now"
        );
    }

    #[test]
    fn a_refusal_by_thresholds_names_an_endpoint() {
        let asked = packet(PacketProtocol::Tcp, SOURCE, "10.10.0.11:30088");
        let record =
            Record { service_id: 1, slot_count: 3, overloaded: 1, ..counted(Reason::NoEndpointRejected) };
        let verdict = explained(&asked, &asked, TC_ACT_REDIRECT, record).why.verdict;
        assert!(verdict.contains("10.244.1.2:8080 is overloaded"), "{verdict}");
    }

    #[test]
    fn table_of_a_call_that_is_refused_at_a_socket() {
        let asked = packet(PacketProtocol::Tcp, "10.244.1.9", "10.96.0.10:80");
        let record = Record {
            netns_cookie: 5,
            service_id: 1,
            kind: kind::CLUSTER_IP.into(),
            client: record_client::INSIDE,
            ..counted(Reason::SocketRefused)
        };
        assert_golden(
            "explain-refused.txt",
            &explained(&asked, &asked, TC_ACT_UNSPEC, record).render(ExplanationFormat::Table).unwrap(),
        );
    }

    #[test]
    fn table_of_a_packet_to_no_service() {
        let asked = packet(PacketProtocol::Icmp, SOURCE, "10.10.0.11");
        let explanation = explained(&asked, &asked, TC_ACT_UNSPEC, Record::default());
        assert_golden("explain-pass.txt", &explanation.render(ExplanationFormat::Table).unwrap());
    }

    #[test]
    fn verdicts_follow_from_the_reason_and_the_return_code() {
        let asked = packet(PacketProtocol::Tcp, SOURCE, "10.96.0.10:80");
        let verdict = |return_code, reason| explained(&asked, &asked, return_code, counted(reason)).verdict;
        assert_eq!(verdict(TC_ACT_UNSPEC, Reason::Delivered), ExplainedVerdict::Forward);
        assert_eq!(verdict(TC_ACT_UNSPEC, Reason::NotOpening), ExplainedVerdict::Pass);
        assert_eq!(verdict(TC_ACT_SHOT, Reason::NoRoute), ExplainedVerdict::Drop);
        assert_eq!(verdict(TC_ACT_REDIRECT, Reason::NoEndpointRejected), ExplainedVerdict::Reject);
        // The sender gets an error, although the packet counts as dropped.
        assert_eq!(verdict(TC_ACT_REDIRECT, Reason::TtlExpired), ExplainedVerdict::Reject);
        // A socket program sends no error: the call fails.
        assert_eq!(verdict(TC_ACT_UNSPEC, Reason::SourceRange), ExplainedVerdict::Drop);
    }

    #[test]
    fn an_open_connection_keeps_its_endpoint() {
        let asked = packet(PacketProtocol::Tcp, SOURCE, "10.10.0.11:30088");
        let after = packet(PacketProtocol::Tcp, SOURCE, "10.244.1.2:8080");
        let record = Record { known_flow: 1, service_id: 1, backend_id: 1, ..counted(Reason::Delivered) };
        let explanation = explained(&asked, &after, TC_ACT_UNSPEC, record);
        assert_eq!(explanation.why.chosen.as_deref(), Some("this connection is open: it keeps its endpoint"));
        assert!(!explanation.source_rewritten);
    }
}
