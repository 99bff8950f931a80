//! TLS towards endpoints, with certificates of both sides.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures::{StreamExt as _, stream};
use http_body_util::StreamBody;
use http_body_util::combinators::UnsyncBoxBody;
use hyper::body::{Bytes, Frame, Incoming};
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::{TokioExecutor, TokioIo};
use lb_ingress::routes::policy::{BackendProtocol, UpstreamTls};
use lb_ingress::routes::{HostSettings, Policy};
use lb_model::{ObjectName, Secret};
use rustls::pki_types::PrivateKeyDer;
use rustls::server::WebPkiClientVerifier;
use rustls::{RootCertStore, ServerConfig};
use tokio::io::AsyncReadExt as _;
use tokio::sync::watch;
use tokio_rustls::TlsAcceptor;

use crate::world::{Endpoint, World, backend, listen};

type Body = UnsyncBoxBody<Bytes, Infallible>;

/// Much longer than a busy machine needs.
const LONG: Duration = Duration::from_secs(60);

/// An authority, and the certificates that it signs.
struct Authority {
    root: rcgen::Certificate,
    issuer: rcgen::Issuer<'static, rcgen::KeyPair>,
}

/// A chain, its own certificate first, and its key.
struct Identity {
    chain: Vec<rcgen::Certificate>,
    key: rcgen::KeyPair,
}

impl Authority {
    fn new() -> Self {
        let (params, key) = (authority_params("root"), rcgen::KeyPair::generate().unwrap());
        let root = params.self_signed(&key).unwrap();
        Self { root, issuer: rcgen::Issuer::new(params, key) }
    }

    fn identity(&self, name: &str) -> Identity {
        let key = rcgen::KeyPair::generate().unwrap();
        let params = rcgen::CertificateParams::new([name.to_owned()]).unwrap();
        Identity { chain: vec![params.signed_by(&key, &self.issuer).unwrap()], key }
    }

    /// Returns an identity with this number of authorities between it and this one.
    fn distant_identity(&self, name: &str, distance: usize) -> Identity {
        if distance == 0 {
            return self.identity(name);
        }
        let subject = format!("between {distance}");
        let (params, key) = (authority_params(&subject), rcgen::KeyPair::generate().unwrap());
        let between = params.signed_by(&key, &self.issuer).unwrap();
        let between = Self { root: between, issuer: rcgen::Issuer::new(params, key) };
        let mut identity = between.distant_identity(name, distance - 1);
        identity.chain.push(between.root);
        identity
    }
}

fn authority_params(name: &str) -> rcgen::CertificateParams {
    let mut params = rcgen::CertificateParams::new([]).unwrap();
    params.distinguished_name.push(rcgen::DnType::CommonName, name);
    params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    params
}

/// An endpoint that answers with the server name that it received, and with the number of
/// certificates of its client.
struct TlsEndpoint {
    address: SocketAddr,
    config: Arc<Mutex<Arc<ServerConfig>>>,
    connections: watch::Receiver<Connections>,
    /// The answers to `/slow` end when this is true.
    finish: watch::Sender<bool>,
}

#[derive(Debug, Default, Clone, Copy)]
struct Connections {
    accepted: usize,
    open: usize,
}

