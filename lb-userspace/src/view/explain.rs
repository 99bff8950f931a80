//! `lb explain`: what a recording program decided, in words. It is put into words here, and nothing is decided.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::net::SocketAddr;

use lb_common::layout::{Record, backend_flags, kind, record_client, record_source, service_flags};
use lb_common::reason::{Outcome, Reason};
use lb_datapath::{Recorded, TestRun};
use lb_model::IpFamily;
use serde::Serialize;

use super::output::OutputError;
use super::service_port::{Backends, Names, ServicePort};
use crate::probe::origin::{Hook, Origin};
use crate::probe::packet::{Packet, ends};

/// `-o`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, clap::ValueEnum)]
pub enum Format {
    /// Lines for people
    #[default]
    Table,
    /// An object
    Json,
    /// The same object as YAML
    Yaml,
}

/// Everything that an explanation is made of.
#[derive(Debug)]
pub struct Observation<'a> {
    pub packet: &'a Packet,
    pub origin: &'a Origin,
    pub recorded: &'a Recorded,
    /// How long a run takes.
    pub nanoseconds: u32,
    pub names: &'a Names,
    pub backends: &'a Backends,
    /// Backend ids in the slots of the record.
    pub slots: &'a [u32],
    /// Name of the device that the packet leaves by.
    pub device: Option<String>,
    /// The source is an address of this node.
    pub source_is_node: bool,
}

/// What becomes of a packet. The object of the JSON and YAML output.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Explanation {
    pub packet: Asked,
    pub service: Option<Service>,
    /// Who may get a new connection.
    pub endpoints: Vec<SocketAddr>,
    pub chosen: Option<SocketAddr>,
    pub verdict: Verdict,
    /// Label of what would be counted.
    pub reason: Option<&'static str>,
    pub source_rewritten: bool,
    /// The source that the endpoint sees; nothing if no packet gets there.
    pub source_after: Option<String>,
    pub program: &'static str,
    pub nanoseconds: u32,
    /// The device that the packet leaves by.
    pub device: Option<String>,
    pub why: Why,
}

#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Asked {
    pub protocol: &'static str,
    pub source: String,
    pub destination: String,
    pub from: String,
}

#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Service {
    pub namespace: String,
    pub name: String,
    pub port: u16,
    pub kind: &'static str,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Verdict {
    /// Translated.
    Forward,
    /// Left as it is.
    Pass,
    /// Answered with an error.
    Reject,
    Drop,
}

impl Verdict {
    fn word(self) -> &'static str {
        match self {
            Self::Forward => "forward",
            Self::Pass => "pass",
            Self::Reject => "reject",
            Self::Drop => "drop",
        }
    }
}

/// Sentences for people.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Why {
    pub from: String,
    pub client: Option<String>,
    pub chosen: Option<String>,
    pub verdict: String,
    pub source: Option<String>,
}

/// Return codes of tc programs (include/uapi/linux/pkt_cls.h).
const TC_ACT_SHOT: u32 = 2;
const TC_ACT_REDIRECT: u32 = 7;

/// Puts a run into words.
pub fn explain(seen: &Observation<'_>) -> Explanation {
    let Recorded { program, record, run } = seen.recorded;
    let packet = seen.packet;
    let reason = reason(record);
    let verdict = verdict(run, reason);
    let after = source_after(seen, verdict);
    let family = IpFamily::of(&packet.source.ip());
    let endpoint = |id: u32| {
        let entry = seen.backends.get(&(family, id))?;
        (entry.flags & backend_flags::PRESENT != 0).then_some(entry.address)
    };
    let endpoints: BTreeSet<SocketAddr> = seen.slots.iter().filter_map(|id| endpoint(*id)).collect();
    let chosen = endpoint(record.backend_id);
    Explanation {
        packet: Asked {
            protocol: packet.protocol.name(),
            source: packet.end(packet.source),
            destination: packet.end(packet.destination),
            from: seen.origin.from.clone(),
        },
        service: (record.service_id != 0).then(|| service(record, seen.names)),
        why: Why {
            from: seen.origin.why.clone(),
            client: client(seen),
            chosen: chosen.map(|_| why_chosen(record, endpoints.len())),
            verdict: why_verdict(seen, verdict, reason),
            source: after.filter(|_| verdict == Verdict::Forward).map(|after| why_source(seen, after)),
        },
        endpoints: endpoints.into_iter().collect(),
        chosen,
        verdict,
        reason: reason.map(Reason::label),
        source_rewritten: after.is_some_and(|after| after != packet.source),
        source_after: after.map(|after| packet.end(after)),
        program,
        nanoseconds: seen.nanoseconds,
        device: seen.device.clone(),
    }
}

/// What would be counted last.
fn reason(record: &Record) -> Option<Reason> {
    let number = record.reason.checked_sub(1)?;
    Reason::ALL.iter().copied().find(|reason| *reason as u32 == number)
}

