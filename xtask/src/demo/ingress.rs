//! The demo of Ingress: two nodes with an agent each, a pod with `lb ingress` on each node behind
//! the NodePorts 31188 and 31443, applications in the other pods, and a client outside.

mod backend;
mod websocket;

use std::net::{IpAddr, Ipv4Addr};
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use lb_testbed::host::{HTTP_PORT, Listen, LoadKind, Process};
use lb_testbed::manifests::{self, ServiceManifest, ServicePort};
use lb_testbed::topology::Pod;
use lb_testbed::{
    Agent, AgentOptions, AttachMode, Certificate, Family, IngressProxy, Topology, Underlay, daemon, ingress,
};
use serde_json::{Value, json};

use self::backend::Backend;
use self::websocket::WebSocket;
use super::options::{Mode, Options};
use super::screen::{Cell, Checks, Screen, Tone};

/// Pods with a proxy, one on each node, and pods with the applications.
const PROXIES: [usize; 2] = [0, 2];
const APPLICATIONS: [usize; 2] = [1, 3];
/// The NodePorts of `deploy/ingress`.
const HTTP: u16 = 31188;
const HTTPS: u16 = 31443;
/// The applications and their ports.
const APPS: [(&str, u16); 3] = [("shop", 9001), ("api", 9002), ("blog", 9003)];
/// Changes of routes during which a WebSocket stays open.
const CHANGES: u32 = 100;

pub fn run(options: &Options, tool: &Path) -> Result<()> {
    let mut demo = Demo::set_up(options, tool)?;
    demo.start()?;
    demo.requests()?;
    demo.certificates()?;
    demo.websocket()?;
    demo.endpoint_dies_under_load()?;
    demo.finish()
}

struct Demo {
    screen: Screen,
    checks: Checks,
    // Dropped in this order: processes before the namespaces they run in.
    proxies: Vec<IngressProxy>,
    agents: Vec<Agent>,
    servers: Vec<Process>,
    backends: Vec<(&'static str, usize, Backend)>,
    topology: Topology,
}

impl Demo {
    fn set_up(options: &Options, tool: &Path) -> Result<Self> {
        let mut screen = Screen::new();
        screen.heading("Cluster");
        let underlay = if options.overlay { Underlay::Vxlan } else { Underlay::Routed };
        let datapath = match options.mode {
            Mode::Tc => AttachMode::Tc,
            Mode::Xdp => AttachMode::Xdp,
        };
        let topology = Topology::build(underlay, datapath, tool)?;
        let mut backends = Vec::new();
        for index in APPLICATIONS {
            for (app, port) in APPS {
                backends.push((app, index, Backend::start(app, &topology.pods[index].host, port)?));
            }
        }
        let mut demo = Self {
            screen,
            checks: Checks::default(),
            proxies: Vec::new(),
            agents: Vec::new(),
            servers: Vec::new(),
            backends,
            topology,
        };
        for index in APPLICATIONS {
            let host = &demo.topology.pods[index].host;
            let listen = Listen { http: vec![HTTP_PORT], ..Listen::default() };
            demo.servers.push(host.serve_at(&host.name, &listen)?);
        }
        demo.publish()?;
        demo.show();
        Ok(demo)
    }

    /// Writes the objects as a cluster would have them.
    fn publish(&self) -> Result<()> {
        let folder = &self.topology.manifests;
        let nodes: Vec<_> = self.topology.nodes.iter().map(manifests::node).collect();
        folder.write("nodes.yaml", &nodes)?;
        let mut entry = service("sluice-ingress", 1);
        entry.ports = vec![
            ServicePort::tcp("http", 80, ingress::HTTP_PORT).node_port(HTTP),
            ServicePort::tcp("https", 443, ingress::HTTPS_PORT).node_port(HTTPS),
        ];
        let mut objects = entry.with_endpoints(&self.pods(&PROXIES));
        objects[0]["spec"]["externalTrafficPolicy"] = "Local".into();
        folder.write("ingress-service.yaml", &objects)?;
        for (number, (name, port)) in (2..).zip(APPS.into_iter().chain([("web", HTTP_PORT)])) {
            let mut service = service(name, number);
            service.ports = vec![ServicePort::tcp("http", 80, port)];
            folder.write(&format!("{name}.yaml"), &service.with_endpoints(&self.pods(&APPLICATIONS)))?;
        }
        for name in ["shop", "blog"] {
            self.certificate(name, 1)?;
        }
        let class = json!({
            "apiVersion": "networking.k8s.io/v1", "kind": "IngressClass", "metadata": { "name": "sluice" },
            "spec": { "controller": "sluice.dev/ingress" },
        });
        let blog = ingress_of("blog", Some("blog.example"), &[("/".to_owned(), "blog")]);
        let web = ingress_of("web", None, &[("/".to_owned(), "web")]);
        folder.write("ingress-shop.yaml", &[shop(0)])?;
        folder.write("ingresses.yaml", &[class, blog, web])
    }

