//! The servers of `healthCheckNodePort`. They report to load balancers whether this node has ready
//! endpoints of a Service with externalTrafficPolicy Local (KEP-3836;
//! pkg/proxy/healthcheck/service_health.go).

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

use super::health::AgentState;
use super::http::{self, HttpResponse};

/// Pause before another attempt to open a port.
const RETRY: Duration = Duration::from_secs(2);
/// Maximum number of connections that wait to be accepted.
const BACKLOG: u32 = 128;

/// The desired health check servers.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ServiceHealth {
    pub checks: BTreeMap<ObjectName, HealthCheck>,
    /// Addresses at which every server listens.
    pub addresses: BTreeSet<IpAddr>,
}

impl ServiceHealth {
    /// Applies the changes of Services from the planner. `None` removes a health check.
    pub fn update(&mut self, changes: Vec<(ObjectName, Option<HealthCheck>)>) {
        for (service, check) in changes {
            match check {
                Some(check) => self.checks.insert(service, check),
                None => self.checks.remove(&service),
            };
        }
    }
}

/// The reason why a port is not open.
#[derive(Debug, thiserror::Error)]
#[error(
    "Service {service}: its healthCheckNodePort cannot be opened at {at}: {source}; load balancers \
     send no traffic of this Service to this node; end the process that uses the port, or recreate \
     the Service with another port; trying again"
)]
pub struct OpenError {
    pub service: ObjectName,
    pub at: SocketAddr,
    source: io::Error,
}

/// Opens and closes ports when [`ServiceHealth`] changes. It runs in a task of its own, so that the
/// main loop does not wait for it.
pub struct HealthPorts<F> {
    desired: watch::Receiver<ServiceHealth>,
    health: watch::Receiver<AgentState>,
    /// Called when a port cannot be opened, once for each message.
    on_failure: F,
    open: BTreeMap<Socket, JoinHandle<()>>,
    /// The messages that were logged about ports that cannot be opened.
    failures: BTreeMap<Socket, String>,
}

type Socket = (ObjectName, SocketAddr);

impl<F: FnMut(&OpenError)> HealthPorts<F> {
    pub fn new(
        desired: watch::Receiver<ServiceHealth>,
        health: watch::Receiver<AgentState>,
        on_failure: F,
    ) -> Self {
        Self { desired, health, on_failure, open: BTreeMap::new(), failures: BTreeMap::new() }
    }

    /// Runs until the sender of [`ServiceHealth`] is dropped, then closes all ports.
    pub async fn run(mut self) {
        loop {
            let desired = self.desired.borrow_and_update().clone();
            self.converge(&desired).await;
            tokio::select! {
                changed = self.desired.changed() => if changed.is_err() { break },
                () = tokio::time::sleep(RETRY), if !self.failures.is_empty() => {}
            }
        }
        self.converge(&ServiceHealth::default()).await;
    }

    async fn converge(&mut self, desired: &ServiceHealth) {
        let sockets: BTreeSet<Socket> = (desired.checks.iter())
            .flat_map(|(name, check)| {
                let of_family = |ip: &&IpAddr| check.local_endpoints(IpFamily::of(ip)).is_some();
                let addresses = desired.addresses.iter().filter(of_family);
                addresses.map(|ip| (name.clone(), SocketAddr::new(*ip, check.port)))
            })
            .collect();
        // Close before opening: another Service may have got the port.
        for (_, server) in self.open.extract_if(.., |socket, _| !sockets.contains(socket)) {
            server.abort();
            // The listener is closed when the task has ended. The result is always `cancelled`.
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
            // The kernel has no IPv6, so no load balancer can connect by IPv6.
            Err(source) if at.ip().is_unspecified() && source.raw_os_error() == Some(libc::EAFNOSUPPORT) => {
                return;
            }
            Err(source) => {
                let failure = OpenError { service: service.clone(), at: *at, source };
                let message = failure.to_string();
                if self.failures.get(&socket) != Some(&message) {
                    error!("{message}");
                    (self.on_failure)(&failure);
                    self.failures.insert(socket, message);
                }
                return;
            }
        };
        if self.failures.remove(&socket).is_some() {
            info!("Service {service}: opened its healthCheckNodePort at {at} after failures");
        }
        let (name, family) = (service.clone(), IpFamily::of(&at.ip()));
        let (desired, health) = (self.desired.clone(), self.health.clone());
        let server = http::serve(listener, move |_: &hyper::Method, _: &str| {
            // A server reports the endpoints of its own family, as in kube-proxy.
            let local_endpoints = (desired.borrow().checks.get(&name))
                .and_then(|check| check.local_endpoints(family))
                .unwrap_or_default();
            let healthy = health.borrow().is_healthy(Instant::now());
            answer(&name, local_endpoints, healthy)
        });
        self.open.insert(socket, tokio::spawn(server));
    }
}

/// Opens a listener. An IPv6 listener does not accept IPv4 connections.
fn listen(at: SocketAddr) -> io::Result<TcpListener> {
    let socket = match at {
        SocketAddr::V4(_) => TcpSocket::new_v4()?,
        SocketAddr::V6(_) => {
            let socket = TcpSocket::new_v6()?;
            rustix::net::sockopt::set_ipv6_v6only(&socket, true)?;
            socket
        }
    };
    // Connections of an earlier listener may be in TIME_WAIT.
    socket.set_reuseaddr(true)?;
    socket.bind(at)?;
    socket.listen(BACKLOG)
}

