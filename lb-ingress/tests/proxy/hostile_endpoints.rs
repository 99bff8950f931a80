//! Endpoints that answer what they should not. No client is answered with bytes of another
//! response.

use std::net::SocketAddr;
use std::time::Duration;

use lb_ingress::routes::Policy;
use lb_ingress::routes::policy::Timeouts;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::task::JoinHandle;

use crate::world::{World, backend, listen};

/// An endpoint that answers each head with the same bytes, and the connection stays open.
struct Scripted {
    address: SocketAddr,
    task: JoinHandle<()>,
}

impl Scripted {
    async fn start(answer: Vec<u8>, close: bool) -> Self {
        let listener = listen().await;
        let address = listener.local_addr().unwrap();
        let task = tokio::spawn(async move {
            let mut connections = tokio::task::JoinSet::new();
            loop {
                let (mut stream, _) = listener.accept().await.unwrap();
                let answer = answer.clone();
                connections.spawn(async move {
                    let mut received = Vec::new();
                    while let Ok(1..) = stream.read_buf(&mut received).await {
                        if received.ends_with(b"\r\n\r\n") {
                            received.clear();
                            let _ = stream.write_all(&answer).await;
                            if close {
                                return;
                            }
                        }
                    }
                });
            }
        });
        Self { address, task }
    }
}

