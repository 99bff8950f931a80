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
        ("!REFUSED-418 / HTTP/1.1\r\nHost: a.example\r\n\r\n", 418),
    ] {
        let answer = world.raw(format!("{request}{smuggled}").as_bytes()).await;
        assert!(answer.starts_with(&format!("HTTP/1.1 {status} ")), "{request:?}: {answer}");
        assert!(answer.contains("connection: close\r\n"), "{answer}");
        assert_eq!(answer.matches("HTTP/1.1 ").count(), 1, "{answer}");
    }
    assert_eq!(endpoint.count(), 0);
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
    for byte in b"GET / HTTP/1.1\r\nHost: a.example\r\nX: ".iter().chain(std::iter::repeat(&b'a')).take(200) {
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