    fn show(&self) {
        let mut rows: Vec<Vec<Cell>> = Vec::new();
        let client = &self.topology.client;
        let row = |name: &str, is: &str, ip: Ipv4Addr| vec![name.into(), is.into(), ip.to_string().into()];
        rows.push(row(&client.name, "client outside the cluster", client.v4));
        for node in &self.topology.nodes {
            rows.push(row(&node.host.name, "node", node.host.v4));
        }
        for (index, pod) in self.topology.pods.iter().enumerate() {
            let what = if PROXIES.contains(&index) { "lb ingress" } else { "shop, api, blog, web" };
            rows.push(row(&pod.host.name, &format!("pod on {}: {what}", pod.node), pod.host.v4));
        }
        self.screen.table(&["HOST", "IS", "IPV4"], &rows);
        println!();
        let rule = |host: &str, path: &str, service: &str| vec![host.into(), path.into(), service.into()];
        let rules = [
            rule("shop.example", "/", "shop"),
            rule("shop.example", "/api", "api"),
            rule("blog.example", "/", "blog"),
            rule("*", "/", "web"),
        ];
        self.screen.table(&["RULE FOR", "PATH", "SERVICE"], &rules);
    }

    fn start(&mut self) -> Result<()> {
        self.screen.heading("Agents and proxies");
        for node in &self.topology.nodes {
            self.agents.push(Agent::start(&self.topology, node, &AgentOptions::default())?);
            self.screen.toned(&format!("{}: the agent is ready", node.host.name), Tone::Good);
        }
        for index in PROXIES {
            let pod = &self.topology.pods[index];
            let arguments = ["--node-name", &pod.node, "--public-https-port", &HTTPS.to_string()];
            let folder = self.topology.manifests.path().to_owned();
            let logs = self.topology.folder();
            let proxy = IngressProxy::start_with(&pod.host, "--manifests", &folder, &arguments, &logs)?;
            self.proxies.push(proxy);
            let text = format!(
                "{} on {}: lb ingress is ready, NodePorts {HTTP} and {HTTPS}",
                pod.host.name, pod.node
            );
            self.screen.toned(&text, Tone::Good);
        }
        Ok(())
    }

    fn requests(&mut self) -> Result<()> {
        self.screen.heading("Hosts and paths");
        let requests = [
            ("shop.example", "/", "shop"),
            ("shop.example", "/api/orders", "api"),
            ("SHOP.example", "/apis", "shop"),
            ("shop.example", "/%2e/x/../api/v1", "api"),
            ("blog.example", "/2026/11", "blog"),
        ];
        let client = self.topology.client.v4.to_string();
        let mut rows = Vec::new();
        for node in 0..2 {
            for (host, path, app) in requests {
                let url = format!("http://{host}:{HTTP}{path}");
                let answer = self.curl(node, host, &["--path-as-is", &url])?;
                let line = format!(" from {client}");
                let logged = self.backends.iter().find_map(|(name, index, backend)| {
                    let line = backend.log().pop().filter(|last| last.ends_with(&line))?;
                    let name_of_pod = &self.topology.pods[*index].host.name;
                    (answer.body == format!("{name} on {name_of_pod}")).then_some(line)
                });
                let problem = match (&logged, answer.body.starts_with(&format!("{app} on "))) {
                    (_, false) => Some(format!("expected {app}: {answer:?}")),
                    (None, _) => Some("the log of the pod has another client".to_owned()),
                    _ => None,
                };
                rows.push(vec![
                    self.topology.nodes[node].host.name.as_str().into(),
                    url.into(),
                    answer.body.clone().into(),
                    logged.unwrap_or_default().into(),
                    Cell::verdict(problem.as_deref()),
                ]);
                self.checks.check(problem);
            }
        }
        self.screen.table(&["BY", "REQUEST", "ANSWER", "LOG OF THE POD", ""], &rows);
        let log = self.backends.iter().map(|(.., backend)| backend.log().len()).sum::<usize>();
        self.screen.line(&format!(
            "{log} requests in the logs of the pods, each with the client's own address {client}"
        ));
        Ok(())
    }

