//! `healthCheckNodePort`: by which a load balancer learns which nodes have endpoints of a Service with a Local policy
//! (KEP-3836; pkg/proxy/healthcheck/service_health.go).

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use hyper::StatusCode;
use hyper::header::HeaderValue;
use lb_model::{IpFamily, ObjectName};
use lb_plan::HealthCheck;
use serde::Serialize;
use tokio::net::{TcpListener, TcpSocket};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tracing::{error, info};

use super::State;
use super::http::{self, Answer};

/// A port that could not be opened is tried again after this time.
const RETRY: Duration = Duration::from_secs(2);
/// Connections that may wait to be accepted.
const BACKLOG: u32 = 128;

/// What shall be answered, and where.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ServiceHealth {
    pub checks: BTreeMap<ObjectName, HealthCheck>,
    /// Addresses to listen at, the same for all.
    pub addresses: BTreeSet<IpAddr>,
}

impl ServiceHealth {
    /// Takes in what the planner says of Services that changed; none: there is nothing to answer any more.
    pub fn update(&mut self, changes: Vec<(ObjectName, Option<HealthCheck>)>) {
        for (service, check) in changes {
            match check {
                Some(check) => self.checks.insert(service, check),
                None => self.checks.remove(&service),
            };
        }
    }
}

/// Why a port is not open.
#[derive(Debug, thiserror::Error)]
#[error(
    "Service {service}: its healthCheckNodePort cannot be opened at {at}: {source}: load balancers take this node for one \
     without endpoints; end what uses the port on this node, or recreate the Service with another one; trying again"
)]
pub struct OpenError {
    pub service: ObjectName,
    pub at: SocketAddr,
    source: io::Error,
}

/// Opens and closes ports as [`ServiceHealth`] changes, in a task of its own: the main loop need not wait for it.
pub struct HealthPorts<F> {
    wanted: watch::Receiver<ServiceHealth>,
    health: watch::Receiver<State>,
    /// Told of each failure when it begins or becomes another one.
    failed: F,
    open: BTreeMap<Socket, JoinHandle<()>>,
    /// What was said of those that cannot be opened.
    failures: BTreeMap<Socket, String>,
}

type Socket = (ObjectName, SocketAddr);

impl<F: FnMut(&OpenError)> HealthPorts<F> {
    pub fn new(wanted: watch::Receiver<ServiceHealth>, health: watch::Receiver<State>, failed: F) -> Self {
        Self { wanted, health, failed, open: BTreeMap::new(), failures: BTreeMap::new() }
    }

    /// Runs until nobody can want anything any more; then everything is closed.
    pub async fn run(mut self) {
        loop {
            let wanted = self.wanted.borrow_and_update().clone();
            self.converge(&wanted).await;
            tokio::select! {
                changed = self.wanted.changed() => if changed.is_err() { break },
                () = tokio::time::sleep(RETRY), if !self.failures.is_empty() => {}
            }
        }
        self.converge(&ServiceHealth::default()).await;
    }

    async fn converge(&mut self, wanted: &ServiceHealth) {
        let sockets: BTreeSet<Socket> = (wanted.checks.iter())
            .flat_map(|(name, check)| {
                let of_family = |ip: &&IpAddr| check.local_endpoints(IpFamily::of(ip)).is_some();
                let addresses = wanted.addresses.iter().filter(of_family);
                addresses.map(|ip| (name.clone(), SocketAddr::new(*ip, check.port)))
            })
            .collect();
        // First what closes: another Service may be given the port.
        for (_, server) in self.open.extract_if(.., |socket, _| !sockets.contains(socket)) {
            server.abort();
            // The listener is closed when the task has ended, not before. Cancelled is what it shall be.
            let _ = server.await;
        }
        self.failures.retain(|socket, _| sockets.contains(socket));
        for socket in sockets {
            if !self.open.contains_key(&socket) {
                self.open(socket);
            }
        }
    }

    fn open(&mut self, socket: Socket) {
        let (service, at) = &socket;
        let listener = match listen(*at) {
            Ok(listener) => listener,
            // A kernel without IPv6: nobody can ask there.
            Err(source) if at.ip().is_unspecified() && source.raw_os_error() == Some(libc::EAFNOSUPPORT) => {
                return;
            }
            Err(source) => {
                let failure = OpenError { service: service.clone(), at: *at, source };
                let message = failure.to_string();
                if self.failures.get(&socket) != Some(&message) {
                    error!("{message}");
                    (self.failed)(&failure);
                    self.failures.insert(socket, message);
                }
                return;
            }
        };
        if self.failures.remove(&socket).is_some() {
            info!("Service {service}: its healthCheckNodePort is open at {at} now");
        }
        let (name, family) = (service.clone(), IpFamily::of(&at.ip()));
        let (wanted, health) = (self.wanted.clone(), self.health.clone());
        let server = http::serve(listener, move |_: &hyper::Method, _: &str| {
            // As kube-proxy, of which each family has its own.
            let local_endpoints = (wanted.borrow().checks.get(&name))
                .and_then(|check| check.local_endpoints(family))
                .unwrap_or_default();
            let healthy = health.borrow().is_healthy(Instant::now());
            answer(&name, local_endpoints, healthy)
        });
        self.open.insert(socket, tokio::spawn(server));
    }
}

