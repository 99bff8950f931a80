//! The access log: one JSON object a line for each request.

use std::cell::RefCell;
use std::io::Write;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use crate::routes::{BackendRef, Origin};

/// The facts of a request at its end.
#[derive(Debug, Clone)]
pub struct AccessRecord {
    pub client: IpAddr,
    pub tls: bool,
    pub status: u16,
    /// Bytes of the response's body.
    pub bytes: u64,
    /// The rule that matched.
    pub route: Option<Origin>,
    pub service: Option<BackendRef>,
    pub endpoint: Option<SocketAddr>,
    /// Endpoints that were tried.
    pub tries: u32,
    /// Time until the endpoint's response began.
    pub endpoint_time: Option<Duration>,
    /// Why the proxy answered itself.
    pub reason: Option<Box<str>>,
    /// The response was sent whole.
    pub complete: bool,
}

/// The texts of a request that are logged.
#[derive(Debug, Clone, Copy, Default)]
pub struct RequestTexts<'r> {
    pub method: &'r str,
    pub host: &'r str,
    /// With the query, as the client sent it.
    pub path: &'r str,
    /// `HTTP/1.0`, `HTTP/1.1` or `HTTP/2.0`.
    pub protocol: &'r str,
    pub user_agent: Option<&'r str>,
    pub request_id: Option<&'r str>,
    /// The trace id of `traceparent` (W3C Trace Context).
    pub trace: Option<&'r str>,
}

impl AccessRecord {
    /// Writes one JSON object, with the fields in alphabetical order, and the end of the line to
    /// `out`, which is empty. `time` is the time since 1970.
    fn write_json(&self, texts: &RequestTexts<'_>, duration: Duration, time: Duration, out: &mut Vec<u8>) {
        let mut line = Line(out);
        if !self.complete {
            line.name("aborted");
            line.raw("true");
        }
        line.number("bytes", self.bytes);
        line.name("client");
        line.raw("\"");
        line.address(self.client);
        line.raw("\"");
        line.thousandths("duration_ms", rounded_micros(duration));
        if let Some(endpoint) = self.endpoint {
            line.name("endpoint");
            line.raw(if endpoint.is_ipv6() { "\"[" } else { "\"" });
            line.address(endpoint.ip());
            line.raw(if endpoint.is_ipv6() { "]:" } else { ":" });
            line.digits(endpoint.port().into(), 1);
            line.raw("\"");
        }
        if let Some(time) = self.endpoint_time {
            line.thousandths("endpoint_ms", rounded_micros(time));
        }
        line.text("host", texts.host);
        if let Some(route) = &self.route {
            line.joined("ingress", [route.ingress.namespace(), "/", route.ingress.name()]);
        }
        line.text("method", texts.method);
        line.text("path", texts.path);
        line.joined("protocol", [texts.protocol]);
        line.optional("reason", self.reason.as_deref());
        line.optional("request_id", texts.request_id);
        if let Some((rule, path)) = self.route.as_ref().and_then(|route| route.path) {
            line.name("rule");
            line.raw("\"spec.rules[");
            line.digits(rule.into(), 1);
            line.raw("].http.paths[");
            line.digits(path.into(), 1);
            line.raw("]\"");
        }
        if let Some(BackendRef { service, port }) = &self.service {
            let separator = if port.is_empty() { "" } else { ":" };
            line.joined("service", [service.namespace(), "/", service.name(), separator, port]);
        }
        line.number("status", self.status.into());
        line.thousandths("time", u64::try_from(time.as_millis()).unwrap_or(u64::MAX));
        line.name("tls");
        line.raw(if self.tls { "true" } else { "false" });
        line.optional("trace", texts.trace);
        if self.tries > 0 {
            line.number("tries", self.tries.into());
        }
        line.optional("user_agent", texts.user_agent);
        line.raw("}\n");
    }
}

fn rounded_micros(duration: Duration) -> u64 {
    u64::try_from((duration.as_nanos() + 500) / 1000).unwrap_or(u64::MAX)
}

/// An object under way. A line is written for each request: this is several times faster than a map
/// of values, and than the macros that format.
struct Line<'o>(&'o mut Vec<u8>);

