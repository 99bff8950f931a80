//! `lb explain http`: the Ingress, rule, Service and endpoints of a request.

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;

use clap::Args;
use lb_ingress::endpoints::Slices;
use lb_ingress::ingress::{ClassRules, DefaultBackend, NamedSecrets, Settings, Translator};
use lb_ingress::proxy::{Question, QuestionError, explain};
use lb_ingress::routes::{BackendRef, RouteTable};
use lb_model::{Balancing, SourceEvent, WatchedResource};

use super::error::ExplainError;
use super::packet::PacketArgs;
use crate::cli::objects;
use crate::cli::pin_args::PinArgs;
use crate::config::Machine;
use crate::probe::packet::{AddressArg, PacketProtocol};
use crate::view::explain::ExplanationFormat;
use crate::view::http::{ExplainedRequest, HttpFormat, ProxyNode};

#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub struct HttpArgs {
    /// URL of the request
    #[arg(value_name = "URL")]
    url: String,

    /// Method of the request
    #[arg(short = 'X', long, value_name = "METHOD", default_value = "GET")]
    method: String,

    /// Header field of the request. Can be repeated. The field Host replaces the host of the URL
    #[arg(short = 'H', long = "header", value_name = "NAME: VALUE")]
    headers: Vec<String>,

    /// Address of the client. The packet that opens its connection is explained, too
    #[arg(long, value_name = "ADDRESS")]
    client: Option<AddressArg>,

    /// Address that the client connects to, if the URL has a name
    #[arg(long, value_name = "ADDRESS", requires = "client")]
    address: Option<IpAddr>,

    /// Node of the proxy that receives the request. Topology hints name nodes and zones whose
    /// proxies use an endpoint. Default: the host name in lower case, as in `lb ingress`
    #[arg(long, value_name = "NAME")]
    node: Option<String>,

    /// Folder of YAML and JSON files to read, instead of a cluster
    #[arg(long, value_name = "DIR", conflicts_with = "kubeconfig")]
    manifests: Option<PathBuf>,

    /// kubeconfig file of the cluster. In a pod, its service account is used by default
    #[arg(long, env = "SLUICE_KUBECONFIG", value_name = "FILE")]
    kubeconfig: Option<PathBuf>,

    /// Name of a class to serve, as in `lb ingress`. Can be repeated
    #[arg(long, value_name = "NAME", default_value = "sluice")]
    ingress_class: Vec<Box<str>>,

    /// Value of spec.controller of the IngressClasses to serve. Can be repeated
    #[arg(long, value_name = "NAME", default_value = "sluice.dev/ingress")]
    controller: Vec<Box<str>>,

    /// Serve Ingresses without a class even if no IngressClass is the default one
    #[arg(long)]
    without_class: bool,

    /// Service for requests that no Ingress matches, as in `lb ingress`
    #[arg(long, value_name = "SERVICE")]
    default_backend: Option<DefaultBackend>,

    /// Read the weights of Pods, as `lb ingress` does with this option: those with weight 0 get no
    /// requests
    #[arg(long, env = "SLUICE_POD_WEIGHTS")]
    pod_weights: bool,

    /// The port of the URL in redirects to https, as in `lb ingress`
    #[arg(long, value_name = "PORT", default_value_t = 443)]
    public_https_port: u16,

    /// Output format
    #[arg(short, long, value_name = "FORMAT", value_enum, default_value = "table")]
    output: HttpFormat,

    #[command(flatten)]
    pins: PinArgs,
}

const EXAMPLES: &str = "\
The command reads the objects, and makes the decisions that `lb ingress` makes. It sends nothing,
and checks no password and no certificate. A URL of https stands for a TLS connection with the host
of the URL as its server name. With the annotation ssl-passthrough, the endpoint decrypts it.

