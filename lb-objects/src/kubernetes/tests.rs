//! Watches of stand-ins for an API server: small HTTP servers that answer as old, hung or dying API
//! servers do. The cluster tests (lb-testbed) have a real API server.

use std::io::{BufRead as _, BufReader, Write as _};
use std::net::{TcpListener, TcpStream};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use lb_model::ResourceSet;
use serde_json::{Value, json};

use super::*;

/// Limits after which the tests of hung servers continue.
const SHORT: Limits = Limits {
    answer: Duration::from_millis(300),
    silence: Duration::from_millis(300),
    listing: Duration::from_millis(300),
};

/// Starts a server that passes the line of each request to `answer`, with its connection. The
/// server refuses streaming lists. Returns the configuration of its clients.
fn stand_in(answer: impl Fn(&str, TcpStream) -> std::io::Result<()> + Send + Sync + 'static) -> Config {
    streaming_stand_in(move |request, stream| match request.contains("sendInitialEvents") {
        true => refuse_streaming(&stream),
        false => answer(request, stream),
    })
}

/// Returns the body of an error response.
fn failure(code: u16, reason: &str, message: &str) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Status", "status": "Failure", "message": message,
        "reason": reason, "code": code,
    })
}

/// Answers as Kubernetes 1.27 to 1.31 does.
fn refuse_streaming(stream: &TcpStream) -> std::io::Result<()> {
    let message = "sendInitialEvents is forbidden for watch unless the WatchList feature gate is enabled";
    let status = failure(422, "Invalid", message);
    respond(stream, "422 Unprocessable Entity", &status)
}

/// Starts a server like [`stand_in`], without an answer to streaming lists.
fn streaming_stand_in(
    answer: impl Fn(&str, TcpStream) -> std::io::Result<()> + Send + Sync + 'static,
) -> Config {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let answer = Arc::new(answer);
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let answer = answer.clone();
            std::thread::spawn(move || -> std::io::Result<()> {
                let mut lines = BufReader::new(stream.try_clone()?).lines();
                let request = lines.next().transpose()?.unwrap_or_default();
                while lines.next().transpose()?.is_some_and(|line| !line.is_empty()) {}
                // The client may close a connection.
                answer(&request, stream)
            });
        }
    });
    Config::new(url.parse().unwrap())
}

fn respond(mut stream: &TcpStream, status: &str, body: &Value) -> std::io::Result<()> {
    let body = body.to_string();
    let length = body.len();
    write!(
        stream,
        "HTTP/1.1 {status}\r\ncontent-type: application/json\r\ncontent-length: {length}\r\n\
         connection: close\r\n\r\n{body}"
    )
}

fn list(stream: &TcpStream, items: &[Value]) -> std::io::Result<()> {
    let body =
        json!({"apiVersion": "v1", "kind": "List", "metadata": {"resourceVersion": "1"}, "items": items});
    respond(stream, "200 OK", &body)
}

/// Begins the answer of a watch, and sends an event for each object.
fn begin_watch(mut stream: &TcpStream, added: &[Value]) -> std::io::Result<()> {
    write!(
        stream,
        "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ntransfer-encoding: chunked\r\n\r\n"
    )?;
    added.iter().try_for_each(|object| send_event(stream, "ADDED", object))
}

fn send_event(mut stream: &TcpStream, kind: &str, object: &Value) -> std::io::Result<()> {
    let event = format!("{}\n", json!({"type": kind, "object": object}));
    write!(stream, "{:x}\r\n{event}\r\n", event.len())?;
    stream.flush()
}

/// Ends the list part of a streaming list.
fn end_of_list(stream: &TcpStream, version: &str) -> std::io::Result<()> {
    let annotations = json!({"k8s.io/initial-events-end": "true"});
    let bookmark = json!({
        "apiVersion": "v1", "kind": "Service",
        "metadata": {"resourceVersion": version, "annotations": annotations},
    });
    send_event(stream, "BOOKMARK", &bookmark)
}

/// Sends nothing more, until the client closes the connection.
fn hang(stream: &TcpStream) -> std::io::Result<()> {
    let mut lines = BufReader::new(stream.try_clone()?).lines();
    while lines.next().transpose()?.is_some() {}
    Ok(())
}

/// Answers a list with `objects`, and a watch with nothing.
fn list_only(request: &str, stream: &TcpStream, objects: &[Value]) -> std::io::Result<()> {
    if request.contains("watch=") {
        begin_watch(stream, &[])?;
        return hang(stream);
    }
    list(stream, objects)
}

