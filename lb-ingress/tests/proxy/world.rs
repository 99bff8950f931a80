//! A proxy on ports of its own, and endpoints that answer with what they received.

use std::convert::Infallible;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicU16, AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::{TokioExecutor, TokioIo};
use lb_ingress::observe::Observer;
use lb_ingress::proxy::{ClientTimeouts, Drain, Gateway, GatewaySettings, ListenerKind, serve};
use lb_ingress::routes::{
    Backend, BackendRef, HostPattern, HostRoutes, HostSettings, Origin, PathMatcher, Policy, Route,
};
use lb_ingress::tls::{CertificateStore, parse_certificate, self_signed};
use lb_model::ObjectName;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;

pub struct World {
    pub gateway: Arc<Gateway>,
    pub http: SocketAddr,
    pub https: SocketAddr,
    pub stop: watch::Sender<bool>,
    pub ended: mpsc::Receiver<Infallible>,
}

/// A short time for the head, so that the cases about it end soon, and longer than a busy machine
/// holds up a client. No case asserts a time.
pub fn settings() -> GatewaySettings {
    GatewaySettings {
        timeouts: ClientTimeouts { head: Duration::from_secs(2), ..ClientTimeouts::default() },
        ..GatewaySettings::default()
    }
}

impl World {
    pub async fn new() -> Self {
        Self::with(settings()).await
    }

    pub async fn with(settings: GatewaySettings) -> Self {
        let certificates = CertificateStore::new(self_signed().unwrap(), None);
        let gateway = Arc::new(Gateway::new(settings, certificates, Observer::default()).unwrap());
        let (drain, stop, ended) = Drain::new();
        let (http, https) = (listen().await, listen().await);
        let addresses = (http.local_addr().unwrap(), https.local_addr().unwrap());
        tokio::spawn(serve(http, ListenerKind::Http, gateway.clone(), drain.clone()));
        tokio::spawn(serve(https, ListenerKind::Https, gateway.clone(), drain));
        Self { gateway, http: addresses.0, https: addresses.1, stop, ended }
    }

    /// Sets the routes of a host: prefix, policy, backend.
    pub fn route(&self, host: &str, settings: HostSettings, routes: &[(&str, Policy, &str)]) {
        let routes = routes.iter().map(|(prefix, policy, service)| {
            Arc::new(Route {
                origin: Origin { ingress: ObjectName::new("default", "web"), path: Some((0, 0)) },
                matcher: PathMatcher::prefix(prefix),
                policy: Arc::new(policy.clone()),
                backends: [Backend { target: backend(service), weight: 1 }].into(),
                canary: None,
            })
        });
        let routes = Arc::new(HostRoutes::new(settings, routes, None));
        let table = self.gateway.table.load_full();
        let host = HostPattern::parse(host).unwrap();
        let table = table.with([(host, Some(routes))], table.default_route().cloned());
        self.gateway.table.store(Arc::new(table));
    }

    /// Routes `a.example` with a policy to these endpoints.
    pub fn simple(&self, policy: Policy, endpoints: &[SocketAddr]) {
        self.route("a.example", HostSettings::default(), &[("/", policy, "web")]);
        self.gateway.endpoints.set(&backend("web"), endpoints);
    }

    /// Sets the certificate of a Secret for this name.
    pub fn certificate(&self, secret: &str, names: &[&str]) -> ObjectName {
        let names: Vec<_> = names.iter().map(|name| (*name).to_owned()).collect();
        let rcgen::CertifiedKey { cert, signing_key } = rcgen::generate_simple_self_signed(names).unwrap();
        let key = signing_key.serialize_pem();
        let certificate = parse_certificate(cert.pem().as_bytes(), key.as_bytes()).unwrap();
        let secret = ObjectName::new("default", secret);
        self.gateway.certificates.set(secret.clone(), Some(certificate));
        secret
    }

    /// Sends bytes and returns everything until the proxy closes. The client keeps its side open.
    pub async fn raw(&self, bytes: &[u8]) -> String {
        let mut stream = TcpStream::connect(self.http).await.unwrap();
        // The proxy may close before it has read everything.
        let _ = stream.write_all(bytes).await;
        let mut answer = Vec::new();
        let _ = stream.read_to_end(&mut answer).await;
        String::from_utf8_lossy(&answer).into_owned()
    }