impl Line<'_> {
    fn raw(&mut self, text: &str) {
        self.0.extend_from_slice(text.as_bytes());
    }

    fn name(&mut self, name: &str) {
        self.raw(if self.0.is_empty() { "{\"" } else { ",\"" });
        self.raw(name);
        self.raw("\":");
    }

    fn number(&mut self, name: &str, number: u64) {
        self.name(name);
        self.digits(number, 1);
    }

    /// Adds a number in the form of a float of serde: `1.0`, not `1`.
    fn thousandths(&mut self, name: &str, number: u64) {
        self.number(name, number / 1000);
        self.raw(".");
        self.digits(number % 1000, 3);
        for _ in 0..2 {
            if self.0.last() == Some(&b'0') {
                self.0.pop();
            }
        }
    }

    /// Adds at least `least` digits.
    fn digits(&mut self, number: u64, least: usize) {
        let mut digits = [b'0'; 20];
        let (mut start, mut rest) = (digits.len(), number);
        while rest > 0 {
            start -= 1;
            digits[start] += (rest % 10) as u8;
            rest /= 10;
        }
        self.0.extend_from_slice(&digits[start.min(digits.len() - least)..]);
    }

    fn address(&mut self, address: IpAddr) {
        match address {
            IpAddr::V4(address) => {
                for (place, octet) in address.octets().into_iter().enumerate() {
                    self.raw(if place == 0 { "" } else { "." });
                    self.digits(octet.into(), 1);
                }
            }
            // Writing into memory cannot fail.
            IpAddr::V6(address) => drop(write!(self.0, "{address}")),
        }
    }

    /// Adds a text in parts. Only names in a folder of manifests can have characters that need an
    /// escape: no API server has checked them.
    fn joined<const N: usize>(&mut self, name: &str, parts: [&str; N]) {
        let needs_escape = |byte: u8| byte < b' ' || byte == b'"' || byte == b'\\';
        if parts.iter().any(|part| part.bytes().any(needs_escape)) {
            return self.text(name, &parts.concat());
        }
        self.name(name);
        self.raw("\"");
        parts.into_iter().for_each(|part| self.raw(part));
        self.raw("\"");
    }

    fn text(&mut self, name: &str, text: &str) {
        self.name(name);
        let _ = serde_json::to_writer(&mut *self.0, text);
    }

    fn optional(&mut self, name: &str, text: Option<&str>) {
        if let Some(text) = text {
            self.text(name, text);
        }
    }
}

/// Bytes of lines that wait to be written. Further lines are counted and dropped: a slow reader of
/// the log must not slow requests.
const QUEUE: usize = 4 << 20;

/// The thread collects lines for this time, or until the queue is half full, and writes them at
/// once. To wake it for each line would cost more than the line.
const PAUSE: Duration = Duration::from_millis(100);

/// The end of a log waits at most this time until the last lines are written.
const LAST_WRITE: Duration = Duration::from_secs(1);

/// Writes lines in a thread of its own.
#[derive(Debug)]
pub struct AccessLog(Arc<Shared>);

#[derive(Debug, Default)]
struct Shared {
    queue: Mutex<Queue>,
    wake: Condvar,
}

#[derive(Debug, Default)]
struct Queue {
    lines: Vec<u8>,
    /// The log was dropped.
    closed: bool,
    /// The thread has written all lines.
    ended: bool,
}

impl AccessLog {
    /// Starts the thread. It ends when the log is dropped, after the last lines.
    pub fn start(output: impl Write + Send + 'static) -> std::io::Result<Self> {
        let shared = Arc::new(Shared::default());
        let reader = shared.clone();
        std::thread::Builder::new().name("access-log".into()).spawn(move || write_lines(&reader, output))?;
        Ok(Self(shared))
    }

    /// Queues a line. Returns false if the queue is full: the line is dropped.
    pub(super) fn write(&self, record: &AccessRecord, texts: &RequestTexts<'_>, duration: Duration) -> bool {
        thread_local! {
            static LINE: RefCell<Vec<u8>> = RefCell::new(Vec::with_capacity(1024));
        }
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        LINE.with_borrow_mut(|line| {
            line.clear();
            record.write_json(texts, duration, now, line);
            self.0.push(line)
        })
    }
}