fn object(name: &str, ip: &str, version: &str) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Service",
        "metadata": {"namespace": "default", "name": name, "resourceVersion": version},
        "spec": {"clusterIP": ip, "clusterIPs": [ip], "ports": [{"port": 80}]},
    })
}

/// Watches the Services of a server. Returns the events.
fn watch_services(config: Config, limits: Limits, ages: WatchAges) -> mpsc::Receiver<SourceEvent> {
    let server = config.cluster_url.clone();
    watch_services_of(config, &[server], limits, ages)
}

/// Watches the Services of a cluster with several API servers. Returns the events.
fn watch_services_of(
    config: Config,
    servers: &[Uri],
    limits: Limits,
    ages: WatchAges,
) -> mpsc::Receiver<SourceEvent> {
    let resources = ResourceSet::of(&[WatchedResource::Services]);
    let (sender, events) = mpsc::channel(16);
    let client = client(config, servers, limits, ages).unwrap();
    let selection = ObjectSelection { resources, ..ObjectSelection::of_services("here") };
    tokio::spawn(watch_with(client, selection, sender, limits));
    events
}

/// Returns the next event as text: the name of a Service, of a resource that is synced, or the
/// problems of the watch.
async fn next(events: &mut mpsc::Receiver<SourceEvent>) -> String {
    match events.recv().await.unwrap() {
        SourceEvent::Service(name, Some(_)) => name.to_string(),
        SourceEvent::Synced(resource) => format!("{resource:?}"),
        SourceEvent::Report(_, problems) => {
            problems.first().map_or_else(|| "recovered".to_owned(), ToString::to_string)
        }
        unexpected => panic!("{unexpected:?}"),
    }
}

#[tokio::test]
async fn only_selected_resources_are_requested() {
    let requests: Arc<Mutex<Vec<String>>> = Arc::default();
    let stored = requests.clone();
    let config = stand_in(move |request, stream| {
        stored.lock().unwrap().push(request.to_owned());
        list(&stream, &[])
    });
    let selected = [WatchedResource::Services, WatchedResource::ServiceCidrs];
    let selection =
        ObjectSelection { resources: ResourceSet::of(&selected), ..ObjectSelection::of_services("here") };
    let (sender, mut events) = mpsc::channel(16);
    tokio::spawn(watch(Client::try_from(config).unwrap(), selection, sender));
    let mut synced = ResourceSet::default();
    while synced != ResourceSet::of(&selected) {
        match events.recv().await.unwrap() {
            SourceEvent::Synced(resource) => synced.insert(resource),
            // The server does not answer watches, only lists.
            SourceEvent::Report(_, problems) if problems[0].to_string().contains("cannot watch") => {}
            unexpected => panic!("{unexpected:?}"),
        }
    }
    let requests = requests.lock().unwrap();
    let of = |path: &str| requests.iter().filter(|line| line.contains(path)).count();
    assert!(of("/services?") > 0 && of("/servicecidrs?") > 0, "{requests:?}");
    assert_eq!(of("/endpointslices?") + of("/nodes?"), 0, "{requests:?}");
}

/// Kubernetes before 1.31 (pkg/registry/core/service/strategy.go has no such field label).
#[tokio::test]
async fn a_server_without_the_field_selector_is_read_without_it() {
    let config = stand_in(|request, stream| {
        if request.contains("spec.clusterIP") {
            let message = "field label not supported: spec.clusterIP";
            let status = failure(400, "BadRequest", message);
            respond(&stream, "400 Bad Request", &status)
        } else if request.contains("watch=") {
            begin_watch(&stream, &[object("db2", "None", "2"), object("api", "10.96.0.2", "3")])?;
            hang(&stream)
        } else {
            list(&stream, &[object("db", "None", "1"), object("web", "10.96.0.1", "1")])
        }
    });
    let mut events = watch_services(config, Limits::default(), WatchAges::default());
    for expected in ["default/db", "default/web", "Services", "default/db2", "default/api"] {
        assert_eq!(next(&mut events).await, expected);
    }
}

