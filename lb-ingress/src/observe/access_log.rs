//! The access log: one JSON object a line for each request.

use std::fmt::{self, Display};
use std::io::{BufWriter, Write};
use std::net::{IpAddr, SocketAddr};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use crate::routes::Origin;

/// The facts of a request at its end.
#[derive(Debug, Clone)]
pub struct AccessRecord {
    pub client: IpAddr,
    pub method: Box<str>,
    pub host: Box<str>,
    /// With the query, as the client sent it.
    pub path: Box<str>,
    /// `HTTP/1.1` or `HTTP/2.0`.
    pub protocol: &'static str,
    pub tls: bool,
    pub status: u16,
    /// Bytes of the response's body.
    pub bytes: u64,
    /// The rule that matched.
    pub route: Option<Origin>,
    pub service: Option<Box<str>>,
    pub endpoint: Option<SocketAddr>,
    /// Endpoints that were tried.
    pub tries: u32,
    /// Time until the endpoint's response began.
    pub endpoint_time: Option<Duration>,
    pub user_agent: Option<Box<str>>,
    pub request_id: Option<Box<str>>,
    /// The trace id of `traceparent` (W3C Trace Context).
    pub trace: Option<Box<str>>,
    /// Why the proxy answered itself.
    pub reason: Option<Box<str>>,
    /// The response was sent whole.
    pub complete: bool,
}

impl AccessRecord {
    /// Returns one JSON object, with the fields in alphabetical order, and the end of the line.
    fn to_json(&self, duration: Duration, time: f64) -> Vec<u8> {
        let milliseconds = |duration: Duration| (duration.as_secs_f64() * 1e6).round() / 1e3;
        let mut line = Line(Vec::with_capacity(640));
        if !self.complete {
            line.value("aborted", true);
        }
        line.value("bytes", self.bytes);
        line.plain("client", self.client);
        line.value("duration_ms", Float(milliseconds(duration)));
        if let Some(endpoint) = self.endpoint {
            line.plain("endpoint", endpoint);
        }
        if let Some(time) = self.endpoint_time {
            line.value("endpoint_ms", Float(milliseconds(time)));
        }
        line.text("host", &self.host);
        if let Some(route) = &self.route {
            line.plain("ingress", &route.ingress);
        }
        line.text("method", &self.method);
        line.text("path", &self.path);
        line.plain("protocol", self.protocol);
        line.optional("reason", self.reason.as_deref());
        line.optional("request_id", self.request_id.as_deref());
        if let Some(route) = self.route.as_ref().filter(|route| route.path.is_some()) {
            line.text("rule", &route.field());
        }
        line.optional("service", self.service.as_deref());
        line.value("status", self.status);
        line.value("time", Float(time));
        line.value("tls", self.tls);
        line.optional("trace", self.trace.as_deref());
        if self.tries > 0 {
            line.value("tries", self.tries);
        }
        line.optional("user_agent", self.user_agent.as_deref());
        line.0.extend_from_slice(b"}\n");
        line.0
    }
}

/// An object under way. Writing it at once is several times faster than a map of values: a line is
/// written for each request.
struct Line(Vec<u8>);

impl Line {
    fn name(&mut self, name: &str) {
        self.0.push(if self.0.is_empty() { b'{' } else { b',' });
        self.0.push(b'"');
        self.0.extend_from_slice(name.as_bytes());
        self.0.extend_from_slice(b"\":");
    }

    /// Adds a number or a truth value.
    fn value(&mut self, name: &str, value: impl Display) {
        self.name(name);
        // Writing into memory cannot fail.
        let _ = write!(self.0, "{value}");
    }

    /// Adds a text whose characters need no escape.
    fn plain(&mut self, name: &str, text: impl Display) {
        self.name(name);
        let _ = write!(self.0, "\"{text}\"");
    }

    fn text(&mut self, name: &str, text: &str) {
        self.name(name);
        let _ = serde_json::to_writer(&mut self.0, text);
    }

    fn optional(&mut self, name: &str, text: Option<&str>) {
        if let Some(text) = text {
            self.text(name, text);
        }
    }
}

/// A number as JSON of serde shows it: `1.0`, not `1`.
struct Float(f64);

impl Display for Float {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", self.0)
    }
}

/// Lines that wait to be written. Further ones are counted and dropped: a slow reader of the log
/// must not slow requests.
const QUEUE: usize = 8192;

/// Writes lines in a thread of its own.
#[derive(Debug, Clone)]
pub struct AccessLog {
    lines: SyncSender<Vec<u8>>,
}

impl AccessLog {
    /// Starts the thread. It ends with the last clone of the log.
    pub fn start(output: impl Write + Send + 'static) -> std::io::Result<Self> {
        let (lines, receiver) = sync_channel(QUEUE);
        std::thread::Builder::new()
            .name("access-log".into())
            .spawn(move || write_lines(&receiver, BufWriter::with_capacity(64 << 10, output)))?;
        Ok(Self { lines })
    }