    /// Sends one request of HTTP/1.1 for `a.example` and returns the whole answer.
    pub async fn get(&self, path: &str, fields: &str) -> String {
        let head = format!("GET {path} HTTP/1.1\r\nHost: a.example\r\nConnection: close\r\n{fields}\r\n");
        self.raw(head.as_bytes()).await
    }
}

pub fn backend(service: &str) -> BackendRef {
    BackendRef { service: ObjectName::new("default", service), port: "http".into() }
}

/// Listens at an address that no other test uses: after the end of the listener, no other one
/// answers there.
pub async fn listen() -> TcpListener {
    static NEXT: AtomicU16 = AtomicU16::new(0);
    let [high, low] = NEXT.fetch_add(1, Ordering::Relaxed).to_be_bytes();
    TcpListener::bind((Ipv4Addr::new(127, 1, high, low), 0)).await.unwrap()
}

/// An address at which nothing listens.
pub async fn closed() -> SocketAddr {
    listen().await.local_addr().unwrap()
}

pub struct Endpoint {
    pub address: SocketAddr,
    pub requests: Arc<AtomicUsize>,
    task: JoinHandle<()>,
}

impl Endpoint {
    /// Answers with its name, the request line, the fields and the body. A field `x-answer-NAME`
    /// becomes a field of the answer.
    pub async fn start(name: &'static str) -> Self {
        let listener = listen().await;
        let (address, requests) = (listener.local_addr().unwrap(), Arc::new(AtomicUsize::new(0)));
        let count = requests.clone();
        let task = tokio::spawn(async move {
            let mut connections = tokio::task::JoinSet::new();
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                let count = count.clone();
                let service = service_fn(move |request| {
                    count.fetch_add(1, Ordering::Relaxed);
                    echo(name, request)
                });
                connections.spawn(async move {
                    let builder = hyper_util::server::conn::auto::Builder::new(TokioExecutor::new());
                    let _ = builder.serve_connection_with_upgrades(TokioIo::new(stream), service).await;
                });
            }
        });
        Self { address, requests, task }
    }

    pub fn count(&self) -> usize {
        self.requests.load(Ordering::Relaxed)
    }

    /// Closes the port and all connections.
    pub async fn kill(self) {
        self.task.abort();
        let _ = self.task.await;
    }
}

async fn echo(name: &str, mut request: Request<Incoming>) -> Result<Response<Full<Bytes>>, hyper::Error> {
    if request.headers().get("upgrade").is_some_and(|protocol| protocol == "echo") {
        let upgrade = hyper::upgrade::on(&mut request);
        tokio::spawn(async move {
            let mut stream = TokioIo::new(upgrade.await.unwrap());
            let mut buffer = [0; 256];
            while let Ok(count @ 1..) = stream.read(&mut buffer).await {
                stream.write_all(&buffer[..count]).await.unwrap();
            }
        });
        let response = Response::builder().status(StatusCode::SWITCHING_PROTOCOLS);
        let response = response.header("connection", "upgrade").header("upgrade", "echo");
        return Ok(response.body(Full::default()).unwrap());
    }
    let (parts, body) = request.into_parts();
    let body = body.collect().await?;
    let trailers = body.trailers().cloned();
    let mut text = format!("{name}: {} {}\n", parts.method, parts.uri);
    for (name, value) in parts.headers.iter().chain(trailers.iter().flatten()) {
        text.push_str(&format!("{name}: {}\n", value.to_str().unwrap()));
    }
    text.push_str(std::str::from_utf8(&body.to_bytes()).unwrap());
    let status = parts
        .headers
        .get("x-status")
        .map_or(StatusCode::OK, |status| StatusCode::from_bytes(status.as_bytes()).unwrap());
    let mut response = Response::builder().status(status).header("x-endpoint", name);
    for (field, value) in &parts.headers {
        if let Some(field) = field.as_str().strip_prefix("x-answer-") {
            response = response.header(field, value);
        }
    }
    Ok(response.body(Full::new(text.into())).unwrap())
}