#[tokio::test]
async fn objects_come_from_a_streaming_list() {
    let (watches, requests) = (AtomicUsize::new(0), Arc::new(Mutex::new(Vec::new())));
    let stored = requests.clone();
    let config = streaming_stand_in(move |request, stream| {
        stored.lock().unwrap().push(request.to_owned());
        match watches.fetch_add(1, Ordering::Relaxed) {
            0 => {
                begin_watch(&stream, &[object("web", "10.96.0.1", "3")])?;
                end_of_list(&stream, "5")?;
                send_event(&stream, "ADDED", &object("api", "10.96.0.2", "6"))
            }
            _ => {
                begin_watch(&stream, &[object("db", "10.96.0.3", "7")])?;
                hang(&stream)
            }
        }
    });
    let mut events = watch_services(config, Limits::default(), WatchAges::default());
    for expected in ["default/web", "Services", "default/api", "default/db"] {
        assert_eq!(next(&mut events).await, expected);
    }
    let requests = requests.lock().unwrap();
    let parameters = ["watch=true", "resourceVersion=0", "sendInitialEvents=true", "NotOlderThan"];
    assert!(parameters.iter().all(|parameter| requests[0].contains(parameter)), "{requests:?}");
    // The watch that ended resumes. It does not list again.
    assert!(requests[1].contains("resourceVersion=6"), "{requests:?}");
    assert!(!requests[1].contains("sendInitialEvents"), "{requests:?}");
}

#[tokio::test]
async fn without_streaming_lists_come_from_the_cache() {
    let requests: Arc<Mutex<Vec<String>>> = Arc::default();
    let stored = requests.clone();
    let config = streaming_stand_in(move |request, stream| {
        stored.lock().unwrap().push(request.to_owned());
        if request.contains("sendInitialEvents") {
            refuse_streaming(&stream)
        } else {
            list_only(request, &stream, &[object("web", "10.96.0.1", "1")])
        }
    });
    let mut events = watch_services(config, Limits::default(), WatchAges::default());
    assert_eq!([next(&mut events).await, next(&mut events).await], ["default/web", "Services"]);
    let requests = requests.lock().unwrap();
    assert!(requests[1].contains("resourceVersion=0&") || requests[1].contains("resourceVersion=0 "));
    assert!(!requests[1].contains("limit="), "etcd would answer: {requests:?}");
}

/// An API server with etcd before 3.4.25 accepts the watch, and sends an error in it.
#[tokio::test]
async fn a_streaming_list_that_etcd_cannot_serve_is_given_up_at_once() {
    let streams = Arc::new(AtomicUsize::new(0));
    let begun = streams.clone();
    let config = streaming_stand_in(move |request, stream| {
        if request.contains("sendInitialEvents") {
            begun.fetch_add(1, Ordering::Relaxed);
            begin_watch(&stream, &[])?;
            let message = "the required storage feature RequestWatchProgress is disabled";
            let status = failure(500, "InternalError", message);
            send_event(&stream, "ERROR", &status)
        } else {
            list_only(request, &stream, &[object("web", "10.96.0.1", "1")])
        }
    });
    let mut events = watch_services(config, Limits::default(), WatchAges::default());
    assert_eq!([next(&mut events).await, next(&mut events).await], ["default/web", "Services"]);
    assert_eq!(streams.load(Ordering::Relaxed), 1);
}

#[tokio::test]
async fn a_list_that_the_cache_refuses_is_read_in_pages() {
    let config = stand_in(|request, stream| {
        if request.contains("watch=") {
            begin_watch(&stream, &[])?;
            return hang(&stream);
        }
        match request.contains("limit=500") && !request.contains("resourceVersion") {
            true => list(&stream, &[object("web", "10.96.0.1", "1")]),
            false => {
                let message = "resourceVersionMatch is not supported";
                let status = failure(400, "BadRequest", message);
                respond(&stream, "400 Bad Request", &status)
            }
        }
    });
    let mut events = watch_services(config, Limits::default(), WatchAges::default());
    assert_eq!([next(&mut events).await, next(&mut events).await], ["default/web", "Services"]);
}

/// Kubernetes before 1.27 ignores the parameter. It sends the objects, then nothing.
#[tokio::test]
async fn a_streaming_list_without_an_end_is_given_up() {
    let config = streaming_stand_in(|request, stream| {
        if request.contains("watch=") {
            begin_watch(&stream, &[object("web", "10.96.0.1", "1")])?;
            hang(&stream)
        } else {
            list(&stream, &[object("api", "10.96.0.2", "2")])
        }
    });
    let limits = Limits { listing: SHORT.listing, ..Limits::default() };
    let mut events = watch_services(config, limits, WatchAges::default());
    for expected in ["default/web", "default/api"] {
        assert_eq!(next(&mut events).await, expected);
    }
    assert_eq!(
        events.recv().await,
        Some(SourceEvent::Service(ObjectName::new("default", "web"), None)),
        "the complete list does not contain it"
    );
    assert_eq!(next(&mut events).await, "Services");
}