impl TlsEndpoint {
    /// With `clients`, a client needs a certificate of that authority.
    async fn start(identity: &Identity, clients: Option<&Authority>) -> Self {
        let config = Arc::new(Mutex::new(server_config(identity, clients)));
        let listener = listen().await;
        let (address, current) = (listener.local_addr().unwrap(), config.clone());
        let (count, connections) = watch::channel(Connections::default());
        let (finish, finished) = watch::channel(false);
        let count = Arc::new(count);
        tokio::spawn(async move {
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                let (count, finished) = (count.clone(), finished.clone());
                let acceptor = TlsAcceptor::from(current.lock().unwrap().clone());
                tokio::spawn(async move {
                    let Ok(stream) = acceptor.accept(stream).await else { return };
                    let session = stream.get_ref().1;
                    let name = session.server_name().unwrap_or("none").to_owned();
                    let certificates = session.peer_certificates().map_or(0, <[_]>::len);
                    let text = format!("name {name}, {certificates} certificates\n");
                    let service = service_fn(move |request: Request<Incoming>| {
                        let text = format!("{:?} {text}", request.version());
                        let mut finished = finished.clone();
                        async move {
                            let is_slow = request.uri().path() == "/slow";
                            let finished = async move {
                                let _ = finished.wait_for(|finished| *finished || !is_slow).await;
                            };
                            Ok::<_, Infallible>(Response::new(two_parts(text, finished)))
                        }
                    });
                    count.send_modify(|count| {
                        (count.accepted, count.open) = (count.accepted + 1, count.open + 1);
                    });
                    let builder = hyper_util::server::conn::auto::Builder::new(TokioExecutor::new());
                    let _ = builder.serve_connection(TokioIo::new(stream), service).await;
                    count.send_modify(|count| count.open -= 1);
                });
            }
        });
        Self { address, config, connections, finish }
    }

    /// Waits until this number of connections is open.
    async fn has_open(&self, open: usize) {
        let mut connections = self.connections.clone();
        let waiting = tokio::time::timeout(LONG, connections.wait_for(|count| count.open == open));
        assert!(waiting.await.is_ok(), "expected {open}: {:?}", *self.connections.borrow());
    }

    fn accepted(&self) -> usize {
        self.connections.borrow().accepted
    }
}

/// Returns a body with a text, and with `end` after a future.
fn two_parts(text: String, future: impl Future<Output = ()> + Send + 'static) -> Body {
    let part = |text: String| Ok::<_, Infallible>(Frame::data(Bytes::from(text)));
    let end = async move {
        future.await;
        part("end\n".into())
    };
    Body::new(StreamBody::new(stream::iter([part(text)]).chain(stream::once(end))))
}

fn server_config(identity: &Identity, clients: Option<&Authority>) -> Arc<ServerConfig> {
    server_config_of(rustls::ALL_VERSIONS, identity, clients)
}

fn server_config_of(
    versions: &[&'static rustls::SupportedProtocolVersion],
    identity: &Identity,
    clients: Option<&Authority>,
) -> Arc<ServerConfig> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = ServerConfig::builder_with_provider(provider.clone());
    let builder = builder.with_protocol_versions(versions).unwrap();
    let builder = match clients {
        Some(authority) => {
            let mut roots = RootCertStore::empty();
            roots.add(authority.root.der().clone()).unwrap();
            let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider);
            builder.with_client_cert_verifier(verifier.build().unwrap())
        }
        None => builder.with_no_client_auth(),
    };
    let chain = identity.chain.iter().map(|certificate| certificate.der().clone()).collect();
    let key = PrivateKeyDer::try_from(identity.key.serialize_der()).unwrap();
    let mut config = builder.with_single_cert(chain, key).unwrap();
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Arc::new(config)
}

const SECRET: &str = "backend";

fn secret_name() -> ObjectName {
    ObjectName::new("default", SECRET)
}

fn set_secret(world: &World, identity: Option<&Identity>, authority: Option<&Authority>) {
    let own = identity.map(|identity| {
        let chain: String = identity.chain.iter().map(rcgen::Certificate::pem).collect();
        [("tls.crt", chain), ("tls.key", identity.key.serialize_pem())]
    });
    let authority = authority.map(|authority| ("ca.crt", authority.root.pem()));
    let data = own.into_iter().flatten().chain(authority);
    let data = data.map(|(key, value)| (key.into(), value.into_bytes().into())).collect();
    let secret = Arc::new(Secret { data, ..Secret::default() });
    world.gateway.set_secret(&secret_name(), Some(&secret)).unwrap();
}

fn route(world: &World, protocol: BackendProtocol, tls: &UpstreamTls) {
    let mut policy = Policy::default();
    (policy.upstream.protocol, policy.upstream.tls) = (protocol, tls.clone());
    world.route("a.example", HostSettings::default(), &[("/", policy, "web")]);
}