impl Drop for Scripted {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn answers(answer: &[u8], close: bool, method: &str) -> Vec<String> {
    let world = World::new().await;
    let endpoint = Scripted::start(answer.to_vec(), close).await;
    world.simple(Policy::default(), &[endpoint.address]);
    let request = format!("{method} / HTTP/1.1\r\nHost: a.example\r\nConnection: close\r\n\r\n");
    let mut answers = Vec::new();
    for _ in 0..3 {
        answers.push(world.raw(request.as_bytes()).await);
    }
    answers
}

const SMUGGLED: &str = "HTTP/1.1 200 OK\r\nContent-Length: 8\r\n\r\nsmuggled";

#[tokio::test]
async fn ambiguous_responses_are_answered_with_502() {
    for fields in [
        "Content-Length: 5\r\nContent-Length: 6",
        "Content-Length: 5, 6",
        "Content-Length: 5\r\nTransfer-Encoding: chunked",
        "Transfer-Encoding: chunked\r\nContent-Length: 5",
        "Content-Length: +5",
        "Content-Length: 0x5",
        "Content-Length: -5",
        "Content-Length: 99999999999999999999",
        "Content-Length:",
        "X : a\r\nContent-Length: 5",
        " X: a\r\nContent-Length: 5",
        "X: a\r\n b\r\nContent-Length: 5",
        "X: a\0b\r\nContent-Length: 5",
        "X\0: a\r\nContent-Length: 5",
        "X: a\rContent-Length: 5",
        "X\r\nContent-Length: 5",
    ] {
        let response = format!("HTTP/1.1 200 OK\r\n{fields}\r\n\r\nhello{SMUGGLED}");
        for answer in answers(response.as_bytes(), false, "GET").await {
            assert!(answer.starts_with("HTTP/1.1 502 "), "{fields:?}: {answer}");
            assert!(!answer.contains("hello") && !answer.contains("smuggled"), "{fields:?}: {answer}");
        }
    }
    for head in ["HTTP/1.1 99 OK", "HTTP/1.1 2000 OK", "HTTP/2.0 200 OK", "HTTP/1.1", "ICY 200 OK", "\0"] {
        let response = format!("{head}\r\nContent-Length: 5\r\n\r\nhello");
        for answer in answers(response.as_bytes(), true, "GET").await {
            assert!(answer.starts_with("HTTP/1.1 502 "), "{head:?}: {answer}");
        }
    }
}

/// The connection of such a response is not used again.
#[tokio::test]
async fn bytes_after_a_response_are_no_response() {
    for (response, method) in [
        ("HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello", "GET"),
        ("HTTP/1.1 200 OK\r\nContent-Length: 5\r\nContent-Length: 5\r\n\r\nhello", "GET"),
        ("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n", "GET"),
        ("HTTP/1.1 204 No Content\r\nContent-Length: 8\r\n\r\n", "GET"),
        ("HTTP/1.1 304 Not Modified\r\nContent-Length: 8\r\n\r\n", "GET"),
        ("HTTP/1.1 200 OK\r\nContent-Length: 8\r\n\r\n", "HEAD"),
    ] {
        let bytes = format!("{response}{SMUGGLED}");
        for answer in answers(bytes.as_bytes(), false, method).await {
            assert_eq!(answer.matches("HTTP/1.1 ").count(), 1, "{response:?}: {answer}");
            assert!(answer.starts_with(&response[..12]), "{response:?}: {answer}");
            assert!(!answer.contains("smuggled"), "{response:?}: {answer}");
            assert!(!response.contains("hello") || answer.contains("hello"), "{response:?}: {answer}");
            let both = answer.contains("content-length") && answer.contains("transfer-encoding");
            assert!(!both, "{response:?}: {answer}");
        }
    }
}

/// A response that is cut or malformed in its body is cut for the client too: it never looks whole.
#[tokio::test]
async fn a_cut_response_is_cut_for_the_client() {
    let chunked = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n";
    for (rest, close) in [
        ("", true),
        ("5\r\nhe", true),
        ("fffffffffffffffff\r\n", false),
        ("-5\r\nhello\r\n0\r\n\r\n", false),
        ("5\r\nhelloX\r\n0\r\n\r\n", false),
        ("5 5\r\nhello\r\n0\r\n\r\n", false),
        ("\r\n0\r\n\r\n", false),
    ] {
        for answer in answers(format!("{chunked}{rest}").as_bytes(), close, "GET").await {
            assert!(!answer.ends_with("0\r\n\r\n"), "{rest:?}: {answer}");
        }
    }
    for answer in answers(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nhello", true, "GET").await {
        let whole = answer.contains("content-length: 5\r\n");
        assert!(!whole && !answer.starts_with("HTTP/1.1 502"), "{answer}");
    }
}

#[tokio::test]
async fn interim_responses_are_no_answers() {
    for interim in ["100 Continue", "102 Processing", "103 Early Hints\r\nLink: </a>; rel=preload"] {
        let response =
            format!("HTTP/1.1 {interim}\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello").repeat(1);
        for answer in answers(response.as_bytes(), false, "GET").await {
            assert!(
                answer.contains("HTTP/1.1 200 OK\r\n") && answer.ends_with("hello"),
                "{interim}: {answer}"
            );
        }
    }
    // The request has no field Upgrade.
    let switch = b"HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: x\r\n\r\nbytes";
    for answer in answers(switch, false, "GET").await {
        assert!(answer.starts_with("HTTP/1.1 502 ") && !answer.contains("bytes"), "{answer}");
    }
}

#[tokio::test]
async fn large_heads_of_responses_are_answered_with_502() {
    let many: String = (0..300).map(|number| format!("X-{number}: a\r\n")).collect();
    let long = format!("X: {}\r\n", "a".repeat(600 << 10));
    for fields in [many, long] {
        let response = format!("HTTP/1.1 200 OK\r\n{fields}Content-Length: 5\r\n\r\nhello");
        for answer in answers(response.as_bytes(), false, "GET").await {
            assert!(answer.starts_with("HTTP/1.1 502 "), "{}", &answer[..answer.len().min(200)]);
        }
    }
}

/// A slow response may be in time for another Ingress, so the short limit of one does not take the
/// endpoint from the others.
#[tokio::test]
async fn a_short_time_limit_ejects_no_endpoint() {
    let world = World::new().await;
    let silent = Scripted::start(Vec::new(), false).await;
    let timeouts = Timeouts { read: Duration::from_millis(10), ..Timeouts::default() };
    world.simple(Policy { timeouts, ..Policy::default() }, &[silent.address]);
    for _ in 0..4 {
        let answer = world.get("/", "").await;
        assert!(answer.starts_with("HTTP/1.1 504 "), "{answer}");
    }
    let set = world.gateway.endpoints.of(&backend("web")).unwrap();
    assert!(!set.endpoints()[0].is_ejected(0));
}
