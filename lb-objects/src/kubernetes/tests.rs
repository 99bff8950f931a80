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
const SHORT: Limits = Limits { answer: Duration::from_millis(300), silence: Duration::from_millis(300) };

/// Starts a server that passes the line of each request to `answer`, with its connection. Returns
/// the configuration of its clients.
fn stand_in(answer: impl Fn(&str, TcpStream) -> std::io::Result<()> + Send + Sync + 'static) -> Config {
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
    for object in added {
        let event = format!("{}\n", json!({"type": "ADDED", "object": object}));
        write!(stream, "{:x}\r\n{event}\r\n", event.len())?;
    }
    stream.flush()
}

/// Sends nothing more, until the client closes the connection.
fn hang(stream: &TcpStream) -> std::io::Result<()> {
    let mut lines = BufReader::new(stream.try_clone()?).lines();
    while lines.next().transpose()?.is_some() {}
    Ok(())
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
    let resources = ResourceSet::of(&[WatchedResource::Services]);
    let (sender, events) = mpsc::channel(16);
    let client = client(config, limits, ages).unwrap();
    tokio::spawn(watch(
        client,
        ObjectSelection { resources, ..ObjectSelection::of_services("here") },
        sender,
    ));
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
            let status = json!({
                "apiVersion": "v1", "kind": "Status", "status": "Failure", "message": message,
                "reason": "BadRequest", "code": 400,
            });
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
    let config = stand_in(move |request, stream| {
        let secret = json!({
            "apiVersion": "v1", "kind": "Secret", "type": "Opaque", "data": {"auth": "YQ=="},
            "metadata": {"namespace": "default", "name": "users", "resourceVersion": "1"},
        });
        let is_named = request.contains("/namespaces/default/secrets?")
            && request.contains("metadata.name%3Dusers%2Ctype%21%3Dkubernetes.io%2Ftls");
        assert!(is_named, "{request}");
        if request.contains("watch=true") {
            begin_watch(&stream, &[])?;
            return hang(&stream);
        }
        list(&stream, &[secret])
    });
    let users = ObjectName::new("default", "users");
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
    names.send_replace(Default::default());
    assert_eq!(events.recv().await.unwrap(), SourceEvent::Secret(users, None));
    drop(names);
    watch.await.unwrap();
}
