//! What the proxy does with well-formed requests.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt as _, Full, StreamBody};
use hyper::body::Frame;
use hyper::{Request, StatusCode, Version};
use hyper_util::rt::{TokioExecutor, TokioIo};
use lb_ingress::proxy::GatewaySettings;
use lb_ingress::proxy::{Explanation, Question, explain};
use lb_ingress::routes::policy::{
    Answer, Body, Cors, Errors, Limits, Origins, Rate, Redirect, Replacement, Responses, Sources,
    TlsRedirect, Upstream,
};
use lb_ingress::routes::policy::{BackendProtocol, CookieAffinity};
use lb_ingress::routes::{HostSettings, Origin, Passthrough, Policy, Template};
use lb_model::ObjectName;
use rustls::pki_types::ServerName;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;

use crate::world::{Endpoint, World, backend, closed, listen, settings};

/// A wait of this time is a failure.
const LIMIT: Duration = Duration::from_secs(30);

fn template(text: &str) -> Template {
    Template::parse(text).unwrap()
}

type Http2<B> = hyper::client::conn::http2::SendRequest<B>;

/// Accepts any certificate of the server.
pub fn client_config() -> rustls::ConfigBuilder<rustls::ClientConfig, rustls::client::WantsClientCert> {
    #[derive(Debug)]
    struct Any;
    impl rustls::client::danger::ServerCertVerifier for Any {
        fn verify_server_cert(
            &self,
            _: &rustls::pki_types::CertificateDer<'_>,
            _: &[rustls::pki_types::CertificateDer<'_>],
            _: &ServerName<'_>,
            _: &[u8],
            _: rustls::pki_types::UnixTime,
        ) -> Result<rustls::client::danger::ServerCertVerified, rustls::Error> {
            Ok(rustls::client::danger::ServerCertVerified::assertion())
        }
        fn verify_tls12_signature(
            &self,
            _: &[u8],
            _: &rustls::pki_types::CertificateDer<'_>,
            _: &rustls::DigitallySignedStruct,
        ) -> Result<rustls::client::danger::HandshakeSignatureValid, rustls::Error> {
            Ok(rustls::client::danger::HandshakeSignatureValid::assertion())
        }
        fn verify_tls13_signature(
            &self,
            _: &[u8],
            _: &rustls::pki_types::CertificateDer<'_>,
            _: &rustls::DigitallySignedStruct,
        ) -> Result<rustls::client::danger::HandshakeSignatureValid, rustls::Error> {
            Ok(rustls::client::danger::HandshakeSignatureValid::assertion())
        }
        fn supported_verify_schemes(&self) -> Vec<rustls::SignatureScheme> {
            use rustls::SignatureScheme as S;
            vec![S::ECDSA_NISTP256_SHA256, S::ED25519, S::RSA_PSS_SHA256]
        }
    }
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(Any))
}

fn tls_connector(alpn: &[&[u8]]) -> TlsConnector {
    let mut config = client_config().with_no_client_auth();
    config.alpn_protocols = alpn.iter().map(|name| name.to_vec()).collect();
    TlsConnector::from(Arc::new(config))
}

/// Connects with a server name. Returns the connection and the certificate of the server.
async fn tls(
    world: &World,
    name: &'static str,
    alpn: &[&[u8]],
) -> (tokio_rustls::client::TlsStream<TcpStream>, Vec<u8>) {
    let stream = TcpStream::connect(world.https).await.unwrap();
    let name = ServerName::try_from(name).unwrap();
    let stream = tls_connector(alpn).connect(name, stream).await.unwrap();
    let certificate = stream.get_ref().1.peer_certificates().unwrap()[0].to_vec();
    (stream, certificate)
}

async fn http2<B>(
    stream: impl tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin + Send + 'static,
) -> Http2<B>
where
    B: hyper::body::Body<Data = Bytes, Error = Infallible> + Unpin + Send + 'static,
{
    let (sender, connection) =
        hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await.unwrap();
    tokio::spawn(connection);
    sender
}

async fn http2_get(sender: &mut Http2<Full<Bytes>>, uri: &str) -> (StatusCode, String) {
    let request = Request::builder().version(Version::HTTP_2).uri(uri).body(Full::default()).unwrap();
    let response = sender.send_request(request).await.unwrap();
    let status = response.status();
    let body = response.into_body().collect().await.unwrap().to_bytes();
    (status, String::from_utf8(body.to_vec()).unwrap())
}

