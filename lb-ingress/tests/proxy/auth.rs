//! The authentication of requests.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use lb_ingress::routes::policy::{Auth, BasicAuth, BasicAuthForm, ExternalAuth, Timeouts};
use lb_ingress::routes::policy::{ClientCertificates, ClientVerification, Sources, SubjectPattern};
use lb_ingress::routes::{HostSettings, Policy, Template};
use lb_model::{ObjectName, Secret};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use crate::cases::client_config;
use crate::world::{Endpoint, World, backend, closed, listen};

/// `ann` with the passwords `password` (bcrypt), `bob` with the same (SHA-512 of crypt).
const FILE: &str = "ann:$2y$05$abcdefghijklmnopqrstuuWG29KuyeAicPCJODk1zjyGvyQUU2awu\n\
                    bob:$6$saltsalt12./$4gbx7ydD3IxXG0aqJBxpdVsq68Ko8Gi016iilluvExJ0AbqCB/\
                    g09Jd6oMcyRmAH6OJAtF7dtWZ9X9SVrW.xI1\n";

fn secret(data: &[(&str, &str)]) -> Option<Arc<Secret>> {
    let data = data.iter().map(|(key, value)| ((*key).into(), value.as_bytes().into())).collect();
    Some(Arc::new(Secret { data, ..Secret::default() }))
}

#[tokio::test]
async fn basic_authentication() {
    let (world, endpoint) = (World::new().await, Endpoint::start("one").await);
    let users = ObjectName::new("default", "users");
    let basic = BasicAuth { secret: users.clone(), form: BasicAuthForm::File, realm: "Staff only".into() };
    world.simple(Policy { auth: Some(Auth::Basic(basic)), ..Policy::default() }, &[endpoint.address]);
    let authorization = |token: &str| format!("Authorization: Basic {token}\r\n");
    let (ann, bob, wrong) = ("YW5uOnBhc3N3b3Jk", "Ym9iOnBhc3N3b3Jk", "YW5uOnBhc3N3b3Jr");
    for fields in ["", &authorization(ann)] {
        let answer = world.get("/", fields).await;
        assert!(answer.starts_with("HTTP/1.1 503 "), "without the Secret: {answer}");
    }
    world.gateway.users.set(&users, secret(&[("auth", FILE)]));
    for token in [ann, ann, bob] {
        let answer = world.get("/x", &authorization(token)).await;
        assert!(answer.starts_with("HTTP/1.1 200 ") && answer.contains("one: GET /x\n"), "{answer}");
        assert!(!answer.contains("authorization:"), "the endpoint must not get the password: {answer}");
    }
    let unknown = authorization("ZXZlOnBhc3N3b3Jk");
    for fields in ["", &authorization(wrong), &authorization("!"), &unknown, "Authorization: Bearer x\r\n"] {
        let answer = world.get("/", fields).await;
        assert!(answer.starts_with("HTTP/1.1 401 "), "{fields}: {answer}");
        assert!(answer.contains("www-authenticate: Basic realm=\"Staff only\"\r\n"), "{answer}");
    }
    // Another password takes effect at once, also for verified users.
    world.gateway.users.set(&users, secret(&[("auth", "ann:{SHA}AAAAAAAAAAAAAAAAAAAAAAAAAAA=")]));
    assert!(world.get("/", &authorization(ann)).await.starts_with("HTTP/1.1 401 "));
    world.gateway.users.set(&users, secret(&[("auth", "ann:plain")]));
    assert!(world.get("/", &authorization(ann)).await.starts_with("HTTP/1.1 503 "));
    assert_eq!(endpoint.count(), 3);
}