fn verdict(run: &TestRun, reason: Option<Reason>) -> Verdict {
    match (run.return_code, reason.map(Reason::outcome)) {
        (TC_ACT_SHOT, _) => Verdict::Drop,
        (_, None | Some(Outcome::Passed | Outcome::Evicted)) => Verdict::Pass,
        (_, Some(Outcome::Translated)) => Verdict::Forward,
        // An answer was made of it and sent, whatever it is counted as.
        (_, Some(Outcome::Rejected)) | (TC_ACT_REDIRECT, Some(Outcome::Dropped)) => Verdict::Reject,
        (_, Some(Outcome::Dropped)) => Verdict::Drop,
    }
}

fn is_socket(seen: &Observation<'_>) -> bool {
    matches!(seen.origin.hook, Hook::Socket { .. })
}

fn source_after(seen: &Observation<'_>, verdict: Verdict) -> Option<SocketAddr> {
    match verdict {
        Verdict::Pass => Some(seen.packet.source),
        // The address that the call is given becomes another one; from loopback the kernel then chooses a source for the way there.
        Verdict::Forward if is_socket(seen) => {
            Some(seen.packet.source).filter(|source| !source.ip().is_loopback())
        }
        Verdict::Forward => ends(seen.packet, &seen.recorded.run.packet).map(|(source, _)| source),
        Verdict::Reject | Verdict::Drop => None,
    }
}