#[tokio::test]
async fn a_request_reaches_its_endpoint_and_connections_are_reused() {
    let (world, endpoint) = (World::new().await, Endpoint::start("one").await);
    world.simple(Policy::default(), &[endpoint.address]);
    let mut stream = TcpStream::connect(world.http).await.unwrap();
    for number in 0..3 {
        let body = "x".repeat(1000 * number);
        let head = format!(
            "POST /p{number}?q=1 HTTP/1.1\r\nHost: A.example:80\r\nContent-Length: {}\r\n\
             Traceparent: 00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01\r\n\r\n{body}",
            body.len()
        );
        stream.write_all(head.as_bytes()).await.unwrap();
        let mut answer = String::new();
        let end = format!("\n{body}");
        while !(answer.contains(&format!("one: POST /p{number}?q=1\n")) && answer.ends_with(&end)) {
            let mut buffer = [0; 4096];
            let count = stream.read(&mut buffer).await.unwrap();
            assert!(count > 0, "{answer}");
            answer.push_str(std::str::from_utf8(&buffer[..count]).unwrap());
        }
        assert!(answer.contains("host: A.example:80\n"), "{answer}");
        assert!(answer.contains("traceparent: 00-4bf92f3577b34da6a3ce929d0e0e4736-"), "{answer}");
    }
    let answer = world.get("/", "").await;
    assert!(answer.contains("one: GET /\n"), "{answer}");
    let unknown = world.raw(b"GET / HTTP/1.1\r\nHost: b.example\r\nConnection: close\r\n\r\n").await;
    assert!(unknown.starts_with("HTTP/1.1 404 "), "{unknown}");
}

#[tokio::test]
async fn a_dead_endpoint_is_replaced_also_for_post() {
    let (world, endpoint, dead) = (World::new().await, Endpoint::start("one").await, closed().await);
    world.simple(Policy::default(), &[dead, endpoint.address]);
    for _ in 0..6 {
        let answer = world
            .raw(b"POST / HTTP/1.1\r\nHost: a.example\r\nContent-Length: 5\r\nConnection: close\r\n\r\nhello")
            .await;
        assert!(answer.starts_with("HTTP/1.1 200 ") && answer.ends_with("\nhello"), "{answer}");
    }
    world.simple(Policy::default(), &[dead]);
    assert!(world.get("/", "").await.starts_with("HTTP/1.1 502 "));
    world.simple(Policy::default(), &[]);
    assert!(world.get("/", "").await.starts_with("HTTP/1.1 503 "));
}

#[tokio::test]
async fn an_endpoint_that_dies_under_load_loses_no_request() {
    let world = Arc::new(World::new().await);
    let (one, two) = (Endpoint::start("one").await, Endpoint::start("two").await);
    world.simple(Policy::default(), &[one.address, two.address]);
    let clients: Vec<_> = (0..4)
        .map(|_| {
            let world = world.clone();
            tokio::spawn(async move {
                for _ in 0..50 {
                    let answer = world.get("/", "").await;
                    assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
                }
            })
        })
        .collect();
    while one.count() < 20 {
        tokio::task::yield_now().await;
    }
    one.kill().await;
    for client in clients {
        client.await.unwrap();
    }
}

#[tokio::test]
async fn an_upgraded_connection_lives_through_changes_of_routes() {
    let (world, endpoint) = (World::new().await, Endpoint::start("one").await);
    world.simple(Policy::default(), &[endpoint.address]);
    let mut stream = TcpStream::connect(world.http).await.unwrap();
    // The client does not wait for the answer.
    let upgrade = "GET /ws HTTP/1.1\r\nHost: a.example\r\nConnection: keep-alive, Upgrade\r\nUpgrade: echo\r\n\r\nearly";
    stream.write_all(upgrade.as_bytes()).await.unwrap();
    let mut answer = Vec::new();
    while !answer.ends_with(b"early") {
        assert!(stream.read_buf(&mut answer).await.unwrap() > 0, "{}", String::from_utf8_lossy(&answer));
    }
    assert!(answer.starts_with(b"HTTP/1.1 101 "), "{}", String::from_utf8_lossy(&answer));
    for number in 0..100 {
        world.route("a.example", HostSettings::default(), &[("/", Policy::default(), "other")]);
        world.gateway.endpoints.set(&backend("web"), &[]);
        let text = format!("message {number}\r\n\r\n");
        stream.write_all(text.as_bytes()).await.unwrap();
        let mut echoed = vec![0; text.len()];
        stream.read_exact(&mut echoed).await.unwrap();
        assert_eq!(echoed, text.as_bytes());
    }
}