fn verified(name: Option<&str>) -> UpstreamTls {
    let secret = Some(secret_name());
    UpstreamTls { secret, verify: true, name: name.map(Into::into), ..UpstreamTls::default() }
}

/// Sends a request and returns its answer. The next request makes a connection of its own.
async fn get(world: &World, endpoint: &TlsEndpoint) -> String {
    world.gateway.endpoints.set(&backend("web"), &[]);
    world.gateway.endpoints.set(&backend("web"), &[endpoint.address]);
    world.get("/", "").await
}

#[tokio::test]
async fn certificates_of_endpoints_are_verified() {
    let world = World::new().await;
    let (authority, stranger) = (Authority::new(), Authority::new());
    let endpoint = TlsEndpoint::start(&authority.identity("inner.example"), None).await;
    let inner = || verified(Some("inner.example"));
    let (any, secret) = (UpstreamTls::default(), inner().secret);
    let shown_only = UpstreamTls { secret: secret.clone(), ..UpstreamTls::default() };
    for (tls, of, expected) in [
        (any, None, "200"),
        (shown_only.clone(), None, "503"),
        (inner(), None, "503"),
        // Without the authority nothing can be verified.
        (UpstreamTls { secret: None, ..inner() }, Some(&authority), "503"),
        (inner(), Some(&authority), "200"),
        (inner(), Some(&stranger), "502"),
        (shown_only, Some(&stranger), "200"),
        (verified(Some("other.example")), Some(&authority), "502"),
        // The name is the one of the request.
        (verified(None), Some(&authority), "502"),
    ] {
        set_secret(&world, None, of);
        for protocol in [BackendProtocol::Https, BackendProtocol::Grpcs] {
            route(&world, protocol, &tls);
            let answer = get(&world, &endpoint).await;
            assert!(answer.starts_with(&format!("HTTP/1.1 {expected} ")), "{protocol:?} {tls:?}: {answer}");
            let version = if protocol.is_http2() { "HTTP/2.0" } else { "HTTP/1.1" };
            // The name is sent only with `proxy-ssl-server-name`.
            let body = format!("{version} name none, 0 certificates\n");
            assert_eq!(answer.contains(&body), expected == "200", "{protocol:?} {tls:?}: {answer}");
        }
    }
    *endpoint.config.lock().unwrap() = server_config(&authority.identity("a.example"), None);
    set_secret(&world, None, Some(&authority));
    route(&world, BackendProtocol::Https, &UpstreamTls { send_name: true, ..verified(None) });
    let answer = get(&world, &endpoint).await;
    assert!(answer.contains("name a.example, 0 certificates\n"), "{answer}");
}

#[tokio::test]
async fn chains_of_endpoints_have_a_longest_length() {
    let (world, authority) = (World::new().await, Authority::new());
    let identity = authority.distant_identity("inner.example", 1);
    let endpoint = TlsEndpoint::start(&identity, None).await;
    set_secret(&world, None, Some(&authority));
    // `openssl verify -verify_depth` accepts and refuses the same chains.
    for (distance, verify_depth, expected) in [(1, 1, "200"), (2, 1, "502"), (2, 2, "200"), (3, 2, "502")] {
        let identity = authority.distant_identity("inner.example", distance);
        *endpoint.config.lock().unwrap() = server_config(&identity, None);
        let tls = UpstreamTls { verify_depth, ..verified(Some("inner.example")) };
        route(&world, BackendProtocol::Https, &tls);
        let answer = get(&world, &endpoint).await;
        assert!(answer.starts_with(&format!("HTTP/1.1 {expected} ")), "{distance} {verify_depth}: {answer}");
    }
}