#[tokio::test]
async fn many_wrong_passwords_end() {
    let (world, endpoint) = (Arc::new(World::new().await), Endpoint::start("one").await);
    let users = ObjectName::new("default", "users");
    world
        .gateway
        .users
        .set(&users, secret(&[("ann", FILE.split_once(['\n']).unwrap().0.split_once(':').unwrap().1)]));
    let basic = BasicAuth { secret: users, form: BasicAuthForm::Map, realm: "a".into() };
    world.simple(Policy { auth: Some(Auth::Basic(basic)), ..Policy::default() }, &[endpoint.address]);
    let mut clients = tokio::task::JoinSet::new();
    for _ in 0..100 {
        let world = world.clone();
        clients.spawn(async move { world.get("/", "Authorization: Basic YW5uOnBhc3N3b3Jr\r\n").await });
    }
    let answers = clients.join_all().await;
    let with = |status: &str| answers.iter().filter(|answer| answer.contains(status)).count();
    assert!(with("HTTP/1.1 401 ") > 0);
    assert_eq!(with("HTTP/1.1 401 ") + with("HTTP/1.1 503 "), 100, "{answers:?}");
    assert_eq!(endpoint.count(), 0);
}

/// A server for `auth-url`, with the requests that it received and the number of its connections.
struct AuthServer {
    address: SocketAddr,
    received: Arc<Mutex<Vec<String>>>,
    connections: Arc<Mutex<usize>>,
}

impl AuthServer {
    /// Answers with the status of the field `X-Decision`.
    async fn start() -> Self {
        let listener = listen().await;
        let address = listener.local_addr().unwrap();
        let (received, connections) = (Arc::<Mutex<Vec<String>>>::default(), Arc::<Mutex<usize>>::default());
        let (requests, count) = (received.clone(), connections.clone());
        tokio::spawn(async move {
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                *count.lock().unwrap() += 1;
                let requests = requests.clone();
                let service = service_fn(move |request: Request<Incoming>| {
                    requests.lock().unwrap().push(text(&request));
                    async move { decide(&request).await }
                });
                let server = hyper::server::conn::http1::Builder::new();
                tokio::spawn(server.serve_connection(TokioIo::new(stream), service));
            }
        });
        Self { address, received, connections }
    }

    fn last(&self) -> String {
        self.received.lock().unwrap().last().unwrap().clone()
    }
}

fn text(request: &Request<Incoming>) -> String {
    let mut text = format!("{} {}\n", request.method(), request.uri());
    for (name, value) in request.headers() {
        text.push_str(&format!("{name}: {}\n", value.to_str().unwrap()));
    }
    text
}

async fn decide(request: &Request<Incoming>) -> Result<Response<Full<Bytes>>, Infallible> {
    let decision = request.headers().get("x-decision").map_or("200", |value| value.to_str().unwrap());
    if decision == "never" {
        std::future::pending::<()>().await;
    }
    let response = Response::builder().status(decision.parse::<u16>().unwrap());
    let response = response.header("x-user", "ann").header("set-cookie", "session=1");
    let response = response.header("host", "evil.example").header("www-authenticate", "Bearer realm=a");
    Ok(response.body(Full::from("decided")).unwrap())
}

fn external(url: &str) -> ExternalAuth {
    ExternalAuth {
        url: Template::parse(url).unwrap(),
        method: None,
        signin: None,
        signin_parameter: "rd".into(),
        response_headers: ["x-user".into(), "x-group".into(), "host".into()].into(),
        request_redirect: None,
        always_set_cookie: false,
    }
}

fn policy(auth: ExternalAuth) -> Policy {
    let timeouts = Timeouts { read: Duration::from_secs(2), ..Timeouts::default() };
    Policy { auth: Some(Auth::External(Box::new(auth))), timeouts, ..Policy::default() }
}