#[tokio::test]
async fn certificates_by_server_name_change_while_running() {
    let (world, endpoint) = (World::new().await, Endpoint::start("one").await);
    world.gateway.endpoints.set(&backend("web"), &[endpoint.address]);
    let host = |secret: &str, names: &[&str]| HostSettings {
        tls: Some(world.certificate(secret, names)),
        ..HostSettings::default()
    };
    world.route("a.example", host("a", &["a.example"]), &[("/", Policy::default(), "web")]);
    world.route("*.b.example", host("b", &["*.b.example"]), &[("/", Policy::default(), "web")]);
    let (mut stream, a) = tls(&world, "a.example", &[]).await;
    let (_, b) = tls(&world, "x.b.example", &[]).await;
    let (_, other) = tls(&world, "c.example", &[]).await;
    assert!(a != b && a != other && b != other);
    world.certificate("a", &["a.example"]);
    let (_, renewed) = tls(&world, "a.example", &[]).await;
    assert_ne!(a, renewed);
    // The connection with the earlier certificate goes on.
    stream.write_all(b"GET /s HTTP/1.1\r\nHost: a.example\r\nConnection: close\r\n\r\n").await.unwrap();
    let mut answer = String::new();
    let _ = stream.read_to_string(&mut answer).await;
    assert!(answer.contains("one: GET /s\n") && answer.contains("x-forwarded-proto: https\n"), "{answer}");
    // Without TLS the host is redirected.
    let answer = world.get("/x?y=1", "").await;
    assert!(answer.starts_with("HTTP/1.1 308 "), "{answer}");
    assert!(answer.contains("location: https://a.example/x?y=1\r\n"), "{answer}");
}

#[tokio::test]
async fn http2_with_and_without_tls() {
    let (world, endpoint) = (World::new().await, Endpoint::start("one").await);
    world.gateway.endpoints.set(&backend("web"), &[endpoint.address]);
    let wildcard = world.certificate("wild", &["*.example"]);
    let own = world.certificate("own", &["b.example"]);
    for (host, secret) in [("a.example", &wildcard), ("c.example", &wildcard), ("b.example", &own)] {
        let settings = HostSettings { tls: Some(secret.clone()), ..HostSettings::default() };
        world.route(host, settings, &[("/", Policy::default(), "web")]);
    }
    let mut sender = http2(tls(&world, "a.example", &[b"h2"]).await.0).await;
    let (status, body) = http2_get(&mut sender, "https://a.example/x").await;
    assert!(status == 200 && body.starts_with("one: GET /x\n"), "{status} {body}");
    assert!(body.contains("host: a.example\n"), "{body}");
    assert_eq!(http2_get(&mut sender, "https://c.example/").await.0, 200, "the same certificate");
    assert_eq!(http2_get(&mut sender, "https://b.example/").await.0, 421, "another certificate");

    world.simple(Policy::default(), &[endpoint.address]);
    let mut sender = http2(TcpStream::connect(world.http).await.unwrap()).await;
    let (status, body) = http2_get(&mut sender, "http://a.example/h2c").await;
    assert!(status == 200 && body.starts_with("one: GET /h2c\n"), "{status} {body}");
}

#[tokio::test]
async fn grpc_keeps_its_trailers() {
    let (world, endpoint) = (World::new().await, Endpoint::start("one").await);
    let upstream = Upstream { protocol: BackendProtocol::Grpc, ..Upstream::default() };
    world.simple(Policy { upstream, ..Policy::default() }, &[endpoint.address]);
    let mut sender = http2(TcpStream::connect(world.http).await.unwrap()).await;
    let mut trailers = hyper::HeaderMap::new();
    trailers.insert("x-trailer", "at the end".parse().unwrap());
    let frames = [Frame::data(Bytes::from("hello")), Frame::trailers(trailers)];
    let frames = futures::stream::iter(frames.map(Ok::<_, Infallible>));
    let request = Request::post("http://a.example/pkg.Service/Call")
        .header("te", "trailers")
        .body(StreamBody::new(frames))
        .unwrap();
    let response = sender.send_request(request).await.unwrap();
    assert_eq!(response.status(), 200);
    let body = response.into_body().collect().await.unwrap().to_bytes();
    let body = String::from_utf8(body.to_vec()).unwrap();
    assert!(body.starts_with("one: POST http://a.example/pkg.Service/Call\n"), "{body}");
    assert!(body.contains("x-trailer: at the end\n") && body.ends_with("hello"), "{body}");
}