/// Returns the answer, which is the same for every method and path, as in kube-proxy.
fn answer(service: &ObjectName, local_endpoints: u32, healthy: bool) -> HttpResponse {
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
    use std::iter;
    use std::sync::atomic::{AtomicU32, Ordering};
    use std::sync::{Arc, Mutex};

    use super::super::health::Progress;
    use super::super::http::testing::request;
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

    /// Returns ports that are free. They are below those that the kernel gives to other sockets
    /// (`ip_local_port_range`), and no other test of this process gets them.
    fn free_ports<const N: usize>() -> [u16; N] {
        const FIRST: u32 = 20_000;
        const COUNT: u32 = 12_000;
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let mut ports = iter::repeat_with(|| {
            // Another process starts elsewhere.
            let number = std::process::id().wrapping_mul(97) % COUNT + NEXT.fetch_add(1, Ordering::Relaxed);
            (FIRST + number % COUNT) as u16
        })
        .filter(|port| std::net::TcpListener::bind(at(*port)).is_ok());
        [(); N].map(|()| ports.next().unwrap())
    }

    /// Health check servers at loopback addresses, of a healthy agent.
    struct Running {
        desired: watch::Sender<ServiceHealth>,
        health: watch::Sender<AgentState>,
        failed: Arc<Mutex<Vec<String>>>,
    }

    impl Running {
        fn start() -> Self {
            let (health, of_agent) =
                watch::channel(AgentState { progress: Progress::Serving, ..AgentState::starting("") });
            let addresses = ["127.0.0.1".parse().unwrap(), "::1".parse().unwrap()].into();
            let (desired, receiver) = watch::channel(ServiceHealth { addresses, ..ServiceHealth::default() });
            let failed = Arc::new(Mutex::new(Vec::new()));
            let sink = failed.clone();
            let ports = HealthPorts::new(receiver, of_agent, move |failure: &OpenError| {
                sink.lock().unwrap().push(failure.to_string());
            });
            tokio::spawn(ports.run());
            Self { desired, health, failed }
        }

        fn set(&self, checks: &[(&str, u16, u32)]) {
            let checks: BTreeMap<_, _> =
                checks.iter().map(|&(service, port, local)| (name(service), dual(port, local))).collect();
            self.desired.send_modify(|desired| {
                let gone = desired.checks.keys().filter(|service| !checks.contains_key(service));
                let gone: Vec<_> = gone.map(|service| (service.clone(), None)).collect();
                let there = checks.into_iter().map(|(service, check)| (service, Some(check)));
                desired.update(gone.into_iter().chain(there).collect());
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
        let answer = request(at(first), "GET /any/path").await;
        assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
        let body = r#"{"service":{"namespace":"default","name":"web"},"localEndpoints":2,"serviceProxyHealthy":true}"#;
        assert!(answer.ends_with(&format!("\r\n\r\n{body}")), "{answer}");
        let over_ipv6 = SocketAddr::new("::1".parse().unwrap(), first);
        assert!(request(over_ipv6, "POST /").await.starts_with("HTTP/1.1 200 "));

        running.set(&[("web", first, 0)]);
        let answer = request(at(first), "GET /").await;
        assert!(answer.starts_with("HTTP/1.1 503 "), "{answer}");
        assert!(answer.contains("x-load-balancing-endpoint-weight: 0\r\n"), "{answer}");

        // Another Service gets the port of the first one.
        running.set(&[("web", second, 1), ("shop", first, 1)]);
        eventually(async || is_open(at(second)).await).await;
        eventually(async || request(at(first), "GET /").await.contains("\"name\":\"shop\"")).await;

        // A Service of one family.
        let single = HealthCheck { port: second, local_v4: None, local_v6: Some(4) };
        running.desired.send_modify(|desired| {
            desired.update(vec![(name("web"), Some(single))]);
        });
        eventually(async || !is_open(at(second)).await).await;
        let over_ipv6 = SocketAddr::new("::1".parse().unwrap(), second);
        assert!(request(over_ipv6, "GET /").await.contains("x-load-balancing-endpoint-weight: 4\r\n"));

        running.health.send_modify(|state| state.progress = Progress::Starting("restart".into()));
        let answer = request(at(first), "GET /").await;
        assert!(answer.starts_with("HTTP/1.1 503 ") && answer.contains("\"serviceProxyHealthy\":false"));

        running.set(&[]);
        eventually(async || !is_open(at(first)).await && !is_open(at(second)).await).await;
        assert_eq!(*running.failed.lock().unwrap(), [""; 0]);
    }

    #[tokio::test]
    async fn a_listener_stays_when_only_the_number_of_endpoints_changes() {
        let [port] = free_ports();
        let (desired, receiver) = watch::channel(ServiceHealth::default());
        let health = watch::channel(AgentState::starting("")).1;
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
        drop(desired);
    }

    #[tokio::test(start_paused = true)]
    async fn a_port_in_use_is_logged_once_and_tried_again() {
        let [port] = free_ports();
        let taken = std::net::TcpListener::bind(at(port)).unwrap();
        let running = Running::start();
        running.set(&[("web", port, 1)]);
        // Enough time for many attempts.
        tokio::time::sleep(20 * RETRY).await;
        let failed = running.failed.lock().unwrap().clone();
        assert_eq!(failed.len(), 1, "{failed:?}");
        for part in ["Service default/web", &port.to_string(), "127.0.0.1", "in use", "recreate"] {
            assert!(failed[0].contains(part), "{failed:?}");
        }
        drop(taken);
        tokio::time::sleep(2 * RETRY).await;
        assert!(request(at(port), "GET /").await.starts_with("HTTP/1.1 200 "));
    }
}