#[tokio::test]
async fn another_server_decides() {
    let (world, endpoint, auth) =
        (World::new().await, Endpoint::start("one").await, AuthServer::start().await);
    let url = format!("http://{}/check?host=$host", auth.address);
    world.simple(policy(external(&url)), &[endpoint.address]);
    let fields = "X-User: eve\r\nX-Group: admins\r\nAuthorization: Bearer t\r\nContent-Length: 5\r\n";
    let head = format!("POST /x?y=1 HTTP/1.1\r\nHost: a.example\r\nConnection: close\r\n{fields}\r\nhello");
    for _ in 0..3 {
        let answer = world.raw(head.as_bytes()).await;
        for expected in ["HTTP/1.1 200 ", "one: POST /x?y=1\n", "x-user: ann\n", "host: a.example\n"] {
            assert!(answer.contains(expected), "{expected:?} in {answer}");
        }
        assert!(answer.ends_with("\nhello") && answer.contains("set-cookie: session=1\r\n"), "{answer}");
        assert!(!answer.contains("eve") && !answer.contains("x-group"), "{answer}");
    }
    let last = auth.last();
    for expected in [
        "GET /check?host=a.example\n",
        &format!("host: {}\n", auth.address),
        "authorization: Bearer t\n",
        "x-original-url: http://a.example/x?y=1\n",
        "x-original-method: POST\n",
        "x-auth-request-redirect: /x?y=1\n",
        "x-real-ip: 127.0.0.1\n",
    ] {
        assert!(last.contains(expected), "{expected:?} in {last}");
    }
    assert!(!last.contains("content-length: 5"), "{last}");
    assert_eq!(*auth.connections.lock().unwrap(), 1, "the connection is reused");

    let decisions =
        [("401", "401"), ("403", "403"), ("302", "500"), ("404", "500"), ("503", "500"), ("never", "500")];
    for (decision, expected) in decisions {
        let answer = world.get("/", &format!("X-Decision: {decision}\r\n")).await;
        assert!(answer.starts_with(&format!("HTTP/1.1 {expected} ")), "{decision}: {answer}");
        assert_eq!(answer.contains("www-authenticate: Bearer realm=a\r\n"), decision == "401", "{answer}");
        assert!(!answer.contains("set-cookie") && !answer.contains("decided"), "{answer}");
    }
    assert_eq!(endpoint.count(), 3);
    for url in [&format!("http://{}", closed().await), "http://a@127.0.0.1:x/"] {
        world.simple(policy(external(url)), &[endpoint.address]);
        assert!(world.get("/", "").await.starts_with("HTTP/1.1 500 "), "{url}");
    }
    assert_eq!(endpoint.count(), 3);
}

#[tokio::test]
async fn a_refused_request_is_led_to_the_sign_in() {
    let (world, endpoint, auth) =
        (World::new().await, Endpoint::start("one").await, AuthServer::start().await);
    let url = format!("http://{}/", auth.address);
    for (signin, location) in [
        ("https://in.example/start", "https://in.example/start?rd=http://a.example%2Fx%3Fy%3D1"),
        ("https://in.example/?a=b", "https://in.example/?a=b&rd=http://a.example%2Fx%3Fy%3D1"),
        ("https://in.example/?rd=$escaped_request_uri", "https://in.example/?rd=%2Fx%3Fy%3D1"),
    ] {
        let signin = Some(Template::parse(signin).unwrap());
        let auth = ExternalAuth { signin, method: Some("HEAD".into()), ..external(&url) };
        world.simple(policy(auth), &[endpoint.address]);
        let answer = world.get("/x?y=1", "X-Decision: 401\r\n").await;
        assert!(answer.starts_with("HTTP/1.1 302 "), "{answer}");
        assert!(answer.contains(&format!("location: {location}\r\n")), "{answer}");
    }
    assert!(auth.last().starts_with("HEAD /\n"), "{}", auth.last());
    let always = ExternalAuth { always_set_cookie: true, ..external(&url) };
    world.simple(policy(always), &[endpoint.address]);
    let answer = world.get("/", "X-Decision: 403\r\n").await;
    assert!(answer.starts_with("HTTP/1.1 403 ") && answer.contains("set-cookie: session=1\r\n"), "{answer}");
    assert_eq!(endpoint.count(), 0);
}