#[tokio::test]
async fn the_proxy_shows_its_certificate() {
    let world = World::new().await;
    let (authority, stranger) = (Authority::new(), Authority::new());
    let endpoint = TlsEndpoint::start(&authority.identity("inner.example"), Some(&authority)).await;
    let tls = UpstreamTls { send_name: true, ..verified(Some("inner.example")) };
    let clients = [(None, false), (Some(&stranger), false), (Some(&authority), true)];
    for protocol in [BackendProtocol::Https, BackendProtocol::Grpcs] {
        route(&world, protocol, &tls);
        for (signer, admitted) in clients {
            let identity = signer.map(|signer| signer.identity("proxy"));
            set_secret(&world, identity.as_ref(), Some(&authority));
            let answer = get(&world, &endpoint).await;
            let expected = if admitted { "HTTP/1.1 200 " } else { "HTTP/1.1 502 " };
            assert!(answer.starts_with(expected), "{protocol:?} {admitted}: {answer}");
            let shown = answer.contains("name inner.example, 1 certificates\n");
            assert_eq!(shown, admitted, "{answer}");
        }
    }
}

/// A connection that was made with an earlier Secret gets no further request.
#[tokio::test]
async fn another_secret_takes_effect_with_the_next_request() {
    let (world, authority) = (World::new().await, Authority::new());
    let endpoint = TlsEndpoint::start(&authority.identity("inner.example"), None).await;
    world.gateway.endpoints.set(&backend("web"), &[endpoint.address]);
    route(&world, BackendProtocol::Https, &verified(Some("inner.example")));
    for (of, expected) in [(&authority, "200"), (&Authority::new(), "502"), (&authority, "200")] {
        set_secret(&world, None, Some(of));
        for _ in 0..2 {
            let answer = world.get("/", "").await;
            assert!(answer.starts_with(&format!("HTTP/1.1 {expected} ")), "{answer}");
        }
    }
}

/// The endpoint may be right for other Ingresses.
#[tokio::test]
async fn a_certificate_that_is_not_admitted_ejects_no_endpoint() {
    let (world, authority) = (World::new().await, Authority::new());
    let endpoint = TlsEndpoint::start(&authority.identity("inner.example"), None).await;
    set_secret(&world, None, Some(&authority));
    for protocol in [BackendProtocol::Https, BackendProtocol::Grpcs] {
        route(&world, protocol, &verified(Some("other.example")));
        let answer = get(&world, &endpoint).await;
        assert!(answer.starts_with("HTTP/1.1 502 "), "{answer}");
        let set = world.gateway.endpoints.of(&backend("web")).unwrap();
        assert!(!set.endpoints()[0].is_ejected(0), "{protocol:?}");
    }
}

/// A wrong Secret of one Ingress takes no endpoint from the others. In TLS 1.3 the refusal comes
/// after the handshake.
#[tokio::test]
async fn an_endpoint_that_refuses_the_certificate_is_not_ejected() {
    let (world, authority, stranger) = (World::new().await, Authority::new(), Authority::new());
    let identity = authority.identity("inner.example");
    let endpoint = TlsEndpoint::start(&identity, Some(&authority)).await;
    for version in [&rustls::version::TLS12, &rustls::version::TLS13] {
        *endpoint.config.lock().unwrap() = server_config_of(&[version], &identity, Some(&authority));
        for protocol in [BackendProtocol::Https, BackendProtocol::Grpcs] {
            route(&world, protocol, &verified(Some("inner.example")));
            for signer in [None, Some(&stranger)] {
                let own = signer.map(|signer| signer.identity("proxy"));
                set_secret(&world, own.as_ref(), Some(&authority));
                assert!(!is_ejected(&world, endpoint.address).await, "{version:?} {protocol:?}");
            }
        }
    }
}

/// Sends four requests to a new endpoint, which all fail. Returns whether they have ejected it.
async fn is_ejected(world: &World, address: SocketAddr) -> bool {
    world.gateway.endpoints.set(&backend("web"), &[]);
    world.gateway.endpoints.set(&backend("web"), &[address]);
    let set = world.gateway.endpoints.of(&backend("web")).unwrap();
    for _ in 0..4 {
        let answer = world.get("/", "").await;
        assert!(answer.starts_with("HTTP/1.1 502 "), "{answer}");
    }
    set.endpoints()[0].is_ejected(0)
}