#[tokio::test]
async fn passthrough_does_not_decrypt() {
    let world = World::new().await;
    let listener = listen().await;
    world.gateway.endpoints.set(&backend("web"), &[closed().await, listener.local_addr().unwrap()]);
    let origin = Origin { ingress: ObjectName::new("default", "raw"), path: Some((0, 0)) };
    let passthrough = Some(Passthrough { origin, backend: backend("web") });
    let settings = HostSettings { passthrough, ..HostSettings::default() };
    world.route("raw.example", settings, &[]);
    for (url, host, passes) in [
        ("https://RAW.example./x", "other.example", true),
        ("http://raw.example/x", "raw.example", false),
        ("https://127.0.0.1/x", "raw.example", false),
    ] {
        let question = Question::new("GET", url, &[format!("Host: {host}")], None).unwrap();
        let explained = explained(&world, &question);
        let ingress = explained.ingress.as_deref();
        assert_eq!(explained.passthrough, passes, "{url}");
        assert_eq!(ingress, passes.then_some("default/raw"), "{url}");
        assert_eq!(explained.endpoints.len(), if passes { 2 } else { 0 }, "{url}");
        assert_eq!(explained.answer.is_none(), passes, "{url}");
    }
    let client = tokio::spawn({
        let https = world.https;
        async move {
            let stream = TcpStream::connect(https).await.unwrap();
            tls_connector(&[]).connect(ServerName::try_from("raw.example").unwrap(), stream).await.map(drop)
        }
    });
    let (mut stream, _) = listener.accept().await.unwrap();
    let mut hello = [0; 64];
    stream.read_exact(&mut hello).await.unwrap();
    assert_eq!(hello[..3], [22, 3, 1], "a handshake of TLS, as the client sent it");
    drop(stream);
    assert!(client.await.unwrap().is_err());

    world.gateway.endpoints.set(&backend("web"), &[]);
    let stream = TcpStream::connect(world.https).await.unwrap();
    let name = ServerName::try_from("raw.example").unwrap();
    let connected = timeout(LIMIT, tls_connector(&[]).connect(name, stream)).await;
    assert!(connected.expect("the connection is not closed").is_err());
    let question = Question::new("GET", "https://raw.example/", &[], None).unwrap();
    let answer = explained(&world, &question).answer.unwrap();
    assert_eq!((answer.status, &*answer.reason), (None, "the Service has no ready endpoint"));
}

#[tokio::test]
async fn the_proxy_protocol_carries_the_client() {
    let world = World::with(GatewaySettings { proxy_protocol: true, ..settings() }).await;
    let endpoint = Endpoint::start("one").await;
    world.simple(Policy::default(), &[endpoint.address]);
    let request = "GET / HTTP/1.1\r\nHost: a.example\r\nConnection: close\r\n\r\n";
    let answer = world.raw(format!("PROXY TCP4 192.0.2.7 10.0.0.1 5000 80\r\n{request}").as_bytes()).await;
    assert!(answer.contains("\nx-forwarded-for: 192.0.2.7\n"), "{answer}");
    assert_eq!(world.raw(request.as_bytes()).await, "", "no header, no service");
}

#[tokio::test]
async fn trusted_proxies_are_believed() {
    let settings = GatewaySettings { trusted_proxies: vec!["127.0.0.0/8".parse().unwrap()], ..settings() };
    let (world, endpoint) = (World::with(settings).await, Endpoint::start("one").await);
    let sources = Sources { denied: ["198.51.100.0/24".parse().unwrap()].into(), ..Sources::default() };
    world.simple(Policy { sources, ..Policy::default() }, &[endpoint.address]);
    let answer = world.get("/", "X-Forwarded-For: 192.0.2.7\r\nX-Forwarded-Proto: https\r\n").await;
    assert!(answer.contains("\nx-forwarded-for: 192.0.2.7, 127.0.0.1\n"), "{answer}");
    assert!(answer.contains("\nx-real-ip: 192.0.2.7\n"), "{answer}");
    assert!(answer.contains("\nx-forwarded-proto: https\n"), "{answer}");
    let answer = world.get("/", "X-Forwarded-For: 198.51.100.1\r\n").await;
    assert!(answer.starts_with("HTTP/1.1 403 "), "{answer}");
}

