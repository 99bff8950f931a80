//! Clients that send what they should not. Nothing of it reaches an endpoint.

use std::time::Duration;

use lb_ingress::routes::Policy;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use crate::world::{Endpoint, World};

async fn world() -> (World, Endpoint) {
    let (world, endpoint) = (World::new().await, Endpoint::start("one").await);
    world.simple(Policy::default(), &[endpoint.address]);
    (world, endpoint)
}

#[tokio::test]
async fn ambiguous_requests_are_refused_and_the_connection_closes() {
    let (world, endpoint) = world().await;
    let smuggled = "GET /smuggled HTTP/1.1\r\nHost: a.example\r\n\r\n";
    for (request, status) in [
        (
            "POST / HTTP/1.1\r\nHost: a.example\r\nContent-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
            400,
        ),
        (
            "POST / HTTP/1.1\r\nHost: a.example\r\nTransfer-Encoding: chunked\r\nContent-Length: 4\r\n\r\n0\r\n\r\n",
            400,
        ),
        ("POST / HTTP/1.1\r\nHost: a.example\r\nContent-Length: 4\r\nContent-Length: 0\r\n\r\n", 400),
        ("POST / HTTP/1.1\r\nHost: a.example\r\nTransfer-Encoding: xchunked\r\n\r\n0\r\n\r\n", 501),
        ("GET / HTTP/1.1\r\nHost: a.example\r\nX: a\r\n b\r\n\r\n", 400),
        ("GET / HTTP/1.1\nHost: a.example\n\nGET / HTTP/1.1\r\nHost: a.example\r\n\r\n", 400),
        ("GET / HTTP/1.1\r\nHost: a.example\r\nX: a\nY: b\r\n\r\n", 400),
        ("GET / HTTP/1.1\r\nHost: a.example\r\nHost: b.example\r\n\r\n", 400),
        ("GET / HTTP/1.1\r\n\r\n", 400),
        ("GET / HTTP/3.0\r\nHost: a.example\r\n\r\n", 505),
        ("CONNECT a.example:443 HTTP/1.1\r\nHost: a.example\r\n\r\n", 400),
        ("POST / HTTP/1.1\r\nHost: a.example\r\nTransfer-Encoding: chunked, chunked\r\n\r\n0\r\n\r\n", 501),
        ("POST / HTTP/1.1\r\nHost: a.example\r\nTransfer-Encoding: chunked;q=1\r\n\r\n0\r\n\r\n", 501),
        ("POST / HTTP/1.1\r\nHost: a.example\r\nTransfer-Encoding: identity\r\n\r\n", 501),
        ("POST / HTTP/1.1\r\nHost: a.example\r\nTransfer-Encoding : chunked\r\n\r\n0\r\n\r\n", 400),
        ("POST / HTTP/1.1\r\nHost: a.example\r\nX: y\r\n Transfer-Encoding: chunked\r\n\r\n", 400),
        ("POST / HTTP/1.1\r\nHost: a.example\r\nContent-Length: 4\r\nContent-length: 4\r\n\r\n", 400),
        ("POST / HTTP/1.1\r\nHost: a.example\r\nContent-Length: 4 4\r\n\r\n", 400),
        ("POST / HTTP/1.0\r\nHost: a.example\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 400),
        ("!REFUSED-418 / HTTP/1.1\r\nHost: a.example\r\n\r\n", 418),
    ] {
        let answer = world.raw(format!("{request}{smuggled}").as_bytes()).await;
        assert!(answer.starts_with(&format!("HTTP/1.1 {status} ")), "{request:?}: {answer}");
        assert!(answer.contains("connection: close\r\n"), "{answer}");
        assert_eq!(answer.matches("HTTP/1.1 ").count(), 1, "{answer}");
    }
    assert_eq!(endpoint.count(), 0);
}

/// RFC 9112 3.2: the framing of these is clear, the host is not.
#[tokio::test]
async fn hosts_that_are_no_hosts_are_refused() {
    let (world, endpoint) = world().await;
    for (target, host) in [
        ("http://user@a.example/", "a.example"),
        ("/", "a.example/b"),
        ("/", "a.example, b.example"),
        ("/", "user@a.example"),
        ("/", "a.example#b"),
        ("a.example", "a.example"),
    ] {
        let head = format!("GET {target} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n");
        let answer = world.raw(head.as_bytes()).await;
        assert!(answer.starts_with("HTTP/1.1 400 "), "{head:?}: {answer}");
    }
    assert_eq!(endpoint.count(), 0);
}

/// A body that is malformed after a valid head ends the connection: nothing after it is a request.
#[tokio::test]
async fn malformed_bodies_end_the_connection() {
    let (world, endpoint) = world().await;
    let smuggled = "GET /smuggled HTTP/1.1\r\nHost: a.example\r\n\r\n";
    let head = "POST / HTTP/1.1\r\nHost: a.example\r\nTransfer-Encoding: chunked\r\n\r\n";
    for body in [
        "5\nhello\r\n0\r\n\r\n",
        "5\r\nhello\n0\r\n\r\n",
        "5\r\nhello0\r\n\r\n",
        "5;a\nb\r\nhello\r\n0\r\n\r\n",
        "5;a=\"\n\"\r\nhello\r\n0\r\n\r\n",
        "5 \r\nhello\r\n0\r\n\r\n",
        "+5\r\nhello\r\n0\r\n\r\n",
        "0x5\r\nhello\r\n0\r\n\r\n",
        "ffffffffffffffff5\r\nhello\r\n0\r\n\r\n",
        "10000000000000005\r\nhello\r\n0\r\n\r\n",
        "\r\n0\r\n\r\n",
        "0\r\nX: a\nY: b\r\n\r\n",
        "0\r\nX: a\r\n b\r\n\r\n",
        "0\n\r\n",
    ] {
        let before = endpoint.count();
        let answer = world.raw(format!("{head}{body}{smuggled}").as_bytes()).await;
        assert!(!answer.contains("/smuggled") && !answer.contains(" 200 "), "{body:?}: {answer}");
        assert!(endpoint.count() <= before + 1, "{body:?}");
    }
}

/// RFC 9110 6.5.1: trailers are no fields of the head, also not behind the proxy.
#[tokio::test]
async fn trailers_do_not_become_fields() {
    let (world, _endpoint) = world().await;
    let head = "POST / HTTP/1.1\r\nHost: a.example\r\nTransfer-Encoding: chunked\r\nConnection: close\r\n";
    for fields in ["", "Trailer: X-Real-IP, Host, X-Own\r\nTE: trailers\r\n"] {
        let trailers = "X-Real-IP: 6.6.6.6\r\nHost: b.example\r\nContent-Length: 7\r\nX-Own: 1\r\n";
        let answer = world.raw(format!("{head}{fields}\r\n2\r\nhi\r\n0\r\n{trailers}\r\n").as_bytes()).await;
        assert!(answer.starts_with("HTTP/1.1 200 ") && answer.ends_with("\nhi"), "{answer}");
        assert!(!answer.contains("6.6.6.6") && !answer.contains("b.example"), "{answer}");
        assert!(!answer.contains("\ncontent-length: 7"), "{answer}");
    }
}

#[tokio::test]
async fn slow_bodies_and_slow_readers_are_cut() {
    let endpoint = Endpoint::start("one").await;
    let mut settings = crate::world::settings();
    settings.timeouts.body = Duration::from_millis(300);
    settings.timeouts.send = Duration::from_millis(300);
    let world = World::with(settings).await;
    world.simple(Policy::default(), &[endpoint.address]);
    let mut stream = TcpStream::connect(world.http).await.unwrap();
    stream.write_all(b"POST / HTTP/1.1\r\nHost: a.example\r\nContent-Length: 5\r\n\r\nhe").await.unwrap();
    let mut answer = Vec::new();
    let _ = stream.read_to_end(&mut answer).await;
    assert!(!answer.starts_with(b"HTTP/1.1 200"), "{}", String::from_utf8_lossy(&answer));

    // Requests whose answers the client does not read.
    let mut stream = TcpStream::connect(world.http).await.unwrap();
    let body = "x".repeat(1 << 20);
    let head = format!("POST / HTTP/1.1\r\nHost: a.example\r\nContent-Length: {}\r\n\r\n", body.len());
    let mut sent = 0;
    while sent < 1000 && stream.write_all(format!("{head}{body}").as_bytes()).await.is_ok() {
        sent += 1;
    }
    assert!(sent < 1000, "the client sends without end");
}

#[tokio::test]
async fn requests_before_a_refused_one_are_answered() {
    let (world, endpoint) = world().await;
    let bytes =
        "GET /first HTTP/1.1\r\nHost: a.example\r\n\r\nGET /\tsecond HTTP/1.1\r\nHost: a.example\r\n\r\n";
    let answer = world.raw(bytes.as_bytes()).await;
    assert!(answer.starts_with("HTTP/1.1 200 OK\r\n"), "{answer}");
    assert!(answer.contains("one: GET /first") && answer.contains("HTTP/1.1 400 "), "{answer}");
    assert_eq!(endpoint.count(), 1);
}

#[tokio::test]
async fn large_heads_are_answered_with_431() {
    let (world, endpoint) = world().await;
    let many: String = (0..101).map(|number| format!("X-{number}: a\r\n")).collect();
    let long = format!("X: {}\r\n", "a".repeat(40 << 10));
    for fields in [many, long] {
        let answer = world.get("/", &fields).await;
        assert!(answer.starts_with("HTTP/1.1 431 "), "{answer}");
    }
    // A head without an end.
    let answer = world.raw(&[b'a'; 100 << 10]).await;
    assert!(answer.starts_with("HTTP/1.1 431 "), "{answer}");
    assert_eq!(endpoint.count(), 0);
}

#[tokio::test]
async fn a_slow_head_is_answered_with_408() {
    let (world, endpoint) = world().await;
    let mut stream = TcpStream::connect(world.http).await.unwrap();
    let mut answer = Vec::new();
    for byte in b"GET / HTTP/1.1\r\nHost: a.example\r\nX: ".iter().chain(std::iter::repeat(&b'a')).take(1000)
    {
        if stream.write_all(&[*byte]).await.is_err() {
            break;
        }
        let read = tokio::time::timeout(Duration::from_millis(20), stream.read_buf(&mut answer)).await;
        if read.is_ok() {
            break;
        }
    }
    let _ = stream.read_to_end(&mut answer).await;
    assert!(answer.starts_with(b"HTTP/1.1 408 "), "{}", String::from_utf8_lossy(&answer));
    assert_eq!(endpoint.count(), 0);
}

#[tokio::test]
async fn silent_connections_are_closed() {
    let (world, _endpoint) = world().await;
    for address in [world.http, world.https] {
        let mut stream = TcpStream::connect(address).await.unwrap();
        assert_eq!(stream.read(&mut [0; 1]).await.unwrap_or(0), 0);
    }
}

#[tokio::test]
async fn hidden_paths_are_refused_or_normalised() {
    let (world, _endpoint) = world().await;
    for (path, expected) in [
        ("/a/%2e%2e/b", "one: GET /b\n"),
        ("/a%2Fb?c=%2F..", "one: GET /a%2Fb?c=%2F..\n"),
        ("/../b", "400 Bad Request"),
        ("/a/..;/b", "400 Bad Request"),
        ("/a%00", "400 Bad Request"),
        ("/a%2f..%2fb", "400 Bad Request"),
        ("http://b.example/", "404 Not Found"),
        ("http://a.example/x", "one: GET /x\nhost: a.example\n"),
    ] {
        let answer = world.get(path, "").await;
        assert!(answer.contains(expected), "{path}: {answer}");
    }
}

#[tokio::test]
async fn bytes_after_a_refused_upgrade_do_not_reach_the_endpoint() {
    let (world, endpoint) = world().await;
    let upgrade = "GET /ws HTTP/1.1\r\nHost: a.example\r\nConnection: Upgrade\r\nUpgrade: other\r\n\r\n";
    let answer = world.raw(format!("{upgrade}\x01\x02hello\r\n\r\n").as_bytes()).await;
    assert!(answer.starts_with("HTTP/1.1 200 OK\r\n"), "{answer}");
    assert!(answer.contains("HTTP/1.1 400 "), "the bytes are no request: {answer}");
    assert_eq!(endpoint.count(), 1);
}

#[tokio::test]
async fn clients_cannot_forge_their_address() {
    let (world, _endpoint) = world().await;
    let forged = "X-Forwarded-For: 6.6.6.6\r\nX-Real-IP: 6.6.6.6\r\nForwarded: for=6.6.6.6\r\n\
                  X_Forwarded_For: 6.6.6.6\r\nConnection: X-Forwarded-For\r\nX-Forwarded-Proto: https\r\n";
    let answer = world.get("/", forged).await;
    assert!(answer.contains("\nx-forwarded-for: 127.0.0.1\n"), "{answer}");
    assert!(answer.contains("\nx-real-ip: 127.0.0.1\n"), "{answer}");
    assert!(answer.contains("\nx-forwarded-proto: http\n"), "{answer}");
    assert!(!answer.contains("\nforwarded:") && !answer.contains("x_forwarded_for"), "{answer}");
}