/// An IPv6 listener takes no IPv4 connections: each family has its own.
fn listen(at: SocketAddr) -> io::Result<TcpListener> {
    let socket = match at {
        SocketAddr::V4(_) => TcpSocket::new_v4()?,
        SocketAddr::V6(_) => {
            let socket = TcpSocket::new_v6()?;
            rustix::net::sockopt::set_ipv6_v6only(&socket, true)?;
            socket
        }
    };
    // Connections of a listener before may still be in TIME_WAIT.
    socket.set_reuseaddr(true)?;
    socket.bind(at)?;
    socket.listen(BACKLOG)
}

/// Any method and path are answered, as kube-proxy does.
fn answer(service: &ObjectName, local_endpoints: u32, healthy: bool) -> Answer {
    #[derive(Serialize)]
    #[serde(rename_all = "camelCase")]
    struct Body<'a> {
        service: Name<'a>,
        local_endpoints: u32,
        service_proxy_healthy: bool,
    }
    #[derive(Serialize)]
    struct Name<'a> {
        namespace: &'a str,
        name: &'a str,
    }
    let body = Body {
        service: Name { namespace: service.namespace(), name: service.name() },
        local_endpoints,
        service_proxy_healthy: healthy,
    };
    let status = match local_endpoints != 0 && healthy {
        true => StatusCode::OK,
        false => StatusCode::SERVICE_UNAVAILABLE,
    };
    let mut answer = http::json(status, &body);
    answer.headers_mut().insert("x-load-balancing-endpoint-weight", HeaderValue::from(local_endpoints));
    answer
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use super::super::Progress;
    use super::super::http::testing::ask;
    use super::*;

    fn name(name: &str) -> ObjectName {
        ObjectName::new("default", name)
    }

    fn at(port: u16) -> SocketAddr {
        SocketAddr::new("127.0.0.1".parse().unwrap(), port)
    }

    /// A dual-stack Service whose pods have an address of each family.
    fn dual(port: u16, local: u32) -> HealthCheck {
        HealthCheck { port, local_v4: Some(local), local_v6: Some(local) }
    }

    /// Ports that were free a moment ago.
    fn free_ports<const N: usize>() -> [u16; N] {
        let held = [(); N].map(|()| std::net::TcpListener::bind(at(0)).unwrap());
        held.map(|listener| listener.local_addr().unwrap().port())
    }

    /// Health checks at loopback, of an agent that is healthy.
    struct Running {
        wanted: watch::Sender<ServiceHealth>,
        health: watch::Sender<State>,
        failed: Arc<Mutex<Vec<String>>>,
    }

    impl Running {
        fn start() -> Self {
            let (health, of_agent) =
                watch::channel(State { progress: Progress::Serving, ..State::starting("") });
            let addresses = ["127.0.0.1".parse().unwrap(), "::1".parse().unwrap()].into();
            let (wanted, receiver) = watch::channel(ServiceHealth { addresses, ..ServiceHealth::default() });
            let failed = Arc::new(Mutex::new(Vec::new()));
            let sink = failed.clone();
            let ports = HealthPorts::new(receiver, of_agent, move |failure: &OpenError| {
                sink.lock().unwrap().push(failure.to_string());
            });
            tokio::spawn(ports.run());
            Self { wanted, health, failed }
        }

        fn set(&self, checks: &[(&str, u16, u32)]) {
            let checks: BTreeMap<_, _> =
                checks.iter().map(|&(service, port, local)| (name(service), dual(port, local))).collect();
            self.wanted.send_modify(|wanted| {
                let gone = wanted.checks.keys().filter(|service| !checks.contains_key(service));
                let gone: Vec<_> = gone.map(|service| (service.clone(), None)).collect();
                let there = checks.into_iter().map(|(service, check)| (service, Some(check)));
                wanted.update(gone.into_iter().chain(there).collect());
            });
        }
    }

    async fn eventually(mut holds: impl AsyncFnMut() -> bool) {
        while !holds().await {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    async fn is_open(address: SocketAddr) -> bool {
        tokio::net::TcpStream::connect(address).await.is_ok()
    }

    #[test]
    fn the_answer_is_that_of_kube_proxy() {
        let answer = answer(&name("web"), 3, true);
        assert_eq!(answer.status(), StatusCode::OK);
        let header = |name: &str| answer.headers()[name].to_str().unwrap();
        assert_eq!(header("content-type"), "application/json");
        assert_eq!(header("x-content-type-options"), "nosniff");
        assert_eq!(header("x-load-balancing-endpoint-weight"), "3");
        for (local_endpoints, healthy, status) in [(0, true, 503), (1, false, 503), (1, true, 200)] {
            assert_eq!(super::answer(&name("web"), local_endpoints, healthy).status(), status);
        }
    }

    #[tokio::test]
    async fn ports_follow_the_services() {
        let running = Running::start();
        let [first, second] = free_ports();
        running.set(&[("web", first, 2)]);
        eventually(async || is_open(at(first)).await).await;
        let answer = ask(at(first), "GET /any/path").await;
        assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
        let body = r#"{"service":{"namespace":"default","name":"web"},"localEndpoints":2,"serviceProxyHealthy":true}"#;
        assert!(answer.ends_with(&format!("\r\n\r\n{body}")), "{answer}");
        let over_ipv6 = SocketAddr::new("::1".parse().unwrap(), first);
        assert!(ask(over_ipv6, "POST /").await.starts_with("HTTP/1.1 200 "));

        running.set(&[("web", first, 0)]);
        let answer = ask(at(first), "GET /").await;
        assert!(answer.starts_with("HTTP/1.1 503 "), "{answer}");
        assert!(answer.contains("x-load-balancing-endpoint-weight: 0\r\n"), "{answer}");

        // One Service takes over the port of another.
        running.set(&[("web", second, 1), ("shop", first, 1)]);
        eventually(async || is_open(at(second)).await).await;
        eventually(async || ask(at(first), "GET /").await.contains("\"name\":\"shop\"")).await;

        // A Service of one family.
        let single = HealthCheck { port: second, local_v4: None, local_v6: Some(4) };
        running.wanted.send_modify(|wanted| {
            wanted.update(vec![(name("web"), Some(single))]);
        });
        eventually(async || !is_open(at(second)).await).await;
        let over_ipv6 = SocketAddr::new("::1".parse().unwrap(), second);
        assert!(ask(over_ipv6, "GET /").await.contains("x-load-balancing-endpoint-weight: 4\r\n"));

        running.health.send_modify(|state| state.progress = Progress::Starting("anew".into()));
        let answer = ask(at(first), "GET /").await;
        assert!(answer.starts_with("HTTP/1.1 503 ") && answer.contains("\"serviceProxyHealthy\":false"));

        running.set(&[]);
        eventually(async || !is_open(at(first)).await && !is_open(at(second)).await).await;
        assert_eq!(*running.failed.lock().unwrap(), [""; 0]);
    }

    #[tokio::test]
    async fn a_listener_stays_when_only_the_number_of_endpoints_changes() {
        let [port] = free_ports();
        let (wanted, receiver) = watch::channel(ServiceHealth::default());
        let health = watch::channel(State::starting("")).1;
        let mut ports = HealthPorts::new(receiver, health, |_: &OpenError| {});
        let with = |local_endpoints| ServiceHealth {
            checks: [(name("web"), dual(port, local_endpoints))].into(),
            addresses: ["127.0.0.1".parse().unwrap()].into(),
        };
        ports.converge(&with(1)).await;
        let task = |ports: &HealthPorts<_>| ports.open.values().map(JoinHandle::id).collect::<Vec<_>>();
        let before = task(&ports);
        assert_eq!(before.len(), 1);
        ports.converge(&with(2)).await;
        assert_eq!(task(&ports), before);
        drop(wanted);
    }

    #[tokio::test(start_paused = true)]
    async fn a_port_that_is_taken_is_said_once_and_tried_again() {
        let taken = std::net::TcpListener::bind(at(0)).unwrap();
        let port = taken.local_addr().unwrap().port();
        let running = Running::start();
        running.set(&[("web", port, 1)]);
        // Many attempts.
        tokio::time::sleep(20 * RETRY).await;
        let failed = running.failed.lock().unwrap().clone();
        assert_eq!(failed.len(), 1, "{failed:?}");
        for part in ["Service default/web", &port.to_string(), "127.0.0.1", "in use", "recreate"] {
            assert!(failed[0].contains(part), "{failed:?}");
        }
        drop(taken);
        tokio::time::sleep(2 * RETRY).await;
        assert!(ask(at(port), "GET /").await.starts_with("HTTP/1.1 200 "));
    }
}