#[tokio::test]
async fn policies_of_routes() {
    let (world, endpoint) = (World::new().await, Endpoint::start("one").await);
    world.gateway.endpoints.set(&backend("web"), &[endpoint.address]);
    let mut moved = Policy::default();
    moved.redirect.all =
        Some(Redirect { status: 301, location: template("https://new.example$request_uri") });
    let mut forced = Policy::default();
    forced.redirect.to_tls = TlsRedirect::Always;
    let mut rewritten = Policy::default();
    rewritten.rewrite.target = Some("/inside".into());
    rewritten.rewrite.host = Some(template("inner.example"));
    rewritten.headers.to_backend = [("x-added".into(), template("$host"))].into();
    rewritten.headers.set_in_response = [("x-endpoint".into(), template("hidden"))].into();
    let answered =
        Policy { answer: Some(Answer { status: 403, text: template("go away") }), ..Policy::default() };
    let small = Body { max_request: Some(10), ..Body::default() };
    let small = Policy { body: small, ..Policy::default() };
    let limits = Limits { requests_per_second: Some(1), burst_multiplier: 1, ..Limits::default() };
    let limited = Policy { limits, ..Policy::default() };
    let replacement = |from: &str, to: &str| Some(Replacement { from: template(from), to: template(to) });
    let replaced = Responses {
        cookie_domain: replacement("inner.example", "$host"),
        cookie_path: replacement("/app/", "/"),
        redirect: replacement("http://inner.example/", "$scheme://$host/"),
    };
    let replaced = Policy { responses: Some(Box::new(replaced)), ..Policy::default() };
    let cors = Policy {
        cors: Some(Cors {
            origins: Origins::Any,
            methods: "GET".into(),
            headers: "X-A".into(),
            expose: None,
            credentials: true,
            max_age: Duration::from_secs(60),
        }),
        ..Policy::default()
    };
    world.route(
        "a.example",
        HostSettings::default(),
        &[
            ("/moved", moved, "web"),
            ("/forced", forced, "web"),
            ("/rewritten", rewritten, "web"),
            ("/answered", answered, "web"),
            ("/small", small, "web"),
            ("/limited", limited, "web"),
            ("/replaced", replaced, "web"),
            ("/cors", cors, "web"),
        ],
    );
    let chunked = |chunk: &str| format!("Transfer-Encoding: chunked\r\n\r\n5\r\nabcde\r\n{chunk}0\r\n");
    let answer = world.get("/small", &chunked("")).await;
    assert!(answer.starts_with("HTTP/1.1 200 ") && answer.ends_with("\nabcde"), "{answer}");
    let answer = world.get("/small", &chunked("6\r\nabcdef\r\n")).await;
    assert!(answer.starts_with("HTTP/1.1 413 "), "{answer}");
    for (path, fields, expected) in [
        ("/moved/x?y", "", &["HTTP/1.1 301 ", "location: https://new.example/moved/x?y\r\n"][..]),
        ("/forced", "", &["HTTP/1.1 308 ", "location: https://a.example/forced\r\n"]),
        ("/rewritten?q", "", &["GET /inside?q\n", "host: inner.example\n", "x-added: a.example\n"]),
        ("/rewritten", "", &["x-endpoint: hidden\r\n"]),
        ("/answered", "", &["HTTP/1.1 403 ", "\r\n\r\ngo away"]),
        ("/small", "Content-Length: 11\r\n", &["HTTP/1.1 413 "]),
        ("/limited", "", &["HTTP/1.1 200 "]),
        ("/limited", "", &["HTTP/1.1 200 "]),
        ("/limited", "", &["HTTP/1.1 503 "]),
        (
            "/replaced",
            "x-answer-set-cookie: a=b; Domain=inner.example; Path=/app/x\r\nx-answer-set-cookie: c=d\r\n\
             x-answer-location: http://inner.example/x?y\r\nx-answer-refresh: 5; URL=http://inner.example/\r\n",
            &[
                "\r\nset-cookie: a=b; Domain=a.example; Path=/x\r\n",
                "\r\nset-cookie: c=d\r\n",
                "\r\nlocation: http://a.example/x?y\r\n",
                "\r\nrefresh: 5; URL=http://a.example/\r\n",
            ],
        ),
        (
            "/replaced",
            "x-answer-location: http://other.example/\r\n",
            &["location: http://other.example/\r\n"],
        ),
        ("/cors", "Origin: https://b.example\r\n", &["access-control-allow-origin: https://b.example\r\n"]),
    ] {
        let answer = world.get(path, fields).await;
        for expected in expected {
            assert!(answer.contains(expected), "{path}: {expected:?} in {answer}");
        }
    }
    let preflight = "OPTIONS /cors HTTP/1.1\r\nHost: a.example\r\nOrigin: https://b.example\r\n\
                     Access-Control-Request-Method: GET\r\nConnection: close\r\n\r\n";
    let answer = world.raw(preflight.as_bytes()).await;
    assert!(answer.starts_with("HTTP/1.1 204 "), "{answer}");
    assert!(answer.contains("access-control-allow-methods: GET\r\n"), "{answer}");
    assert!(answer.contains("access-control-allow-credentials: true\r\n"), "{answer}");
}