impl Drop for AccessLog {
    fn drop(&mut self) {
        let mut queue = self.0.lock();
        queue.closed = true;
        self.0.wake.notify_one();
        // The process may end next, and the thread with it.
        let writes = |queue: &mut Queue| !queue.ended;
        drop(self.0.wake.wait_timeout_while(queue, LAST_WRITE, writes));
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn push(&self, line: &[u8]) -> bool {
        let mut queue = self.lock();
        let before = queue.lines.len();
        let after = before + line.len();
        if after > QUEUE {
            return false;
        }
        queue.lines.extend_from_slice(line);
        drop(queue);
        if before == 0 || (before < QUEUE / 2 && after >= QUEUE / 2) {
            self.wake.notify_one();
        }
        true
    }

    /// Waits for lines and moves them to `lines`, which is empty. Returns `false` if no more come.
    fn take(&self, lines: &mut Vec<u8>) -> bool {
        let queue = self.lock();
        let empty = |queue: &mut Queue| queue.lines.is_empty() && !queue.closed;
        let queue = self.wake.wait_while(queue, empty).unwrap_or_else(PoisonError::into_inner);
        let few = |queue: &mut Queue| queue.lines.len() < QUEUE / 2 && !queue.closed;
        let (mut queue, _) =
            self.wake.wait_timeout_while(queue, PAUSE, few).unwrap_or_else(PoisonError::into_inner);
        std::mem::swap(&mut queue.lines, lines);
        !lines.is_empty()
    }
}

fn write_lines(shared: &Shared, mut output: impl Write) {
    let mut lines = Vec::new();
    while shared.take(&mut lines) {
        // Errors are ignored: the reader of the log has closed it.
        let _ = output.write_all(&lines).and_then(|()| output.flush());
        lines.clear();
        lines.shrink_to(QUEUE / 16);
    }
    shared.lock().ended = true;
    shared.wake.notify_one();
}

#[cfg(test)]
mod tests {
    use lb_model::ObjectName;

    use super::*;

    fn record() -> AccessRecord {
        AccessRecord {
            client: "192.0.2.7".parse().unwrap(),
            tls: true,
            status: 200,
            bytes: 5,
            route: Some(Origin { ingress: ObjectName::new("shop", "web"), path: Some((0, 1)) }),
            service: Some(BackendRef { service: ObjectName::new("shop", "web"), port: "http".into() }),
            endpoint: Some("10.0.0.1:80".parse().unwrap()),
            tries: 2,
            endpoint_time: Some(Duration::from_micros(1500)),
            reason: None,
            complete: true,
        }
    }

    const TEXTS: RequestTexts<'_> = RequestTexts {
        method: "GET",
        host: "shop.example",
        path: "/a?b=\"",
        protocol: "HTTP/1.1",
        user_agent: None,
        request_id: Some("r1"),
        trace: None,
    };

    fn json(record: &AccessRecord, texts: &RequestTexts<'_>, time: u64) -> String {
        let mut line = Vec::new();
        record.write_json(texts, Duration::from_micros(2500), Duration::from_millis(time), &mut line);
        String::from_utf8(line).unwrap()
    }

    /// Passes what is written to the test. Blocks if the channel is full.
    struct Sent(std::sync::mpsc::SyncSender<Vec<u8>>);

    impl Write for Sent {
        fn write(&mut self, lines: &[u8]) -> std::io::Result<usize> {
            self.0.send(lines.to_vec()).map_err(std::io::Error::other)?;
            Ok(lines.len())
        }

        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn lines_that_nobody_reads_are_dropped_and_counted() {
        let (sender, unread) = std::sync::mpsc::sync_channel(0);
        let log = AccessLog::start(Sent(sender)).unwrap();
        let observer = crate::observe::Observer { log: Some(log), ..Default::default() };
        // The queue, the lines that the thread has taken, and more.
        let fit = QUEUE / json(&record(), &TEXTS, 1_764_264_000_001).len();
        let lines = 2 * fit + 2000;
        for _ in 0..lines {
            observer.finished(&record(), Some(&TEXTS), Duration::from_micros(2500));
        }
        let unlogged = usize::try_from(observer.metrics.unlogged.get()).unwrap();
        assert!((1..=lines - fit).contains(&unlogged), "{unlogged} of {lines}, {fit} fit");
        drop(unread);
    }