/// A proxy that ends every watch before the list is complete.
#[tokio::test]
async fn a_streaming_list_that_always_breaks_is_given_up() {
    let config = streaming_stand_in(|request, stream| {
        if request.contains("sendInitialEvents") {
            let text = "HTTP/1.1 200 OK\r\ncontent-length: 0\r\nconnection: close\r\n\r\n";
            (&stream).write_all(text.as_bytes())
        } else {
            list_only(request, &stream, &[object("web", "10.96.0.1", "1")])
        }
    });
    let mut events = watch_services(config, Limits::default(), WatchAges::default());
    assert_eq!([next(&mut events).await, next(&mut events).await], ["default/web", "Services"]);
}

#[tokio::test]
async fn the_next_api_server_is_used_when_one_fails() {
    let dead = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let dead: Uri = format!("http://{dead}").parse().unwrap();
    let silent = AtomicUsize::new(0);
    // It answers the list, and nothing afterwards.
    let first = stand_in(move |request, stream| {
        if request.contains("watch=") || silent.fetch_add(1, Ordering::Relaxed) > 0 {
            return hang(&stream);
        }
        list(&stream, &[object("web", "10.96.0.1", "1")])
    });
    let second = stand_in(|request, stream| {
        if request.contains("watch=") {
            begin_watch(&stream, &[object("api", "10.96.0.2", "2")])?;
            return hang(&stream);
        }
        list(&stream, &[])
    });
    let servers = [dead, first.cluster_url.clone(), second.cluster_url.clone()];
    let mut events = watch_services_of(first, &servers, SHORT, WatchAges::default());
    assert_eq!([next(&mut events).await, next(&mut events).await], ["default/web", "Services"]);
    let failure = next(&mut events).await;
    assert!(failure.contains("cannot watch services") && failure.contains("did not answer"), "{failure}");
    assert_eq!([next(&mut events).await, next(&mut events).await], ["default/api", "recovered"]);
}

#[tokio::test]
async fn an_api_server_that_cannot_serve_is_left() {
    let first = stand_in(|_, stream| {
        let status = failure(503, "ServiceUnavailable", "shutting down");
        respond(&stream, "503 Service Unavailable", &status)
    });
    let second = stand_in(|request, stream| list_only(request, &stream, &[object("web", "10.96.0.1", "1")]));
    let servers = [first.cluster_url.clone(), second.cluster_url.clone()];
    let mut events = watch_services_of(first, &servers, Limits::default(), WatchAges::default());
    let mut seen = Vec::new();
    while seen.last().is_none_or(|last| last != "Services") {
        seen.push(next(&mut events).await);
    }
    assert!(seen.contains(&"default/web".to_owned()), "{seen:?}");
}

#[tokio::test]
async fn lists_are_requested_compressed() {
    let encodings: Arc<Mutex<Vec<String>>> = Arc::default();
    let stored = encodings.clone();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url: Uri = format!("http://{}", listener.local_addr().unwrap()).parse().unwrap();
    std::thread::spawn(move || -> std::io::Result<()> {
        for stream in listener.incoming() {
            let stream = stream?;
            let lines = BufReader::new(stream.try_clone()?).lines().map_while(Result::ok);
            let headers: Vec<_> = lines.take_while(|line| !line.is_empty()).collect();
            if headers.iter().any(|line| line.contains("sendInitialEvents")) {
                refuse_streaming(&stream)?;
                continue;
            }
            let encoding = headers.into_iter().filter(|line| line.starts_with("accept-encoding"));
            stored.lock().unwrap().extend(encoding);
            list(&stream, &[])?;
        }
        Ok(())
    });
    let mut events = watch_services(Config::new(url), Limits::default(), WatchAges::default());
    assert!(events.recv().await.is_some());
    assert_eq!(encodings.lock().unwrap()[0], "accept-encoding: gzip");
}