    fn certificates(&mut self) -> Result<()> {
        self.screen.heading("TLS by server name");
        let mut rows = Vec::new();
        for (name, trusted, expected) in
            [("shop", "shop-1", true), ("blog", "blog-1", true), ("shop", "blog-1", false)]
        {
            rows.push(self.tls_row(name, trusted, expected)?);
        }
        self.certificate("shop", 2)?;
        let begin = Instant::now();
        while self.tls("shop", "shop-2")?.is_err() && begin.elapsed() < Duration::from_secs(10) {
            thread::sleep(Duration::from_millis(20));
        }
        self.screen.table(&["REQUEST", "TRUSTED CERTIFICATE", "ANSWER", ""], &rows);
        self.screen.line(&format!(
            "the Secret of shop.example got another certificate; in effect after {} ms:",
            begin.elapsed().as_millis()
        ));
        let rows = [self.tls_row("shop", "shop-2", true)?, self.tls_row("shop", "shop-1", false)?];
        self.screen.table(&["REQUEST", "TRUSTED CERTIFICATE", "ANSWER", ""], &rows);
        Ok(())
    }

    fn tls_row(&mut self, name: &str, trusted: &str, expected: bool) -> Result<Vec<Cell>> {
        let answer = self.tls(name, trusted)?;
        let right = match &answer {
            Ok(body) => expected && body.starts_with(&format!("{name} on ")),
            // curl: (60) SSL certificate problem.
            Err(error) => !expected && error.contains("certificate"),
        };
        let problem = (!right).then(|| format!("https://{name}.example with {trusted}: {answer:?}"));
        let shown = answer.unwrap_or_else(|_| "refused by the client: another certificate".to_owned());
        let verdict = Cell::verdict(problem.as_deref());
        self.checks.check(problem);
        Ok(vec![format!("https://{name}.example:{HTTPS}/").into(), trusted.into(), shown.into(), verdict])
    }

    /// Returns the answer, or the message of curl.
    fn tls(&self, name: &str, trusted: &str) -> Result<Result<String, String>> {
        let host = format!("{name}.example");
        let file = self.topology.folder().join(format!("{trusted}.crt")).display().to_string();
        let answer = self.curl(0, &host, &["--cacert", &file, &format!("https://{host}:{HTTPS}/")])?;
        Ok(if answer.status == 200 { Ok(answer.body) } else { Err(answer.error) })
    }

    fn websocket(&mut self) -> Result<()> {
        self.screen.heading(&format!("A WebSocket during {CHANGES} changes of its Ingress"));
        let entry = self.topology.nodes[0].host.at(Family::V4, HTTP);
        let mut socket = WebSocket::open(&self.topology.client, entry, "shop.example")?;
        socket.exchange("before")?;
        let begin = Instant::now();
        let mut failure = None;
        for change in 1..=CHANGES {
            self.topology.manifests.write("ingress-shop.yaml", &[shop(change)])?;
            let url = format!("http://shop.example:{HTTP}/change/{change}");
            let deadline = Instant::now() + Duration::from_secs(10);
            while !self.curl(0, "shop.example", &[&url])?.body.starts_with("api on ") {
                ensure!(Instant::now() < deadline, "change {change} has no effect after 10 s");
            }
            failure = failure.or(socket.exchange(&format!("after change {change}")).err());
        }
        let took = begin.elapsed().as_secs_f32();
        let problem = failure.map(|failure| format!("the WebSocket broke: {failure:#}"));
        match &problem {
            None => self.screen.toned(
                &format!(
                    "{CHANGES} changes in {took:.1} s, each seen in an answer; {} messages came back on one connection",
                    CHANGES + 1
                ),
                Tone::Good,
            ),
            Some(problem) => self.screen.toned(problem, Tone::Bad),
        }
        self.checks.check(problem);
        Ok(())
    }