    /// Queues a line. Returns false if the queue is full: the line is dropped.
    pub(super) fn write(&self, record: &AccessRecord, duration: Duration) -> bool {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let line = record.to_json(duration, now.as_millis() as f64 / 1e3);
        self.lines.try_send(line).is_ok()
    }
}

fn write_lines(lines: &Receiver<Vec<u8>>, mut output: impl Write) {
    // Errors are ignored: the reader of the log has closed it.
    loop {
        match lines.recv_timeout(Duration::from_millis(100)) {
            Ok(line) => drop(output.write_all(&line)),
            Err(RecvTimeoutError::Timeout) => {
                drop(output.flush());
                match lines.recv() {
                    Ok(line) => drop(output.write_all(&line)),
                    Err(_) => return,
                }
            }
            Err(RecvTimeoutError::Disconnected) => return drop(output.flush()),
        }
    }
}

#[cfg(test)]
mod tests {
    use lb_model::ObjectName;

    use super::*;

    fn record() -> AccessRecord {
        AccessRecord {
            client: "192.0.2.7".parse().unwrap(),
            method: "GET".into(),
            host: "shop.example".into(),
            path: "/a?b=\"".into(),
            protocol: "HTTP/1.1",
            tls: true,
            status: 200,
            bytes: 5,
            route: Some(Origin { ingress: ObjectName::new("shop", "web"), path: Some((0, 1)) }),
            service: Some("shop/web:http".into()),
            endpoint: Some("10.0.0.1:80".parse().unwrap()),
            tries: 2,
            endpoint_time: Some(Duration::from_micros(1500)),
            user_agent: None,
            request_id: Some("r1".into()),
            trace: None,
            reason: None,
            complete: true,
        }
    }

    /// The reader of the log takes nothing until the test ends.
    struct Stuck(std::sync::mpsc::Receiver<()>);

    impl Write for Stuck {
        fn write(&mut self, line: &[u8]) -> std::io::Result<usize> {
            // Returns an error when the test drops the sender.
            self.0.recv().or(Ok(())).map(|()| line.len())
        }

        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn lines_that_nobody_reads_are_dropped_and_counted() {
        let (release, stuck) = std::sync::mpsc::channel();
        let log = AccessLog::start(Stuck(stuck)).unwrap();
        let observer = crate::observe::Observer { log: Some(log), ..Default::default() };
        // The queue, and the buffer of the writer.
        for _ in 0..QUEUE + 2000 {
            observer.finished(&record(), Duration::from_millis(1));
        }
        let unlogged = observer.metrics.unlogged.get();
        assert!((1..=2000).contains(&unlogged), "{unlogged}");
        drop(release);
    }

    #[test]
    fn a_record_is_one_object() {
        let record = record();
        let text = |record: &AccessRecord, time| {
            String::from_utf8(record.to_json(Duration::from_micros(2500), time)).unwrap()
        };
        let line = text(&record, 1.5);
        assert_eq!(
            line,
            "{\"bytes\":5,\"client\":\"192.0.2.7\",\"duration_ms\":2.5,\"endpoint\":\"10.0.0.1:80\",\
             \"endpoint_ms\":1.5,\"host\":\"shop.example\",\"ingress\":\"shop/web\",\"method\":\"GET\",\
             \"path\":\"/a?b=\\\"\",\"protocol\":\"HTTP/1.1\",\"request_id\":\"r1\",\
             \"rule\":\"spec.rules[0].http.paths[1]\",\"service\":\"shop/web:http\",\"status\":200,\
             \"time\":1.5,\"tls\":true,\"tries\":2}\n"
        );
        // Every field at once, with characters that need an escape in those that clients choose.
        let odd: Box<str> = "\"\\\u{1}\u{e4}\u{2028}".into();
        let record = AccessRecord {
            method: odd.clone(),
            host: odd.clone(),
            path: odd.clone(),
            user_agent: Some(odd.clone()),
            request_id: Some(odd.clone()),
            trace: Some(odd.clone()),
            reason: Some(odd.clone()),
            complete: false,
            ..record
        };
        let line = text(&record, 1_764_264_000.0);
        let parsed: serde_json::Value = serde_json::from_str(&line).unwrap();
        for name in ["method", "host", "path", "user_agent", "request_id", "trace", "reason"] {
            assert_eq!(parsed[name], *odd, "{line}");
        }
        assert_eq!(parsed["aborted"], true);
        assert!(line.contains("\"time\":1764264000.0,"), "{line}");
        // The map of values has the same order, so nothing is written twice.
        assert_eq!(line, format!("{parsed}\n"));
    }
}