/// `satisfy: any`. The client has an address in 127.0.0.0/8.
#[tokio::test]
async fn an_address_suffices() {
    let (world, endpoint, auth) =
        (World::new().await, Endpoint::start("one").await, AuthServer::start().await);
    let url = format!("http://{}/check", auth.address);
    let (own, other) = (Some("127.0.0.0/8"), Some("10.0.0.0/8"));
    for (allowed, denied, suffice, has_auth, decision, expected) in [
        (own, None, true, true, "403", "200"),
        (own, None, true, false, "403", "200"),
        (own, None, false, true, "403", "403"),
        (own, own, true, true, "403", "403"),
        (own, own, true, true, "200", "200"),
        (other, None, true, true, "403", "403"),
        (other, None, true, true, "200", "200"),
        (other, None, false, true, "200", "403"),
        (other, None, true, false, "200", "403"),
        (None, other, true, true, "403", "403"),
        (None, None, true, true, "403", "403"),
    ] {
        let ranges = |text: Option<&str>| text.iter().map(|text| text.parse().unwrap()).collect::<Box<[_]>>();
        let sources =
            Sources { allowed: allowed.map(|text| ranges(Some(text))), denied: ranges(denied), suffice };
        let auth = if has_auth { policy(external(&url)) } else { Policy::default() };
        world.simple(Policy { sources, ..auth }, &[endpoint.address]);
        let answer = world.get("/", &format!("X-User: eve\r\nX-Decision: {decision}\r\n")).await;
        let case = format!("{allowed:?} {denied:?} {suffice} {has_auth} {decision}: {answer}");
        assert!(answer.starts_with(&format!("HTTP/1.1 {expected} ")), "{case}");
        // Nobody else may set the field of the server.
        assert!(!has_auth || !answer.contains("x-user: eve"), "{case}");
    }
}

type Identity = (CertificateDer<'static>, PrivateKeyDer<'static>);

/// Returns the PEM certificate of a new authority, and a client of it.
fn authority() -> (String, Identity) {
    let mut params = rcgen::CertificateParams::new([]).unwrap();
    params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    let key = rcgen::KeyPair::generate().unwrap();
    let root = params.self_signed(&key).unwrap();
    let issuer = rcgen::Issuer::new(params, key);
    let key = rcgen::KeyPair::generate().unwrap();
    let mut client = rcgen::CertificateParams::new(["client".to_owned()]).unwrap();
    client.distinguished_name = rcgen::DistinguishedName::new();
    client.distinguished_name.push(rcgen::DnType::CommonName, "client");
    let client = client.signed_by(&key, &issuer).unwrap();
    (root.pem(), (client.der().clone(), PrivateKeyDer::try_from(key.serialize_der()).unwrap()))
}

/// Sends `GET /` for a host by TLS with another or the same server name.
async fn tls_get(world: &World, name: &'static str, host: &str, client: Option<&Identity>) -> String {
    let config = match client {
        Some((certificate, key)) => {
            client_config().with_client_auth_cert(vec![certificate.clone()], key.clone_key()).unwrap()
        }
        None => client_config().with_no_client_auth(),
    };
    let stream = TcpStream::connect(world.https).await.unwrap();
    let name = ServerName::try_from(name).unwrap();
    let mut stream = TlsConnector::from(Arc::new(config)).connect(name, stream).await.unwrap();
    let fields = "ssl-client-verify: SUCCESS\r\nssl-client-subject-dn: CN=eve\r\n";
    let head = format!("GET / HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n{fields}\r\n");
    stream.write_all(head.as_bytes()).await.unwrap();
    let mut answer = Vec::new();
    let _ = stream.read_to_end(&mut answer).await;
    String::from_utf8(answer).unwrap()
}

