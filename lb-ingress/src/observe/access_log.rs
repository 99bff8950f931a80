//! The access log: one JSON object a line for each request.

use std::io::{BufWriter, Write};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde_json::{Map, Value};

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
    fn to_json(&self, duration: Duration, time: f64) -> Value {
        let mut object = Map::new();
        let mut put = |name: &str, value: Value| object.insert(name.to_owned(), value);
        let milliseconds = |duration: Duration| Value::from((duration.as_secs_f64() * 1e6).round() / 1e3);
        put("time", time.into());
        put("client", self.client.to_string().into());
        put("method", (*self.method).into());
        put("host", (*self.host).into());
        put("path", (*self.path).into());
        put("protocol", self.protocol.into());
        put("tls", self.tls.into());
        put("status", self.status.into());
        put("bytes", self.bytes.into());
        put("duration_ms", milliseconds(duration));
        if let Some(route) = &self.route {
            put("ingress", route.ingress.to_string().into());
            if route.path.is_some() {
                put("rule", route.field().into());
            }
        }
        let mut optional = |name: &str, value: Option<Value>| {
            if let Some(value) = value {
                put(name, value);
            }
        };
        let text = |text: &Option<Box<str>>| text.as_deref().map(Value::from);
        optional("service", text(&self.service));
        optional("endpoint", self.endpoint.map(|endpoint| endpoint.to_string().into()));
        optional("tries", (self.tries > 0).then(|| self.tries.into()));
        optional("endpoint_ms", self.endpoint_time.map(milliseconds));
        optional("user_agent", text(&self.user_agent));
        optional("request_id", text(&self.request_id));
        optional("trace", text(&self.trace));
        optional("reason", text(&self.reason));
        optional("aborted", (!self.complete).then(|| true.into()));
        object.into()
    }
}

/// Lines that wait to be written. Further ones are counted and dropped: a slow reader of the log
/// must not slow requests.
const QUEUE: usize = 8192;

/// Writes lines in a thread of its own.
#[derive(Debug, Clone)]
pub struct AccessLog {
    lines: SyncSender<Vec<u8>>,
    dropped: Arc<AtomicU64>,
}

impl AccessLog {
    /// Starts the thread. It ends with the last clone of the log.
    pub fn start(output: impl Write + Send + 'static) -> std::io::Result<Self> {
        let (lines, receiver) = sync_channel(QUEUE);
        std::thread::Builder::new()
            .name("access-log".into())
            .spawn(move || write_lines(&receiver, BufWriter::with_capacity(64 << 10, output)))?;
        Ok(Self { lines, dropped: Arc::default() })
    }

    pub(super) fn write(&self, record: &AccessRecord, duration: Duration) {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let Ok(mut line) = serde_json::to_vec(&record.to_json(duration, now.as_millis() as f64 / 1e3)) else {
            return;
        };
        line.push(b'\n');
        if self.lines.try_send(line).is_err() {
            self.dropped.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Returns the number of requests that were not logged.
    pub fn dropped(&self) -> u64 {
        self.dropped.load(Ordering::Relaxed)
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

    #[test]
    fn a_record_is_one_object() {
        let record = AccessRecord {
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
        };
        let line = record.to_json(Duration::from_micros(2500), 1.5).to_string();
        assert_eq!(
            line,
            "{\"bytes\":5,\"client\":\"192.0.2.7\",\"duration_ms\":2.5,\"endpoint\":\"10.0.0.1:80\",\
             \"endpoint_ms\":1.5,\"host\":\"shop.example\",\"ingress\":\"shop/web\",\"method\":\"GET\",\
             \"path\":\"/a?b=\\\"\",\"protocol\":\"HTTP/1.1\",\"request_id\":\"r1\",\
             \"rule\":\"spec.rules[0].http.paths[1]\",\"service\":\"shop/web:http\",\"status\":200,\
             \"time\":1.5,\"tls\":true,\"tries\":2}"
        );
    }
}