/// A response with a rate is whole, and slower than one without. No time is asserted: the slow one
/// would take eight minutes.
#[tokio::test]
async fn responses_have_their_rate() {
    const KIB: usize = 1 << 10;
    let world = World::new().await;
    let endpoint = Endpoint::start("one").await;
    let with = |bytes, after| Policy { rate: Some(Rate { bytes, after }), ..Policy::default() };
    let routes = [
        ("/even", with(64 << 10, 0), "web"),
        ("/slow", with(1 << 10, 16 << 10), "web"),
        ("/", Policy::default(), "web"),
    ];
    world.route("a.example", HostSettings::default(), &routes);
    world.gateway.endpoints.set(&backend("web"), &[endpoint.address]);
    let mut sender = http2(TcpStream::connect(world.http).await.unwrap()).await;
    let mut send = |path: &str, length: usize| {
        let request = Request::post(format!("http://a.example{path}"));
        sender.send_request(request.body(Full::new(Bytes::from(vec![b'x'; length]))).unwrap())
    };
    let whole = |answer: &str, length: usize| {
        let body = answer.split('\n').next_back().unwrap();
        assert!(body.len() == length && body.bytes().all(|byte| byte == b'x'), "{} of {length}", body.len());
    };
    for length in [0, 1, 63 * KIB, 100 * KIB] {
        let answer = send("/even", length).await.unwrap().into_body().collect().await.unwrap().to_bytes();
        whole(std::str::from_utf8(&answer).unwrap(), length);
        let text = "x".repeat(length);
        let answer = world.get("/even", &format!("Content-Length: {length}\r\n\r\n{text}")).await;
        whole(&answer, length);
    }
    let mut slow = send("/slow", 512 * KIB).await.unwrap().into_body();
    let mut received = 0;
    while received < 16 * KIB {
        received += slow.frame().await.unwrap().unwrap().data_ref().map_or(0, Bytes::len);
    }
    let fast = send("/", 512 * KIB).await.unwrap().into_body().collect();
    tokio::select! {
        biased;
        _ = slow.collect() => panic!("the response without a rate is slower"),
        fast = fast => assert!(fast.unwrap().to_bytes().len() > 512 * KIB),
    }
}

#[tokio::test]
async fn errors_are_replaced_by_the_error_backend() {
    let world = World::new().await;
    let (one, errors) = (Endpoint::start("one").await, Endpoint::start("errors").await);
    world.gateway.endpoints.set(&backend("errors"), &[errors.address]);
    let policy = Policy {
        errors: Errors { statuses: [503].into(), backend: Some(backend("errors")) },
        ..Policy::default()
    };
    world.simple(policy, &[one.address]);
    let answer = world.get("/x", "X-Status: 503\r\n").await;
    for expected in ["errors: GET /\n", "x-code: 503\n", "x-original-uri: /x\n", "x-service-name: web\n"] {
        assert!(answer.contains(expected), "{expected:?} in {answer}");
    }
    let answer = world.get("/x", "X-Status: 500\r\n").await;
    assert!(answer.starts_with("HTTP/1.1 500 ") && answer.contains("one: GET /x\n"), "{answer}");
    world.gateway.endpoints.set(&backend("web"), &[]);
    let answer = world.get("/x", "").await;
    assert!(answer.contains("errors: GET /x\n"), "{answer}");
}