Examples:
  lb explain http http://shop.example/cart --manifests ./web
  lb explain http http://10.10.0.11:31188/cart -H 'Host: shop.example' --kubeconfig admin.conf
  lb explain http http://10.10.0.11:31188/ --client 192.0.2.7
                                     Also the packet to the nodePort (needs root, on the node)";

/// Returns the resources of a route and its endpoints.
fn resources(pod_weights: bool) -> Vec<WatchedResource> {
    let of_pods = pod_weights.then_some(WatchedResource::Pods);
    WatchedResource::OF_INGRESSES.into_iter().chain(of_pods).collect()
}

impl HttpArgs {
    /// Returns the request to explain.
    pub fn question(&self) -> Result<Question, QuestionError> {
        let client = self.client.map(|client| client.ip);
        Question::new(&self.method, &self.url, &self.headers, client)
    }

    /// Returns the text for standard output and the warnings for standard error.
    pub async fn run(&self) -> Result<(String, Vec<String>), ExplainError> {
        let question = self.question()?;
        let packet = self.packet(&question)?;
        let resources = resources(self.pod_weights);
        let node = self.node.clone().unwrap_or_else(|| Machine::detect().host_name);
        let (folder, kubeconfig) = (self.manifests.as_deref(), self.kubeconfig.as_deref());
        let events = objects::read(folder, kubeconfig, (&resources, &node)).await?;
        let explained = explain_request(events, &node, self.settings(), (&question, self.public_https_port));
        let text = explained.render(&self.url, &self.method, self.output)?;
        match packet {
            Some(packet) => {
                let (packet, problems) = packet.run().await?;
                Ok((format!("{text}\n{packet}"), problems))
            }
            None => Ok((text, Vec::new())),
        }
    }

    fn settings(&self) -> Settings {
        let classes = ClassRules {
            controllers: self.controller.clone(),
            names: self.ingress_class.clone(),
            without_class: self.without_class,
        };
        let named_secrets =
            if self.manifests.is_some() { NamedSecrets::All } else { NamedSecrets::OnRequest };
        let default_backend = self.default_backend.clone();
        Settings { classes, default_backend, named_secrets, pod_weights: self.pod_weights }
    }

    /// Returns the packet that opens the client's connection.
    fn packet(&self, question: &Question) -> Result<Option<PacketArgs>, ExplainError> {
        let Some(source) = self.client else { return Ok(None) };
        let host = question.url_host();
        let of_url = || host.trim_matches(['[', ']']).parse().ok();
        let ip = self.address.or_else(of_url).ok_or_else(|| ExplainError::NoAddress(host.to_owned()))?;
        let output = match self.output {
            HttpFormat::Table => ExplanationFormat::Table,
            HttpFormat::Json => ExplanationFormat::Json,
        };
        Ok(Some(PacketArgs {
            protocol: Some(PacketProtocol::Tcp),
            source: Some(source),
            destination: Some(AddressArg { ip, port: Some(question.port()) }),
            from: None,
            output,
            repeat: 1,
            manifests: self.manifests.clone(),
            node: self.node.clone().filter(|_| self.manifests.is_some()),
            pins: self.pins.clone(),
        }))
    }
}