fn service(record: &Record, names: &Names) -> Service {
    let ServicePort { namespace, name, port, .. } = ServicePort::of(record.service_id, names);
    Service { namespace, name, port, kind: kind_name(record.kind) }
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

/// Who asks, and which endpoints that makes eligible.
fn client(seen: &Observation<'_>) -> Option<String> {
    let record = &seen.recorded.record;
    let ip = seen.packet.source.ip();
    let (mut text, local) = match record.client {
        record_client::INSIDE => {
            let because = match (is_socket(seen), seen.source_is_node) {
                (true, _) => "a process of this node or of a pod on it".to_owned(),
                (false, true) => format!("{ip} is an address of this node"),
                (false, false) => format!("{ip} is an address of a pod"),
            };
            (format!("inside the cluster: {because}"), service_flags::INSIDE_LOCAL)
        }
        record_client::OUTSIDE => (
            format!("outside the cluster: {ip} is neither an address of this node nor of a pod"),
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

fn why_chosen(record: &Record, endpoints: usize) -> String {
    if record.known_flow != 0 {
        "this connection is open: it stays with its endpoint".into()
    } else if record.by_affinity != 0 {
        "session affinity: the endpoint that this client was given last".into()
    } else if endpoints == 1 {
        "the only one".into()
    } else {
        format!("one of {endpoints} at random; another run may take another")
    }
}

fn why_verdict(seen: &Observation<'_>, verdict: Verdict, reason: Option<Reason>) -> String {
    let Some(reason) = reason else {
        return "Nothing of Sluice: no Service has this address and port, and no connection is known.".into();
    };
    let mut text = reason.describe().trim().to_owned();
    if is_socket(seen) && matches!(verdict, Verdict::Reject | Verdict::Drop) {
        text += &format!(" The call fails at once with {}.", reason.errno().name());
    }
    text
}

fn why_source(seen: &Observation<'_>, after: SocketAddr) -> String {
    let record = &seen.recorded.record;
    let kept = after == seen.packet.source;
    let because = match record.source {
        _ if is_socket(seen) => "the process speaks with the endpoint itself",
        _ if record.known_flow != 0 => "as when the connection was opened",
        record_source::KEPT_ENDPOINT_HERE | record_source::KEPT_CLIENT_HERE if !kept => {
            "another connection from this port to the endpoint is open"
        }
        record_source::KEPT_ENDPOINT_HERE => "the endpoint is on this node, so its reply comes by here",
        record_source::KEPT_CLIENT_HERE => "the client is on this node, so the reply comes by here",
        record_source::ENDPOINT_ELSEWHERE => {
            "the endpoint is on another node, and its reply must come back to this one"
        }
        record_source::HAIRPIN => "the endpoint is the client itself, and its reply must come by here",
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
    pub fn render(&self, format: Format) -> Result<String, OutputError> {
        Ok(match format {
            Format::Json => serde_json::to_string_pretty(self)? + "\n",
            Format::Yaml => serde_saphyr::to_string(self)?,
            Format::Table => self.lines(),
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
                Some(Service { namespace, name, port, kind }) => {
                    format!("{namespace}/{name} port {port}, by its {kind} address")
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
        let reason = self.reason.map(|reason| format!(" ({reason})")).unwrap_or_default();
        line("VERDICT", format!("{}{reason}: {}", self.verdict.word(), why.verdict));
        if let (Some(after), Some(why)) = (&self.source_after, &why.source) {
            line("SOURCE", format!("{after}, {why}"));
        }
        if let Some(device) = &self.device {
            line("LEAVES BY", device.clone());
        }
        line("RUN", format!("{} in {} ns", self.program, self.nanoseconds));
        text
    }
}

#[cfg(test)]
mod tests {
    use super::super::fixture;
    use super::*;
    use crate::probe::packet::{End, Protocol};
    use crate::testing::assert_golden;

    const SOURCE: &str = "10.10.0.1";
    const TC_ACT_UNSPEC: u32 = u32::MAX;

    fn packet(protocol: Protocol, source: &str, destination: &str) -> Packet {
        let end = |text: &str| text.parse::<End>().unwrap();
        Packet::new(protocol, end(source), end(destination)).unwrap()
    }

    /// What is said of a packet to `default/web` that was recorded so, leaving the program as `after`.
    fn said(packet: &Packet, after: &Packet, return_code: u32, record: Record) -> Explanation {
        let origin = match record.netns_cookie {
            netns_cookie @ 1.. => Origin {
                from: "pod".into(),
                hook: Hook::Socket { netns_cookie },
                why: "--in pod: a process there calls connect".into(),
            },
            0 => Origin {
                from: "external".into(),
                hook: Hook::Device { ifindex: 2 },
                why: "--in external; arrives by eth0, which leads to it".into(),
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
            device: (record.ifindex != 0).then(|| "eth0".into()),
            source_is_node: false,
        })
    }

    fn counted(reason: Reason) -> Record {
        Record { reason: reason as u32 + 1, ..Record::default() }
    }

    /// A request to the NodePort that an endpoint on another node gets.
    fn forwarded() -> Explanation {
        let asked = packet(Protocol::Tcp, SOURCE, "10.10.0.11:30088");
        let after = packet(Protocol::Tcp, "10.10.0.11:61234", "10.244.2.2:8080");
        let record = Record {
            service_id: 1,
            kind: kind::NODE_PORT.into(),
            client: record_client::OUTSIDE,
            slot_count: 3,
            backend_id: 2,
            source: record_source::ENDPOINT_ELSEWHERE,
            ifindex: 2,
            ..counted(Reason::Forwarded)
        };
        said(&asked, &after, TC_ACT_REDIRECT, record)
    }

    #[test]
    fn table() {
        assert_golden("explain.txt", &forwarded().render(Format::Table).unwrap());
    }

    #[test]
    fn json() {
        assert_golden("explain.json", &forwarded().render(Format::Json).unwrap());
    }

    #[test]
    fn yaml() {
        assert_golden("explain.yaml", &forwarded().render(Format::Yaml).unwrap());
    }

    #[test]
    fn table_of_a_call_at_a_socket() {
        let asked = packet(Protocol::Udp, "10.244.1.9", "10.96.0.10:53");
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
        let said = said(&asked, &asked, TC_ACT_UNSPEC, record);
        assert_eq!((said.source_rewritten, said.source_after.as_deref()), (false, Some("10.244.1.9:40000")));
        assert_golden("explain-socket.txt", &said.render(Format::Table).unwrap());
    }

    #[test]
    fn table_of_what_is_refused_at_a_socket() {
        let asked = packet(Protocol::Tcp, "10.244.1.9", "10.96.0.10:80");
        let record = Record {
            netns_cookie: 5,
            service_id: 1,
            kind: kind::CLUSTER_IP.into(),
            client: record_client::INSIDE,
            ..counted(Reason::SocketRefused)
        };
        assert_golden(
            "explain-refused.txt",
            &said(&asked, &asked, TC_ACT_UNSPEC, record).render(Format::Table).unwrap(),
        );
    }

    #[test]
    fn table_of_what_is_none_of_ours() {
        let asked = packet(Protocol::Icmp, SOURCE, "10.10.0.11");
        let said = said(&asked, &asked, TC_ACT_UNSPEC, Record::default());
        assert_golden("explain-pass.txt", &said.render(Format::Table).unwrap());
    }

    #[test]
    fn verdicts_follow_from_what_would_be_counted_and_from_the_return_code() {
        let asked = packet(Protocol::Tcp, SOURCE, "10.96.0.10:80");
        let verdict = |return_code, reason| said(&asked, &asked, return_code, counted(reason)).verdict;
        assert_eq!(verdict(TC_ACT_UNSPEC, Reason::Delivered), Verdict::Forward);
        assert_eq!(verdict(TC_ACT_UNSPEC, Reason::NotOpening), Verdict::Pass);
        assert_eq!(verdict(TC_ACT_SHOT, Reason::NoRoute), Verdict::Drop);
        assert_eq!(verdict(TC_ACT_REDIRECT, Reason::NoEndpointRejected), Verdict::Reject);
        // Told to the sender, though counted as a drop.
        assert_eq!(verdict(TC_ACT_REDIRECT, Reason::TtlExpired), Verdict::Reject);
        // At a socket nothing is returned: the call fails.
        assert_eq!(verdict(TC_ACT_UNSPEC, Reason::SourceRange), Verdict::Drop);
    }

    #[test]
    fn an_open_connection_keeps_its_endpoint() {
        let asked = packet(Protocol::Tcp, SOURCE, "10.10.0.11:30088");
        let after = packet(Protocol::Tcp, SOURCE, "10.244.1.2:8080");
        let record = Record { known_flow: 1, service_id: 1, backend_id: 1, ..counted(Reason::Delivered) };
        let said = said(&asked, &after, TC_ACT_UNSPEC, record);
        assert_eq!(said.why.chosen.as_deref(), Some("this connection is open: it stays with its endpoint"));
        assert!(!said.source_rewritten);
    }
}