/// An endpoint that ends its connections after the handshake fails, unless it may have refused the
/// certificate of the proxy.
#[tokio::test]
async fn an_endpoint_that_ends_connections_is_ejected() {
    let (world, authority) = (World::new().await, Authority::new());
    let identity = authority.identity("inner.example");
    set_secret(&world, Some(&authority.identity("proxy")), Some(&authority));
    // An HTTP/2 connection can end before a request is sent, which is no failure.
    let (http1, both) = ([BackendProtocol::Https], [BackendProtocol::Https, BackendProtocol::Grpcs]);
    for (clients, protocols, ejected) in [(None, &http1[..], true), (Some(&authority), &both, false)] {
        let listener = listen().await;
        let address = listener.local_addr().unwrap();
        let mut config = server_config(&identity, clients);
        // A session that is resumed is that of a certificate which the endpoint has admitted.
        Arc::get_mut(&mut config).unwrap().send_tls13_tickets = 0;
        let acceptor = TlsAcceptor::from(config);
        let task = tokio::spawn(async move {
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                let mut stream = acceptor.accept(stream).await.unwrap();
                let _ = stream.read(&mut [0; 64]).await;
            }
        });
        for protocol in protocols {
            route(&world, *protocol, &verified(Some("inner.example")));
            assert_eq!(is_ejected(&world, address).await, ejected, "{protocol:?}");
        }
        task.abort();
    }
}

/// An endpoint without TLS may be right for an Ingress without TLS.
#[tokio::test]
async fn an_endpoint_without_tls_is_not_ejected() {
    let world = World::new().await;
    let endpoint = Endpoint::start("web").await;
    world.gateway.endpoints.set(&backend("web"), &[endpoint.address]);
    let set = world.gateway.endpoints.of(&backend("web")).unwrap();
    for protocol in [BackendProtocol::Https, BackendProtocol::Grpcs] {
        route(&world, protocol, &UpstreamTls::default());
        let answer = world.get("/", "").await;
        assert!(answer.starts_with("HTTP/1.1 502 "), "{answer}");
        assert!(!set.endpoints()[0].is_ejected(0), "{protocol:?}");
    }
}

/// An update of a Secret, such as a new label, ends no connection.
#[tokio::test]
async fn connections_outlast_events_without_a_change() {
    let (world, authority) = (World::new().await, Authority::new());
    let endpoint = TlsEndpoint::start(&authority.identity("inner.example"), None).await;
    let identity = authority.identity("proxy");
    for (protocol, accepted) in [(BackendProtocol::Https, 1), (BackendProtocol::Grpcs, 2)] {
        route(&world, protocol, &verified(Some("inner.example")));
        world.gateway.endpoints.set(&backend("web"), &[endpoint.address]);
        for _ in 0..3 {
            set_secret(&world, Some(&identity), Some(&authority));
            let answer = world.get("/", "").await;
            assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
        }
        assert_eq!(endpoint.accepted(), accepted, "{protocol:?}");
    }
}

/// Connections end without a further request, after a change of their Secret and its removal.
/// No copy of its key stays.
#[tokio::test]
async fn connections_end_with_their_secret() {
    let (world, authority) = (World::new().await, Authority::new());
    let endpoint = TlsEndpoint::start(&authority.identity("inner.example"), None).await;
    world.gateway.endpoints.set(&backend("web"), &[endpoint.address]);
    for protocol in [BackendProtocol::Https, BackendProtocol::Grpcs] {
        route(&world, protocol, &verified(Some("inner.example")));
        for removed in [false, true] {
            set_secret(&world, Some(&authority.identity("proxy")), Some(&authority));
            let key = Arc::downgrade(&world.gateway.certificates.own(&secret_name()).unwrap());
            let answer = world.get("/", "").await;
            assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
            endpoint.has_open(1).await;
            if removed {
                world.gateway.set_secret(&secret_name(), None).unwrap();
            } else {
                set_secret(&world, Some(&authority.identity("another")), Some(&authority));
            }
            endpoint.has_open(0).await;
            let gone = async {
                while key.strong_count() > 0 {
                    tokio::time::sleep(Duration::from_millis(5)).await;
                }
            };
            assert!(tokio::time::timeout(LONG, gone).await.is_ok(), "{protocol:?} {removed}");
        }
    }
}