    /// Kills one of the two servers of web during requests. No request may fail.
    fn endpoint_dies_under_load(&mut self) -> Result<()> {
        let dying = APPLICATIONS[1];
        let name = self.topology.pods[dying].host.name.clone();
        self.screen.heading(&format!("{name} dies under load"));
        let mut loads = Vec::new();
        for node in &self.topology.nodes {
            let target = node.host.at(Family::V4, HTTP);
            for (kind, what) in
                [(LoadKind::NewConnections, "a connection each"), (LoadKind::OneConnection, "one connection")]
            {
                let load = self.topology.client.start_load(kind, target, 100)?;
                loads.push((format!("http://{target}/, {what}"), load));
            }
        }
        thread::sleep(Duration::from_secs(1));
        // The server ends. Its EndpointSlice has the endpoint for a second more.
        drop(self.servers.pop());
        thread::sleep(Duration::from_secs(1));
        let mut web = service("web", 5);
        web.ports = vec![ServicePort::tcp("http", 80, HTTP_PORT)];
        let left = web.with_endpoints(&self.pods(&APPLICATIONS[..1]));
        self.topology.manifests.write("web.yaml", &left)?;
        thread::sleep(Duration::from_secs(1));
        let mut rows = Vec::new();
        for (what, load) in loads {
            let report = load.finish()?;
            let failed = report.failures > 0 || report.requests == 0 || report.by_pod.len() != 2;
            let tone = if failed { Tone::Bad } else { Tone::Good };
            let by: Vec<_> = report.by_pod.iter().map(|(pod, count)| format!("{pod} {count}")).collect();
            rows.push(vec![
                what.as_str().into(),
                report.requests.to_string().into(),
                Cell::new(report.failures.to_string(), tone),
                by.join("  ").into(),
            ]);
            self.checks.check(failed.then(|| format!("{what}: {report:?}")));
        }
        self.screen.table(&["LOAD", "REQUESTS", "FAILED", "ANSWERED BY"], &rows);
        Ok(())
    }

    fn finish(self) -> Result<()> {
        let logs = || {
            self.agents.iter().for_each(|agent| println!("{}", daemon::tail(agent.log_path())));
            self.proxies.iter().for_each(|proxy| println!("{}", proxy.log_tail()));
        };
        self.checks.finish(&self.screen, logs)
    }

    /// Sends a request through a node with curl, from the client.
    fn curl(&self, node: usize, host: &str, arguments: &[&str]) -> Result<Answer> {
        let node = self.topology.nodes[node].host.v4;
        let mut command = self.topology.client.place.command("curl")?;
        command.args([
            "--silent",
            "--show-error",
            "--max-time",
            "10",
            "--noproxy",
            "*",
            "--write-out",
            "\n%{http_code}",
        ]);
        for port in [HTTP, HTTPS] {
            command.args(["--resolve", &format!("{host}:{port}:{node}")]);
        }
        let output = command.args(arguments).output().context("start curl")?;
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let (body, status) = text.rsplit_once('\n').context("curl wrote no status")?;
        let error = String::from_utf8_lossy(&output.stderr).trim().to_owned();
        Ok(Answer { status: status.parse()?, body: body.to_owned(), error })
    }

    /// Makes a certificate for NAME.example, and writes it into a Secret.
    fn certificate(&self, name: &str, number: u32) -> Result<()> {
        let host = format!("{name}.example");
        let certificate = Certificate::create(&self.topology.folder(), &format!("{name}-{number}"), &host)?;
        let secret = certificate.secret(&format!("{name}-tls"))?;
        self.topology.manifests.write(&format!("secret-{name}.yaml"), &[secret])
    }

    fn pods(&self, numbers: &[usize]) -> Vec<&Pod> {
        numbers.iter().map(|index| &self.topology.pods[*index]).collect()
    }
}

#[derive(Debug)]
struct Answer {
    /// 0 if there is no answer.
    status: u16,
    body: String,
    /// The message of curl.
    error: String,
}

fn service(name: &str, number: u8) -> ServiceManifest {
    let cluster_ips = vec![IpAddr::from(Ipv4Addr::new(10, 96, 2, number))];
    ServiceManifest { namespace: "default".to_owned(), name: name.to_owned(), cluster_ips, ports: Vec::new() }
}

/// The Ingress of shop.example. Each change adds another path.
fn shop(change: u32) -> Value {
    let mut paths = vec![("/".to_owned(), "shop"), ("/api".to_owned(), "api")];
    if change > 0 {
        paths.push((format!("/change/{change}"), "api"));
    }
    ingress_of("shop", Some("shop.example"), &paths)
}

fn ingress_of(name: &str, host: Option<&str>, paths: &[(String, &str)]) -> Value {
    let path = |(path, service): &(String, &str)| {
        json!({
            "path": path, "pathType": "Prefix",
            "backend": { "service": { "name": service, "port": { "name": "http" } } },
        })
    };
    let mut rule = json!({ "http": { "paths": paths.iter().map(path).collect::<Vec<_>>() } });
    let mut spec = json!({ "ingressClassName": "sluice" });
    if let Some(host) = host {
        rule["host"] = host.into();
        spec["tls"] = json!([{ "hosts": [host], "secretName": format!("{name}-tls") }]);
    }
    spec["rules"] = json!([rule]);
    json!({
        "apiVersion": "networking.k8s.io/v1", "kind": "Ingress",
        "metadata": {
            "name": name, "namespace": "default",
            "annotations": { "nginx.ingress.kubernetes.io/ssl-redirect": "false" },
        },
        "spec": spec,
    })
}