/// Makes routes and endpoints of the objects, and explains a request to the proxy of a Node, with
/// the port of https.
fn explain_request(
    events: Vec<SourceEvent>,
    node: &str,
    settings: Settings,
    (question, https_port): (&Question, u16),
) -> ExplainedRequest {
    let mut found = None;
    let mut slices = Slices::new(settings.pod_weights);
    for event in &events {
        match event {
            SourceEvent::EndpointSlice(name, slice) => drop(slices.set(name.clone(), slice.clone())),
            SourceEvent::NodeDrain(name, drain) => drop(slices.set_drain(name, *drain)),
            SourceEvent::PodWeight(name, weight) => drop(slices.set_pod_weight(name, *weight)),
            SourceEvent::Node(node) => found.clone_from(node),
            _ => {}
        }
    }
    let mut translator = Translator::new(settings);
    let update = translator.update(events);
    let table = RouteTable::default().with(update.hosts, update.default);
    let zone = found.as_ref().and_then(|node| node.zone.as_deref());
    let endpoints = |backend: &BackendRef| -> Vec<SocketAddr> {
        let default = Balancing::default();
        let service = translator.service(&backend.service);
        let balancing = service.map_or(&default, |service| &service.balancing);
        slices.addresses(backend, balancing, zone)
    };
    let request = explain(&table, question, https_port, endpoints);
    let of_ingress = |problem: &&lb_model::Problem| {
        problem.object_reference().is_some_and(|(kind, namespace, name)| {
            kind == "Ingress" && request.ingress.as_deref() == Some(&*format!("{namespace}/{name}"))
        })
    };
    let problems = translator.problems().iter().filter(of_ingress).map(ToString::to_string).collect();
    let hinted = request.backend.as_ref().is_some_and(|backend| slices.have_hints(&backend.service));
    let node = hinted.then(|| ProxyNode {
        name: node.to_owned(),
        exists: found.is_some(),
        zone: zone.map(str::to_owned),
    });
    ExplainedRequest { request, node, problems }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::testing::assert_golden;

    const OBJECTS: &str = r"
apiVersion: networking.k8s.io/v1
kind: Ingress
metadata:
  name: shop
  namespace: web
  annotations:
    nginx.ingress.kubernetes.io/rewrite-target: /$2
    nginx.ingress.kubernetes.io/whitelist-source-range: 192.0.2.0/24
spec:
  ingressClassName: sluice
  rules:
  - host: shop.example
    http:
      paths:
      - {path: /old(/|$)(.*), pathType: ImplementationSpecific, backend: {service: {name: gone, port: {number: 80}}}}
      - {path: /api(/|$)(.*), pathType: ImplementationSpecific, backend: {service: {name: api, port: {number: 80}}}}
---
apiVersion: networking.k8s.io/v1
kind: Ingress
metadata: {name: secure, namespace: web}
spec:
  ingressClassName: sluice
  tls: [{hosts: [secure.example]}]
  rules:
  - host: secure.example
    http: {paths: [{path: /, pathType: Prefix, backend: {service: {name: api, port: {number: 80}}}}]}
---
apiVersion: networking.k8s.io/v1
kind: Ingress
metadata:
  name: spare
  namespace: web
  annotations:
    nginx.ingress.kubernetes.io/default-backend: api
    nginx.ingress.kubernetes.io/custom-http-errors: 404,502
spec:
  ingressClassName: sluice
  rules:
  - host: spare.example
    http:
      paths:
      - {path: /, pathType: Prefix, backend: {service: {name: idle, port: {number: 80}}}}
      - {path: /gone, pathType: Prefix, backend: {service: {name: gone, port: {number: 80}}}}
---
apiVersion: networking.k8s.io/v1
kind: Ingress
metadata:
  name: raw
  namespace: web
  annotations: {nginx.ingress.kubernetes.io/ssl-passthrough: 'true'}
spec:
  ingressClassName: sluice
  rules:
  - host: raw.example
    http: {paths: [{path: /, pathType: Prefix, backend: {service: {name: api, port: {number: 80}}}}]}
  - host: idle.example
    http: {paths: [{path: /, pathType: Prefix, backend: {service: {name: idle, port: {number: 80}}}}]}
---
apiVersion: v1
kind: Service
metadata: {name: idle, namespace: web}
spec: {clusterIP: 10.96.0.11, ports: [{name: http, port: 80, targetPort: 8080}]}
---
apiVersion: v1
kind: Service
metadata: {name: api, namespace: web}
spec: {clusterIP: 10.96.0.10, ports: [{name: http, port: 80, targetPort: 8080}]}
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: api-1, namespace: web, labels: {kubernetes.io/service-name: api}}
addressType: IPv4
ports: [{name: http, port: 8080}]
endpoints: [{addresses: [10.244.1.6]}, {addresses: [10.244.2.6]}]
";

    const NODE: &str = "node-1";

    async fn read(folder: &tempfile::TempDir, pod_weights: bool) -> Vec<SourceEvent> {
        let resources = resources(pod_weights);
        objects::read(Some(folder.path()), None, (&resources, NODE)).await.unwrap()
    }

    async fn explained(url: &str, client: Option<&str>, format: HttpFormat) -> String {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("objects.yaml"), OBJECTS).unwrap();
        let events = read(&folder, false).await;
        let client = client.map(|client| client.parse().unwrap());
        let question = Question::new("GET", url, &[], client).unwrap();
        let settings = Settings { named_secrets: NamedSecrets::All, ..Settings::default() };
        let explained = explain_request(events, NODE, settings, (&question, 443));
        let text = explained.render(url, "GET", format).unwrap();
        text.replace(&*folder.path().to_string_lossy(), "./web")
    }

    #[tokio::test]
    async fn requests_are_explained() {
        let mut texts = String::new();
        for (url, client) in [
            ("http://Shop.example/api/%2e/v1/cart?x=1", None),
            ("http://shop.example/api/v1", Some("192.0.2.7")),
            ("http://shop.example/api/v1", Some("198.51.100.7")),
            ("http://shop.example/old/x", None),
            ("http://shop.example/other", None),
            ("http://elsewhere.example/", None),
            ("http://secure.example/a?b", None),
            ("https://secure.example/a?b", None),
            ("http://secure.example/a/..%2f..%2fb", None),
            ("http://spare.example/a", None),
            ("http://spare.example/gone", None),
            ("https://raw.example/a", None),
            ("http://raw.example/a", None),
            ("https://idle.example/a", None),
        ] {
            texts += &(explained(url, client, HttpFormat::Table).await + "\n");
        }
        assert_golden("explain-http.txt", &texts);
        let json = explained("http://shop.example/api/v1", None, HttpFormat::Json).await;
        assert_golden("explain-http.json", &json);
    }

    #[tokio::test]
    async fn a_default_backend_without_endpoints_answers_503() {
        let folder = tempfile::tempdir().unwrap();
        let objects = OBJECTS.replace("[{addresses: [10.244.1.6]}, {addresses: [10.244.2.6]}]", "[]");
        fs::write(folder.path().join("objects.yaml"), objects).unwrap();
        let events = read(&folder, false).await;
        let url = "http://elsewhere.example/";
        let question = Question::new("GET", url, &[], None).unwrap();
        let default_backend = Some("web/api:80".parse().unwrap());
        let named_secrets = NamedSecrets::All;
        let settings = Settings { default_backend, named_secrets, ..Settings::default() };
        let explained = explain_request(events, NODE, settings, (&question, 443));
        let table = explained.render(url, "GET", HttpFormat::Table).unwrap();
        let answer = "ANSWER     503: the Service has no ready endpoint\n";
        assert!(table.contains("SERVICE    web/api port http\n") && table.contains(answer), "{table}");
        let json = explained.render(url, "GET", HttpFormat::Json).unwrap();
        let json: serde_json::Value = serde_json::from_str(&json).unwrap();
        assert_eq!(json["service"], "web/api");
        assert_eq!(json["answer"]["status"], 503);
    }

    /// With the option, Pods with weight 0 are left out, as by the proxy.
    #[tokio::test]
    async fn pods_have_weights_with_the_option() {
        let folder = tempfile::tempdir().unwrap();
        let target = "targetRef: {kind: Pod, name: api-a, namespace: web}";
        let objects = OBJECTS.replace("[10.244.1.6]", &format!("[10.244.1.6], {target}"));
        let pod = "{apiVersion: v1, kind: Pod, metadata: {name: api-a, namespace: web, annotations: \
                   {lb.sluice.dev/weight: '0'}}}";
        fs::write(folder.path().join("objects.yaml"), format!("{objects}---\n{pod}\n")).unwrap();
        let url = "http://shop.example/api/v1";
        for (pod_weights, endpoints) in
            [(false, "10.244.1.6:8080, 10.244.2.6:8080"), (true, "10.244.2.6:8080")]
        {
            let events = read(&folder, pod_weights).await;
            let question = Question::new("GET", url, &[], None).unwrap();
            let named_secrets = NamedSecrets::All;
            let settings = Settings { named_secrets, pod_weights, ..Settings::default() };
            let explained = explain_request(events, NODE, settings, (&question, 443));
            let table = explained.render(url, "GET", HttpFormat::Table).unwrap();
            assert!(table.contains(&format!("ENDPOINTS  {endpoints}\n")), "{pod_weights}: {table}");
        }
    }

    /// The endpoints are those that the proxy of the Node uses.
    #[tokio::test]
    async fn hints_choose_endpoints_for_a_node() {
        let hint = |address: &str, hints: &str| format!("{{addresses: [{address}], hints: {{{hints}}}}}");
        let all = "[{addresses: [10.244.1.6]}, {addresses: [10.244.2.6]}]";
        let zones =
            [hint("10.244.1.6", "forZones: [{name: a}]"), hint("10.244.2.6", "forZones: [{name: b}]")];
        let nodes = [
            hint("10.244.1.6", "forNodes: [{name: other}]"),
            hint("10.244.2.6", "forNodes: [{name: node-1}]"),
        ];
        let node = "---\n{apiVersion: v1, kind: Node, metadata: {name: node-1, labels: \
                    {topology.kubernetes.io/zone: b}}}\n";
        let both = "10.244.1.6:8080, 10.244.2.6:8080";
        let unknown =
            "node-1 does not exist: topology hints have no effect, name the proxy's Node with --node";
        let url = "http://shop.example/api/v1";
        for (hints, node, line, endpoints) in [
            (None, node, None, both),
            (Some(&zones), node, Some("node-1 in zone b: topology hints apply"), "10.244.2.6:8080"),
            (Some(&zones), "", Some(unknown), both),
            (Some(&nodes), node, Some("node-1 in zone b: topology hints apply"), "10.244.2.6:8080"),
        ] {
            let folder = tempfile::tempdir().unwrap();
            let hinted = hints.map_or(all.to_owned(), |hints| format!("[{}]", hints.join(", ")));
            let objects = OBJECTS.replace(all, &hinted) + node;
            fs::write(folder.path().join("objects.yaml"), objects).unwrap();
            let events = read(&folder, false).await;
            let question = Question::new("GET", url, &[], None).unwrap();
            let explained = explain_request(events, NODE, Settings::default(), (&question, 443));
            let table = explained.render(url, "GET", HttpFormat::Table).unwrap();
            let found = table.lines().find_map(|line| line.strip_prefix("NODE       "));
            assert_eq!(found, line, "{table}");
            assert!(table.contains(&format!("ENDPOINTS  {endpoints}\n")), "{table}");
            let json = explained.render(url, "GET", HttpFormat::Json).unwrap();
            let json: serde_json::Value = serde_json::from_str(&json).unwrap();
            let zone = line.filter(|line| line.contains("zone b")).map(|_| "b");
            assert_eq!(json["node"]["zone"].as_str(), zone, "{json}");
        }
    }

    #[test]
    fn malformed_requests_are_named() {
        let error = |url: &str, fields: &[&str]| {
            let fields: Vec<_> = fields.iter().map(|field| (*field).to_owned()).collect();
            Question::new("GET", url, &fields, None).unwrap_err().to_string()
        };
        for url in ["shop.example/cart", "ftp://shop.example/", "/cart", "http:///x"] {
            assert!(error(url, &[]).contains("is no URL"), "{url}");
        }
        assert!(error("http://a.example/", &["Host shop.example"]).contains("is no header field"));
    }
}