#[tokio::test]
async fn client_certificates() {
    let (world, endpoint) = (World::new().await, Endpoint::start("one").await);
    world.gateway.endpoints.set(&backend("web"), &[endpoint.address]);
    let ((root, client), (_, stranger)) = (authority(), authority());
    let name = ObjectName::new("default", "ca");
    let route_for = |verify, error_page: Option<&str>, subject: Option<&str>| {
        let rules = ClientCertificates {
            secret: name.clone(),
            verify,
            depth: 1,
            error_page: error_page.map(Into::into),
            pass_to_backend: true,
            subject: subject.map(|text| SubjectPattern(regex::bytes::Regex::new(text).unwrap())),
        };
        let settings = HostSettings { client_certificates: Some(rules), ..HostSettings::default() };
        world.route("a.example", settings, &[("/", Policy::default(), "web")]);
    };
    let route = |verify, error_page| route_for(verify, error_page, None);
    world.route("b.example", HostSettings::default(), &[("/", Policy::default(), "web")]);
    route(ClientVerification::Required, None);
    let answer = tls_get(&world, "a.example", "a.example", Some(&client)).await;
    assert!(answer.starts_with("HTTP/1.1 503 "), "without the Secret: {answer}");
    world.gateway.authorities.set(&name, secret(&[("ca.crt", "no PEM")]).as_deref());
    let answer = tls_get(&world, "a.example", "a.example", Some(&client)).await;
    assert!(answer.starts_with("HTTP/1.1 503 "), "with an invalid Secret: {answer}");
    world.gateway.authorities.set(&name, secret(&[("ca.crt", &root)]).as_deref());

    use ClientVerification::{Optional, OptionalNoCa, Required};
    let page = Some("https://help.example/");
    for (verify, error_page, identity, expected, seen) in [
        (Required, None, Some(&client), "200", "SUCCESS"),
        (Required, None, Some(&stranger), "400", ""),
        (Required, None, None, "400", ""),
        (Required, page, None, "302", ""),
        (Optional, None, Some(&client), "200", "SUCCESS"),
        (Optional, None, Some(&stranger), "400", ""),
        (Optional, None, None, "200", "NONE"),
        (OptionalNoCa, None, Some(&stranger), "200", "FAILED:"),
    ] {
        route(verify, error_page);
        let answer = tls_get(&world, "a.example", "a.example", identity).await;
        let case = format!("{verify:?} {expected}: {answer}");
        assert!(answer.starts_with(&format!("HTTP/1.1 {expected} ")), "{case}");
        assert_eq!(answer.contains(&format!("\nssl-client-verify: {seen}")), !seen.is_empty(), "{case}");
        let certificate = "ssl-client-cert: -----BEGIN%20CERTIFICATE-----%0A";
        assert_eq!(answer.contains(certificate), expected == "200" && identity.is_some(), "{case}");
        assert!(!answer.contains("CN=eve"), "{case}");
        for name in ["\nssl-client-subject-dn: CN=client\n", "\nssl-client-issuer-dn: CN="] {
            assert_eq!(answer.contains(name), expected == "200" && identity.is_some(), "{case}");
        }
    }
    for (verify, subject, identity, expected) in [
        (Required, "CN=client(,|$)", Some(&client), "200"),
        (Required, "CN=(other|none)", Some(&client), "403"),
        (Required, "CN=client", Some(&stranger), "400"),
        (Optional, "CN=client", None, "403"),
        (OptionalNoCa, "CN=client", Some(&stranger), "200"),
        (OptionalNoCa, "CN=other", Some(&stranger), "403"),
    ] {
        route_for(verify, None, Some(subject));
        let answer = tls_get(&world, "a.example", "a.example", identity).await;
        assert!(answer.starts_with(&format!("HTTP/1.1 {expected} ")), "{verify:?} {subject}: {answer}");
    }
    route(Required, None);
    let served = endpoint.count();
    // No way around the certificate: another server name, or no TLS.
    let answer = tls_get(&world, "b.example", "a.example", Some(&client)).await;
    assert!(answer.starts_with("HTTP/1.1 421 "), "{answer}");
    let answer = tls_get(&world, "127.0.0.1", "a.example", Some(&client)).await;
    assert!(answer.starts_with("HTTP/1.1 421 "), "{answer}");
    assert!(world.get("/", "").await.starts_with("HTTP/1.1 403 "));
    assert_eq!(endpoint.count(), served);
    // Another authority takes effect for the next connection.
    world.gateway.authorities.set(&name, secret(&[("ca.crt", &authority().0)]).as_deref());
    let answer = tls_get(&world, "a.example", "a.example", Some(&client)).await;
    assert!(answer.starts_with("HTTP/1.1 400 "), "{answer}");
}