#[tokio::test]
async fn a_request_ends_before_its_connection() {
    let (world, authority) = (World::new().await, Authority::new());
    let endpoint = TlsEndpoint::start(&authority.identity("inner.example"), None).await;
    world.gateway.endpoints.set(&backend("web"), &[endpoint.address]);
    for protocol in [BackendProtocol::Https, BackendProtocol::Grpcs] {
        endpoint.finish.send_replace(false);
        set_secret(&world, Some(&authority.identity("proxy")), Some(&authority));
        route(&world, protocol, &verified(Some("inner.example")));
        let slow = world.get("/slow", "");
        let change = async {
            endpoint.has_open(1).await;
            set_secret(&world, Some(&authority.identity("another")), Some(&authority));
            let answer = world.get("/", "").await;
            assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
            endpoint.finish.send_replace(true);
        };
        let (answer, ()) = tokio::join!(slow, change);
        assert!(answer.contains("end\n"), "{protocol:?}: {answer}");
        // The one with the Secret as it is now.
        endpoint.has_open(1).await;
        world.gateway.set_secret(&secret_name(), None).unwrap();
        endpoint.has_open(0).await;
    }
}

/// The server name is the host of the request, so clients choose how many there are.
#[tokio::test]
async fn connections_for_further_requests_are_bounded() {
    let (world, authority) = (World::new().await, Authority::new());
    let endpoint = TlsEndpoint::start(&authority.identity("inner.example"), None).await;
    world.gateway.endpoints.set(&backend("web"), &[endpoint.address]);
    let mut policy = Policy::default();
    policy.upstream.protocol = BackendProtocol::Grpcs;
    policy.upstream.tls = UpstreamTls { send_name: true, ..UpstreamTls::default() };
    world.route("*.example", HostSettings::default(), &[("/", policy, "web")]);
    let get = async |number: usize| {
        let head = format!("GET / HTTP/1.1\r\nHost: h{number}.example\r\nConnection: close\r\n\r\n");
        let answer = world.raw(head.as_bytes()).await;
        assert!(answer.contains(&format!("name h{number}.example")), "{answer}");
    };
    for number in 0..70 {
        get(number).await;
        get(0).await;
    }
    endpoint.has_open(64).await;
    assert_eq!(endpoint.accepted(), 70, "the most recently used ones stay");
}

/// The verifier does not admit an authority as an endpoint. OpenSSL does.
#[tokio::test]
async fn a_certificate_as_its_own_authority_is_no_authority() {
    let world = World::new().await;
    for (is_ca, expected) in [
        (rcgen::IsCa::NoCa, "200"),
        (rcgen::IsCa::ExplicitNoCa, "200"),
        (rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained), "502"),
    ] {
        let mut params = rcgen::CertificateParams::new(["inner.example".to_owned()]).unwrap();
        params.is_ca = is_ca;
        let key = rcgen::KeyPair::generate().unwrap();
        let root = params.self_signed(&key).unwrap();
        let endpoint = TlsEndpoint::start(&Identity { chain: vec![root.clone()], key }, None).await;
        let issuer = rcgen::Issuer::new(params, rcgen::KeyPair::generate().unwrap());
        set_secret(&world, None, Some(&Authority { root, issuer }));
        route(&world, BackendProtocol::Https, &verified(Some("inner.example")));
        let answer = get(&world, &endpoint).await;
        assert!(answer.starts_with(&format!("HTTP/1.1 {expected} ")), "{is_ca:?}: {answer}");
    }
}