#[tokio::test]
async fn a_cookie_keeps_its_endpoint() {
    let world = World::new().await;
    let (one, two) = (Endpoint::start("one").await, Endpoint::start("two").await);
    let affinity = CookieAffinity {
        name: "route".into(),
        path: None,
        domain: None,
        max_age: Some(Duration::from_secs(60)),
        secure: None,
        same_site: None,
        conditional_same_site_none: false,
        change_on_failure: false,
        persistent: false,
        sticky_canary: false,
    };
    world.simple(Policy { affinity: Some(affinity), ..Policy::default() }, &[one.address, two.address]);
    let first = world.get("/", "").await;
    let cookie = first.split("set-cookie: ").nth(1).unwrap().split(';').next().unwrap();
    let name = if first.contains("one: GET") { "one: GET" } else { "two: GET" };
    for _ in 0..5 {
        let answer = world.get("/", &format!("Cookie: a=b; {cookie}\r\n")).await;
        assert!(answer.contains(name) && !answer.contains("set-cookie"), "{answer}");
    }
}

#[tokio::test]
async fn a_drain_lets_requests_end() {
    let (mut world, endpoint) = (World::new().await, Endpoint::start("one").await);
    world.simple(Policy::default(), &[endpoint.address]);
    let mut stream = TcpStream::connect(world.http).await.unwrap();
    stream.write_all(b"POST / HTTP/1.1\r\nHost: a.example\r\nContent-Length: 5\r\n\r\nhe").await.unwrap();
    while endpoint.count() == 0 {
        tokio::task::yield_now().await;
    }
    world.stop.send(true).unwrap();
    stream.write_all(b"llo").await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    assert!(answer.starts_with("HTTP/1.1 200 ") && answer.ends_with("\nhello"), "{answer}");
    assert!(world.ended.recv().await.is_none(), "all connections have ended");
    assert!(TcpStream::connect(world.http).await.is_err());
}

/// A client that has connected before the drain, and sends its first request after it.
#[tokio::test]
async fn a_drain_answers_the_first_request_of_each_connection() {
    const REQUEST: &[u8] = b"GET / HTTP/1.1\r\nHost: a.example\r\n\r\n";
    // The endpoint refuses the upgrade.
    const UPGRADE: &[u8] =
        b"GET / HTTP/1.1\r\nHost: a.example\r\nConnection: upgrade\r\nUpgrade: other\r\n\r\n";
    let (world, endpoint) = (World::with(GatewaySettings::default()).await, Endpoint::start("one").await);
    world.simple(Policy::default(), &[endpoint.address]);
    // Several of each: a closed connection depended on which task ran first.
    let of_each = |request: &'static [u8]| [0, 1, 20, request.len() - 1].map(|sent| request.split_at(sent));
    let mut streams = Vec::new();
    for (sent, rest) in [of_each(REQUEST), of_each(UPGRADE)].concat().repeat(4) {
        let mut stream = TcpStream::connect(world.http).await.unwrap();
        stream.write_all(sent).await.unwrap();
        streams.push((stream, rest));
    }
    let all_accepted = async {
        while world.gateway.observer.metrics.connections.get() < streams.len() as i64 {
            tokio::task::yield_now().await;
        }
    };
    timeout(LIMIT, all_accepted).await.expect("connections are not accepted");
    world.stop.send(true).unwrap();
    for (mut stream, rest) in streams {
        stream.write_all(rest).await.unwrap();
        let mut answer = String::new();
        let read = timeout(LIMIT, stream.read_to_string(&mut answer)).await;
        read.expect("a connection is not closed").unwrap();
        assert!(answer.starts_with("HTTP/1.1 200 ") && answer.contains("connection: close"), "{answer}");
    }
}

fn explained(world: &World, question: &Question) -> Explanation {
    let endpoints = |backend: &_| {
        let set = world.gateway.endpoints.of(backend);
        set.iter().flat_map(|set| set.endpoints()).map(|endpoint| endpoint.address).collect()
    };
    explain(&world.gateway.table.load(), question, 443, endpoints)
}

