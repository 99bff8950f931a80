//! TLS towards endpoints, with certificates of both sides.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::{TokioExecutor, TokioIo};
use lb_ingress::routes::policy::{BackendProtocol, UpstreamTls};
use lb_ingress::routes::{HostSettings, Policy};
use lb_ingress::tls::parse_certificate;
use lb_model::{ObjectName, Secret};
use rustls::pki_types::PrivateKeyDer;
use rustls::server::WebPkiClientVerifier;
use rustls::{RootCertStore, ServerConfig};
use tokio_rustls::TlsAcceptor;

use crate::world::{World, backend, listen};

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

    /// Returns an identity that an authority between the two has signed.
    fn distant_identity(&self, name: &str) -> Identity {
        let (params, key) = (authority_params("between"), rcgen::KeyPair::generate().unwrap());
        let between = params.signed_by(&key, &self.issuer).unwrap();
        let between = Self { root: between, issuer: rcgen::Issuer::new(params, key) };
        let mut identity = between.identity(name);
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
}

impl TlsEndpoint {
    /// With `clients`, a client needs a certificate of that authority.
    async fn start(identity: &Identity, clients: Option<&Authority>) -> Self {
        let config = Arc::new(Mutex::new(server_config(identity, clients)));
        let listener = listen().await;
        let (address, current) = (listener.local_addr().unwrap(), config.clone());
        tokio::spawn(async move {
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                let acceptor = TlsAcceptor::from(current.lock().unwrap().clone());
                tokio::spawn(async move {
                    let Ok(stream) = acceptor.accept(stream).await else { return };
                    let session = stream.get_ref().1;
                    let name = session.server_name().unwrap_or("none").to_owned();
                    let certificates = session.peer_certificates().map_or(0, <[_]>::len);
                    let text = format!("name {name}, {certificates} certificates\n");
                    let service = service_fn(move |request: Request<Incoming>| {
                        let text = format!("{:?} {text}", request.version());
                        async move { Ok::<_, hyper::Error>(Response::new(Full::new(Bytes::from(text)))) }
                    });
                    let builder = hyper_util::server::conn::auto::Builder::new(TokioExecutor::new());
                    let _ = builder.serve_connection(TokioIo::new(stream), service).await;
                });
            }
        });
        Self { address, config }
    }
}

fn server_config(identity: &Identity, clients: Option<&Authority>) -> Arc<ServerConfig> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = ServerConfig::builder_with_provider(provider.clone());
    let builder = builder.with_safe_default_protocol_versions().unwrap();
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

/// Sets the Secret as the controller does.
fn set_secret(world: &World, identity: Option<&Identity>, authority: Option<&Authority>) {
    let name = ObjectName::new("default", SECRET);
    let certificate = identity.map(|identity| {
        let chain: String = identity.chain.iter().map(rcgen::Certificate::pem).collect();
        parse_certificate(chain.as_bytes(), identity.key.serialize_pem().as_bytes()).unwrap()
    });
    world.gateway.certificates.set(name.clone(), certificate);
    let data = authority.map(|authority| ("ca.crt".into(), authority.root.pem().into_bytes().into()));
    let secret = Secret { data: data.into_iter().collect(), ..Secret::default() };
    world.gateway.authorities.set(&name, Some(&secret));
}

fn route(world: &World, protocol: BackendProtocol, tls: &UpstreamTls) {
    let mut policy = Policy::default();
    (policy.upstream.protocol, policy.upstream.tls) = (protocol, tls.clone());
    world.route("a.example", HostSettings::default(), &[("/", policy, "web")]);
}

fn verified(name: Option<&str>) -> UpstreamTls {
    let secret = Some(ObjectName::new("default", SECRET));
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
    let endpoint = TlsEndpoint::start(&authority.distant_identity("inner.example"), None).await;
    set_secret(&world, None, Some(&authority));
    for (verify_depth, expected) in [(1, "502"), (2, "200")] {
        let tls = UpstreamTls { verify_depth, ..verified(Some("inner.example")) };
        route(&world, BackendProtocol::Https, &tls);
        let answer = get(&world, &endpoint).await;
        assert!(answer.starts_with(&format!("HTTP/1.1 {expected} ")), "{verify_depth}: {answer}");
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