    #[test]
    fn the_last_line_is_written_before_the_log_ends() {
        let (sender, written) = std::sync::mpsc::sync_channel(1);
        let log = AccessLog::start(Sent(sender)).unwrap();
        assert!(log.write(&record(), &TEXTS, Duration::from_micros(2500)));
        drop(log);
        let lines = String::from_utf8(written.try_recv().unwrap()).unwrap();
        assert!(lines.ends_with("}\n") && lines.lines().count() == 1, "{lines}");
    }

    #[test]
    fn a_record_is_one_object() {
        let record = record();
        let line = json(&record, &TEXTS, 1500);
        assert_eq!(
            line,
            "{\"bytes\":5,\"client\":\"192.0.2.7\",\"duration_ms\":2.5,\"endpoint\":\"10.0.0.1:80\",\
             \"endpoint_ms\":1.5,\"host\":\"shop.example\",\"ingress\":\"shop/web\",\"method\":\"GET\",\
             \"path\":\"/a?b=\\\"\",\"protocol\":\"HTTP/1.1\",\"request_id\":\"r1\",\
             \"rule\":\"spec.rules[0].http.paths[1]\",\"service\":\"shop/web:http\",\"status\":200,\
             \"time\":1.5,\"tls\":true,\"tries\":2}\n"
        );
        // Every field at once, with characters that need an escape in those that clients and
        // manifests choose.
        let odd = "\"\\\u{1}\u{e4}\u{2028}";
        let texts = RequestTexts {
            method: odd,
            host: odd,
            path: odd,
            user_agent: Some(odd),
            request_id: Some(odd),
            trace: Some(odd),
            ..TEXTS
        };
        let name = ObjectName::new("shop", odd);
        let record = AccessRecord {
            route: Some(Origin { ingress: name.clone(), path: Some((0, 1)) }),
            service: Some(BackendRef { service: name, port: odd.into() }),
            reason: Some(odd.into()),
            complete: false,
            ..record
        };
        let line = json(&record, &texts, 1_764_264_000_000);
        let parsed: serde_json::Value = serde_json::from_str(&line).unwrap();
        for name in ["method", "host", "path", "user_agent", "request_id", "trace", "reason"] {
            assert_eq!(parsed[name], odd, "{line}");
        }
        assert_eq!(parsed["ingress"], format!("shop/{odd}"), "{line}");
        assert_eq!(parsed["service"], format!("shop/{odd}:{odd}"), "{line}");
        assert_eq!(parsed["aborted"], true);
        assert!(line.contains("\"time\":1764264000.0,"), "{line}");
        // The map of values has the same order, so nothing is written twice.
        assert_eq!(line, format!("{parsed}\n"));
    }

    #[test]
    fn numbers_and_addresses() {
        for (thousandths, expected) in
            [(0, "0.0"), (1, "0.001"), (10, "0.01"), (999, "0.999"), (1000, "1.0"), (12_340, "12.34")]
        {
            let mut out = Vec::new();
            Line(&mut out).thousandths("a", thousandths);
            assert_eq!(String::from_utf8(out).unwrap(), format!("{{\"a\":{expected}"));
        }
        for endpoint in ["192.0.2.70:8080", "10.0.0.255:1", "[2001:db8::1]:443"] {
            let endpoint = endpoint.parse().unwrap();
            let record = AccessRecord { endpoint: Some(endpoint), client: endpoint.ip(), ..record() };
            let line = json(&record, &TEXTS, 1);
            assert!(line.contains(&format!("\"client\":\"{}\",", endpoint.ip())), "{line}");
            assert!(line.contains(&format!("\"endpoint\":\"{endpoint}\",")), "{line}");
        }
    }
}