#[test]
fn addresses_of_api_servers_are_those_without_a_name() {
    let servers = |servers: &[&str]| {
        let client = Config::new("http://127.0.0.1:1".parse().unwrap());
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        let client = runtime.block_on(async { Client::try_from(client).unwrap() });
        Access { client, servers: servers.iter().map(|url| url.parse().unwrap()).collect() }.addresses()
    };
    assert_eq!(
        servers(&["https://10.96.0.1:443", "https://[fd00::1]:6443/path"]),
        Some(vec!["10.96.0.1".parse().unwrap(), "fd00::1".parse().unwrap()])
    );
    assert_eq!(servers(&["https://10.96.0.1:443", "https://api.example.com"]), None);
}

#[tokio::test]
async fn a_list_whose_answer_never_comes_is_requested_again() {
    let lists = AtomicUsize::new(0);
    let config = stand_in(move |request, stream| {
        if request.contains("watch=") {
            begin_watch(&stream, &[])?;
            return hang(&stream);
        }
        match lists.fetch_add(1, Ordering::Relaxed) {
            0 => hang(&stream),
            // An answer that stops in the middle.
            1 => {
                let text =
                    "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 999\r\n\r\n{";
                (&stream).write_all(text.as_bytes())?;
                hang(&stream)
            }
            _ => list(&stream, &[object("web", "10.96.0.1", "1")]),
        }
    });
    let ages = WatchAges::default();
    let mut events = watch_services(config, SHORT, ages.clone());
    let failure = next(&mut events).await;
    assert!(failure.contains("cannot list services") && failure.contains("did not answer"), "{failure}");
    for expected in ["default/web", "recovered", "Services"] {
        assert_eq!(next(&mut events).await, expected);
    }
    let now = Instant::now();
    assert!(matches!(ages.at(now)[..], [("services", _)]), "{:?}", ages.at(now));
}

#[tokio::test]
async fn a_watch_of_a_dead_server_resumes() {
    let (watches, requests) = (AtomicUsize::new(0), Arc::new(Mutex::new(Vec::new())));
    let stored = requests.clone();
    let config = stand_in(move |request, stream| {
        if !request.contains("watch=") {
            return list(&stream, &[]);
        }
        stored.lock().unwrap().push(request.to_owned());
        let name = format!("web-{}", watches.fetch_add(1, Ordering::Relaxed));
        begin_watch(&stream, &[object(&name, "10.96.0.1", "7")])?;
        hang(&stream)
    });
    let mut events = watch_services(config, SHORT, WatchAges::default());
    // A silent watch is no failure: there is no report.
    for expected in ["Services", "default/web-0", "default/web-1", "default/web-2"] {
        assert_eq!(next(&mut events).await, expected);
    }
    let requests = requests.lock().unwrap();
    assert!(requests[0].contains("resourceVersion=1&") || requests[0].contains("resourceVersion=1 "));
    assert!(requests[1].contains("resourceVersion=7"), "{requests:?}");
}

#[tokio::test]
async fn secrets_are_watched_by_name_while_they_are_named() {
    let tls_was_listed = Arc::new(Mutex::new(false));
    let seen = tls_was_listed.clone();
    let config = stand_in(move |request, stream| {
        let secret = json!({
            "apiVersion": "v1", "kind": "Secret", "type": "Opaque", "data": {"auth": "YQ=="},
            "metadata": {"namespace": "default", "name": "users", "resourceVersion": "1"},
        });
        if request.contains("metadata.name%3Dmissing") {
            return list_only(request, &stream, &[]);
        }
        if request.contains("metadata.name%3Dtls&") || request.contains("metadata.name%3Dtls ") {
            let secret = json!({
                "apiVersion": "v1", "kind": "Secret", "type": "kubernetes.io/tls", "data": {"ca.crt": "YQ=="},
                "metadata": {"namespace": "default", "name": "tls", "resourceVersion": "1"},
            });
            *seen.lock().unwrap() = true;
            return list_only(request, &stream, &[secret]);
        }
        let is_named =
            request.contains("/namespaces/default/secrets?") && request.contains("metadata.name%3Dusers");
        assert!(is_named, "{request}");
        list_only(request, &stream, &[secret])
    });
    let users = ObjectName::new("default", "users");
    let missing = ObjectName::new("default", "missing");
    let (names, receiver) = tokio::sync::watch::channel([users.clone()].into());
    let (sender, mut events) = mpsc::channel(16);
    let client = Client::try_from(config).unwrap();
    let watch = tokio::spawn(watch_named_secrets(client, receiver, sender));
    match events.recv().await.unwrap() {
        SourceEvent::Secret(name, Some(secret)) => {
            assert_eq!((name, secret.get("auth")), (users.clone(), Some(&b"a"[..])));
        }
        unexpected => panic!("{unexpected:?}"),
    }
    // Another watch sends this one. It must not be sent as deleted.
    let tls = ObjectName::new("default", "tls");
    names.send_replace([users.clone(), tls.clone()].into());
    while !*tls_was_listed.lock().unwrap() {
        tokio::task::yield_now().await;
    }
    names.send_replace([users.clone(), tls, missing.clone()].into());
    assert_eq!(events.recv().await.unwrap(), SourceEvent::Secret(missing, None));
    names.send_replace(Default::default());
    assert_eq!(events.recv().await.unwrap(), SourceEvent::Secret(users, None));
    drop(names);
    watch.await.unwrap();
}