/// `lb explain http` makes the decisions that the proxy makes.
#[tokio::test]
async fn explanations_agree_with_answers() {
    const PREFLIGHT: [&str; 2] = ["Origin: https://o.example", "Access-Control-Request-Method: PUT"];
    let (world, endpoint) = (World::new().await, Endpoint::start("one").await);
    let sources = Sources { denied: ["127.0.0.0/8".parse().unwrap()].into(), ..Sources::default() };
    let denied = Policy { sources, ..Policy::default() };
    let mut moved = Policy::default();
    moved.redirect.all = Some(Redirect { status: 307, location: template("https://b.example$request_uri") });
    let own = Policy { answer: Some(Answer { status: 410, text: template("gone") }), ..Policy::default() };
    let refused = Policy { refused: true, ..Policy::default() };
    let cors = Policy {
        cors: Some(Cors {
            origins: Origins::Any,
            methods: "PUT".into(),
            headers: "X-A".into(),
            expose: None,
            credentials: false,
            max_age: Duration::from_secs(60),
        }),
        ..Policy::default()
    };
    let errors = Errors { backend: Some(backend("web")), ..Errors::default() };
    let fallback = Policy { errors, ..Policy::default() };
    let routes = [
        ("/empty", Policy::default(), "empty"),
        ("/fallback", fallback.clone(), "empty"),
        ("/fallback/gone", fallback, "gone"),
        ("/denied", denied, "web"),
        ("/moved", moved, "web"),
        ("/own", own, "web"),
        ("/off", refused, "web"),
        ("/cors", cors, "web"),
    ];
    world.route("a.example", HostSettings::default(), &routes);
    let settings = HostSettings { default_certificate: true, ..HostSettings::default() };
    world.route("b.example", settings, &[("/", Policy::default(), "web")]);
    world.route("c.example", HostSettings::default(), &[("/", Policy::default(), "web")]);
    world.gateway.endpoints.set(&backend("web"), &[endpoint.address]);
    world.gateway.endpoints.set(&backend("empty"), &[]);
    for (method, host, path, expected) in [
        ("GET", "a.example", "/empty", 503),
        ("GET", "a.example", "/fallback", 200),
        ("GET", "a.example", "/fallback/gone", 200),
        ("GET", "a.example", "/denied/x", 403),
        ("GET", "a.example", "/moved?x=1", 307),
        ("GET", "a.example", "/own", 410),
        ("GET", "a.example", "/off", 503),
        ("GET", "a.example", "/cors", 200),
        ("OPTIONS", "a.example", "/cors", 204),
        ("GET", "a.example", "/other", 404),
        ("GET", "b.example", "/a", 308),
        ("GET", "C.example:80", "/a", 200),
        ("OPTIONS", "c.example", "/a", 200),
        ("GET", "c.example", "/a/..;/b", 400),
        ("GET", "d.example", "/", 404),
        ("GET", "d_", "/", 404),
        ("GET", "", "/", 404),
        ("GET", "a b", "/", 400),
    ] {
        let preflight = PREFLIGHT.join("\r\n");
        let head =
            format!("{method} {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n{preflight}\r\n\r\n");
        let answer = world.raw(head.as_bytes()).await;
        let status: u16 = answer.split(' ').nth(1).unwrap().parse().unwrap();
        assert_eq!(status, expected, "{host}{path}: {answer}");
        let fields = [&*format!("Host: {host}"), PREFLIGHT[0], PREFLIGHT[1]].map(str::to_owned);
        let url = format!("http://127.0.0.1{path}");
        let question = Question::new(method, &url, &fields, Some([127, 0, 0, 1].into())).unwrap();
        let explained = explained(&world, &question);
        let own = explained.answer.as_ref().map_or(Some(200), |answer| answer.status);
        assert_eq!(own, Some(status), "{host}{path}: {explained:?}");
        assert_eq!(!explained.endpoints.is_empty(), status == 200, "{explained:?}");
        assert_eq!(explained.fallback.is_some(), path.starts_with("/fallback"), "{explained:?}");
        let location = answer.lines().find_map(|line| line.strip_prefix("location: "));
        if let Some(location) = location {
            assert_eq!(explained.answer.unwrap().reason, format!("redirect to {location}"));
        }
    }
}
