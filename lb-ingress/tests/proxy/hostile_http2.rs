//! Clients of HTTP/2 that send what they should not.

use std::time::Duration;

use lb_ingress::routes::Policy;
use tokio::io::AsyncWriteExt as _;

use crate::frames::{
    ACK, CONTINUATION, DATA, END_HEADERS, END_STREAM, HEADERS, Outcome, PING, RESET, Raw, SETTINGS, block,
    frame,
};
use crate::world::{Endpoint, World};

/// A wait of this time is a failure.
const LIMIT: Duration = Duration::from_secs(30);

type Field<'a> = (&'a [u8], &'a [u8]);

const GET: [Field<'static>; 4] =
    [(b":method", b"GET"), (b":scheme", b"http"), (b":authority", b"a.example"), (b":path", b"/")];

async fn world() -> (World, Endpoint) {
    let (world, endpoint) = (World::new().await, Endpoint::start("one").await);
    world.simple(Policy::default(), &[endpoint.address]);
    (world, endpoint)
}

async fn request(world: &World, fields: &[Field<'_>]) -> Outcome {
    let mut raw = Raw::connect(world).await;
    raw.send(&frame(HEADERS, END_HEADERS | END_STREAM, 1, &block(fields))).await;
    raw.outcome(1).await
}

/// RFC 9113 8.2.1: no field carries the end of a line into HTTP/1.
#[tokio::test]
async fn fields_cannot_inject_lines() {
    let (world, endpoint) = world().await;
    for field in [
        (&b"x"[..], &b"a\r\nx-injected: 1"[..]),
        (b"x", b"a\nx-injected: 1"),
        (b"x", b"a\rx-injected: 1"),
        (b"x", b"a\0"),
        (b"x\r\nx-injected", b"1"),
        (b"x: 1\r\nx-injected", b"1"),
        (b"x-a ", b"1"),
        (b" x-a", b"1"),
        (b"x:a", b"1"),
        (b"", b"1"),
        (b"X-Upper", b"1"),
        (b"transfer-encoding", b"chunked"),
        (b"connection", b"close"),
        (b"upgrade", b"websocket"),
        (b":authority", b"b.example"),
    ] {
        let outcome = request(&world, &[&GET[..], &[field]].concat()).await;
        let shown = (String::from_utf8_lossy(field.0), String::from_utf8_lossy(field.1));
        assert!(matches!(outcome, Outcome::Reset | Outcome::Closed(_)), "{shown:?}: {outcome:?}");
    }
    for (place, value) in [
        (0, &b"GET / HTTP/1.1\r\nx: y"[..]),
        (0, b"G T"),
        (2, b"a.example\r\nx-injected: 1"),
        (3, b"/ HTTP/1.1\r\nx-injected: 1"),
        (3, b"/a b"),
        (3, b"/a\tb"),
        (3, b""),
    ] {
        let mut fields = GET;
        fields[place].1 = value;
        let outcome = request(&world, &fields).await;
        assert!(matches!(outcome, Outcome::Reset | Outcome::Closed(_)), "{fields:?}: {outcome:?}");
    }
    assert_eq!(endpoint.count(), 0);
}

#[tokio::test]
async fn the_authority_is_the_only_host() {
    let (world, endpoint) = world().await;
    let other: Field<'_> = (b"host", b"b.example");
    let Outcome::Body(text) = request(&world, &[&GET[..], &[other]].concat()).await else { panic!() };
    assert!(text.contains("\nhost: a.example\n") && !text.contains("b.example"), "{text}");
    let without = [GET[0], GET[1], GET[3]];
    let same: Field<'_> = (b"host", b"a.example");
    let Outcome::Body(text) = request(&world, &[&without[..], &[same]].concat()).await else { panic!() };
    assert!(text.contains("\nhost: a.example\n"), "{text}");
    let count = endpoint.count();
    for hosts in [[same, other], [same, same]] {
        let outcome = request(&world, &[&without[..], &hosts].concat()).await;
        assert_eq!(outcome, Outcome::Body("400 Bad Request\n".to_owned()), "{hosts:?}");
    }
    for authority in [&b"user@a.example"[..], b"a.example/x", b"a.example:x", b"a.example,b.example"] {
        let mut fields = GET;
        fields[2].1 = authority;
        let outcome = request(&world, &fields).await;
        assert!(
            matches!(&outcome, Outcome::Reset | Outcome::Closed(_))
                || outcome == Outcome::Body("400 Bad Request\n".to_owned()),
            "{authority:?}: {outcome:?}"
        );
    }
    assert_eq!(endpoint.count(), count);
}

/// RFC 9113 8.2.3: clients send a cookie in parts. HTTP/1 has one field.
#[tokio::test]
async fn parts_of_a_cookie_are_joined() {
    let (world, _endpoint) = world().await;
    let cookies: [Field<'_>; 3] = [(b"cookie", b"a=1"), (b"cookie", b"b=2; c=3"), (b"cookie", b"d=4")];
    let Outcome::Body(text) = request(&world, &[&GET[..], &cookies].concat()).await else { panic!() };
    assert!(text.contains("\ncookie: a=1; b=2; c=3; d=4\n"), "{text}");
}

#[tokio::test]
async fn header_bombs_are_refused() {
    let (world, endpoint) = world().await;
    let long = vec![b'a'; 40 << 10];
    // Frames have at most 16 KiB.
    let bytes = block(&[&GET[..], &[(b"x", &long)]].concat());
    let mut raw = Raw::connect(&world).await;
    let mut pieces = bytes.chunks(16 << 10).peekable();
    let mut kind = HEADERS;
    while let Some(piece) = pieces.next() {
        let flags = if pieces.peek().is_none() { END_HEADERS } else { 0 };
        let flags = if kind == HEADERS { flags | END_STREAM } else { flags };
        raw.send(&frame(kind, flags, 1, piece)).await;
        kind = CONTINUATION;
    }
    let outcome = raw.outcome(1).await;
    assert!(outcome == Outcome::Body(String::new()) || matches!(outcome, Outcome::Closed(_)), "{outcome:?}");

    let names: Vec<String> = (0..101).map(|number| format!("x-{number}")).collect();
    let many: Vec<Field<'_>> = names.iter().map(|name| (name.as_bytes(), &b"a"[..])).collect();
    let outcome = request(&world, &[&GET[..], &many].concat()).await;
    assert_eq!(outcome, Outcome::Body("431 Request Header Fields Too Large\n".to_owned()));

    // A field of 3 KiB in the table of the decoder, and 10,000 references of a byte each to it.
    let mut bomb = block(&GET);
    let value = vec![b'a'; 3 << 10];
    let mut field = block(&[(b"x", &value)]);
    field[0] = 0x40;
    bomb.extend(field);
    bomb.extend(std::iter::repeat_n(0x80 | 62, 10_000));
    let mut raw = Raw::connect(&world).await;
    raw.send(&frame(HEADERS, END_HEADERS | END_STREAM, 1, &bomb)).await;
    let outcome = raw.outcome(1).await;
    assert!(!matches!(&outcome, Outcome::Body(text) if text.contains("GET")), "{outcome:?}");
    assert_eq!(endpoint.count(), 0);
}

#[tokio::test]
async fn an_endless_header_ends_the_connection() {
    let (world, endpoint) = world().await;
    for piece in [&[][..], &[0x82; 1024]] {
        let mut raw = Raw::connect(&world).await;
        raw.send(&frame(HEADERS, END_STREAM, 1, &block(&GET))).await;
        let continuation = frame(CONTINUATION, 0, 1, piece);
        let mut sent = 0;
        while sent < 100_000 && raw.send(&continuation).await {
            sent += 1;
        }
        let outcome = raw.outcome(1).await;
        assert!(matches!(outcome, Outcome::Closed(_) | Outcome::Gone), "{outcome:?} after {sent} frames");
    }
    assert_eq!(endpoint.count(), 0);
}

/// CVE-2023-44487: the endpoint does not receive each request that is reset at once.
#[tokio::test]
async fn rapid_resets_end_the_connection() {
    let (world, endpoint) = world().await;
    let mut raw = Raw::connect(&world).await;
    let requests = 10_000_u32;
    let mut sent = 0;
    for number in 0..requests {
        let stream = 1 + 2 * number;
        let mut bytes = frame(HEADERS, END_HEADERS | END_STREAM, stream, &block(&GET));
        bytes.extend(frame(RESET, 0, stream, &8_u32.to_be_bytes()));
        if !raw.send(&bytes).await {
            break;
        }
        sent += 1;
    }
    let outcome = raw.outcome(0).await;
    assert!(matches!(outcome, Outcome::Closed(_) | Outcome::Gone), "{outcome:?} after {sent} requests");
    let count = endpoint.count();
    assert!(count < requests as usize / 10, "the endpoint received {count} of {sent} requests");
}

/// The same, with streams that the proxy must reset because of an error of the client
/// (CVE-2025-8671).
#[tokio::test]
async fn provoked_resets_end_the_connection() {
    let (world, endpoint) = world().await;
    let mut raw = Raw::connect(&world).await;
    for number in 0..10_000 {
        let stream = 1 + 2 * number;
        let mut bytes = frame(HEADERS, END_HEADERS, stream, &block(&GET));
        // A window of more than 2^31 - 1 bytes.
        bytes.extend(frame(8, 0, stream, &0x7fff_ffff_u32.to_be_bytes()));
        if !raw.send(&bytes).await {
            break;
        }
    }
    let outcome = raw.outcome(0).await;
    assert!(matches!(outcome, Outcome::Closed(_) | Outcome::Gone), "{outcome:?}");
    let count = endpoint.count();
    assert!(count < 1_000, "the endpoint received {count} requests");
}

/// A client that sends frames with an answer and reads none of the answers is not read any more.
#[tokio::test]
async fn floods_of_pings_and_settings_are_not_buffered() {
    let (world, _endpoint) = world().await;
    for flood in [frame(PING, 0, 0, &[1; 8]), frame(SETTINGS, 0, 0, &[])] {
        let mut raw = Raw::connect(&world).await;
        let flood = flood.repeat(1000);
        let limit = 64 << 20;
        let mut sent = 0;
        while sent < limit {
            let write = raw.0.write_all(&flood);
            match tokio::time::timeout(Duration::from_secs(1), write).await {
                Ok(Ok(())) => sent += flood.len(),
                // The connection ended, or the proxy reads no more.
                _ => break,
            }
        }
        assert!(sent < limit, "{sent} bytes were read");
    }
    // Other clients are served.
    let Outcome::Body(text) = request(&world, &GET).await else { panic!() };
    assert!(text.starts_with("one: GET /\n"), "{text}");
}

#[tokio::test]
async fn empty_frames_of_data_do_not_hold_a_stream() {
    let (world, _endpoint) = world().await;
    let mut raw = Raw::connect(&world).await;
    let mut fields = GET;
    fields[0].1 = b"POST";
    raw.send(&frame(HEADERS, END_HEADERS, 1, &block(&fields))).await;
    for _ in 0..1000 {
        raw.send(&frame(DATA, 0, 1, &[])).await;
    }
    raw.send(&frame(DATA, END_STREAM, 1, b"end")).await;
    let outcome = raw.outcome(1).await;
    assert!(
        matches!(&outcome, Outcome::Closed(_))
            || matches!(&outcome, Outcome::Body(text) if text.ends_with("\nend")),
        "{outcome:?}"
    );
    // An acknowledgement of settings that nobody sent is no error, a ping is answered.
    let mut raw = Raw::connect(&world).await;
    raw.send(&frame(PING, 0, 0, &[7; 8])).await;
    while let Some(frame) = raw.next().await {
        if frame.kind == PING {
            assert_eq!((frame.flags, &frame.payload[..]), (ACK, &[7; 8][..]));
            return;
        }
    }
    panic!("no answer to a ping");
}

/// A client that keeps its window closed holds no endpoint for ever: its stream is reset, also
/// before the first byte of the body. Other streams of the connection go on.
#[tokio::test]
async fn streams_that_are_not_read_are_reset() {
    let endpoint = Endpoint::start("one").await;
    let mut settings = crate::world::settings();
    settings.timeouts.send = Duration::from_secs(1);
    settings.timeouts.idle = Duration::from_secs(60);
    let world = World::with(settings).await;
    world.simple(Policy::default(), &[endpoint.address]);
    let window = |bytes: u32| frame(SETTINGS, 0, 0, &[&[0, 4][..], &bytes.to_be_bytes()].concat());
    let get = |stream| frame(HEADERS, END_HEADERS | END_STREAM, stream, &block(&GET));
    let mut raw = Raw::connect(&world).await;
    raw.send(&window(0)).await;
    raw.send(&get(1)).await;
    assert_eq!(raw.outcome(1).await, Outcome::Reset);

    // The answer is the body of the request: more than the window, in several pieces.
    raw.send(&window(20_000)).await;
    raw.send(&frame(
        HEADERS,
        END_HEADERS,
        3,
        &block(&[&[(&b":method"[..], &b"POST"[..])], &GET[1..]].concat()),
    ))
    .await;
    for piece in 0..3 {
        let last = if piece == 2 { END_STREAM } else { 0 };
        raw.send(&frame(DATA, last, 3, &[b'x'; 16 << 10])).await;
    }
    assert_eq!(raw.outcome(3).await, Outcome::Reset);
    assert_eq!(endpoint.count(), 2);
    raw.send(&window(65_535)).await;
    raw.send(&get(5)).await;
    assert!(matches!(raw.outcome(5).await, Outcome::Body(_)));

    // A single piece that is the last one, too.
    let long: Field<'_> = (b"x-long", &[b'x'; 4 << 10]);
    let long =
        |stream| frame(HEADERS, END_HEADERS | END_STREAM, stream, &block(&[&GET[..], &[long]].concat()));
    raw.send(&long(7)).await;
    let Outcome::Body(text) = raw.outcome(7).await else { panic!() };
    let length = text.len() as u32;
    for (stream, bytes) in [(9, 1), (11, length - 1)] {
        raw.send(&window(bytes)).await;
        raw.send(&long(stream)).await;
        let outcome = tokio::time::timeout(LIMIT, raw.outcome(stream)).await;
        assert_eq!(outcome.expect("the stream is not reset"), Outcome::Reset, "a window of {bytes} bytes");
    }
    raw.send(&window(length)).await;
    raw.send(&long(13)).await;
    let outcome = tokio::time::timeout(LIMIT, raw.outcome(13)).await.expect("the response does not end");
    assert!(matches!(&outcome, Outcome::Body(text) if text.len() == length as usize), "{outcome:?}");
}