/// The API server accepts the first Lease, and then answers nothing.
#[tokio::test]
async fn a_leader_that_cannot_renew_its_lease_leads_no_longer() {
    let config = stand_in(|request, stream| match request.split(' ').next() {
        Some("GET") => respond(&stream, "404 Not Found", &failure(404, "NotFound", "no such Lease")),
        Some("POST") => {
            let lease = json!({
                "apiVersion": "coordination.k8s.io/v1", "kind": "Lease",
                "metadata": {"namespace": "proxies", "name": "leader", "resourceVersion": "1"},
                "spec": {"holderIdentity": "a", "leaseDurationSeconds": 1, "leaseTransitions": 0},
            });
            assert!(request.contains("/namespaces/proxies/leases"), "{request}");
            respond(&stream, "201 Created", &lease)
        }
        _ => hang(&stream),
    });
    let times = LeaseTimes {
        duration: Duration::from_millis(900),
        renew_deadline: Duration::from_millis(300),
        retry: Duration::from_millis(50),
    };
    let (leads, mut leading) = tokio::sync::watch::channel(false);
    let (stop, stopped) = tokio::sync::watch::channel(false);
    let client = Client::try_from(config).unwrap();
    let lease = ObjectName::new("proxies", "leader");
    let election = tokio::spawn(take_part(client, lease, "a".to_owned(), times, leads, stopped));
    leading.wait_for(|leads| *leads).await.unwrap();
    leading.wait_for(|leads| !*leads).await.unwrap();
    stop.send_replace(true);
    election.await.unwrap();
}

/// The status is written only to an Ingress that has not changed since the decision, and again
/// after a conflict.
#[tokio::test]
async fn the_status_of_a_changed_ingress_is_not_written() {
    let requests: Arc<Mutex<Vec<String>>> = Arc::default();
    let stored = requests.clone();
    let config = stand_in(move |request, stream| {
        stored.lock().unwrap().push(request.split(' ').take(2).collect::<Vec<_>>().join(" "));
        let class = if request.contains("/moved") { "another" } else { "sluice" };
        let ingress = json!({
            "apiVersion": "networking.k8s.io/v1", "kind": "Ingress",
            "metadata": {"namespace": "shop", "name": "web", "resourceVersion": "7"},
            "spec": {"ingressClassName": class},
        });
        let patches = stored.lock().unwrap().iter().filter(|line| line.starts_with("PATCH")).count();
        match request.starts_with("PATCH") && patches == 1 {
            true => respond(&stream, "409 Conflict", &failure(409, "Conflict", "has been modified")),
            false => respond(&stream, "200 OK", &ingress),
        }
    });
    let client = Client::try_from(config).unwrap();
    let decided = Ingress { class: Some("sluice".into()), ..Ingress::default() };
    let addresses = ["192.0.2.1".into()];
    let write = |name| {
        let (client, name) = (client.clone(), ObjectName::new("shop", name));
        let (decided, addresses) = (&decided, &addresses);
        async move { write_ingress_status(&client, &name, decided, addresses).await.unwrap() }
    };
    assert_eq!(write("moved").await, StatusWrite::Outdated);
    assert_eq!(write("web").await, StatusWrite::Written);
    let path = "/apis/networking.k8s.io/v1/namespaces/shop/ingresses";
    let (get, patch) = (format!("GET {path}/web"), format!("PATCH {path}/web/status?"));
    assert_eq!(
        *requests.lock().unwrap(),
        [&format!("GET {path}/moved"), &get, &patch, &get, &patch].map(String::clone)
    );
}
