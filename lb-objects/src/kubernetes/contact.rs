//! Limits how long the API server may send nothing, and records when it last sent something.
//!
//! A list whose answer never comes, or a server that dies without closing its connections, would
//! otherwise stop a watch for minutes or for ever. The API server sends a bookmark about every
//! minute to a watch without changes.

use std::collections::BTreeMap;
use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures::FutureExt as _;
use futures::future::BoxFuture;
use http::{Method, Request, Response};
use http_body::{Body, Frame};
use tokio::time::Sleep;
use tower::{BoxError, Layer, Service};

use super::failover::{SentBy, Servers};

/// The time limits of a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Until the answer begins. The API server itself ends other requests than watches after 60 s.
    pub answer: Duration,
    /// Between two parts of an answer: more than the minute between two bookmarks.
    pub silence: Duration,
    /// Between two objects of a streaming list.
    pub listing: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            answer: Duration::from_secs(65),
            silence: Duration::from_secs(90),
            listing: Duration::from_secs(10),
        }
    }
}

/// The last segments of the paths of watched resources.
const RESOURCES: [&str; 8] =
    ["services", "endpointslices", "nodes", "pods", "servicecidrs", "ingresses", "ingressclasses", "secrets"];

/// When the API server last sent something about each watched resource. Clones share the times.
#[derive(Debug, Clone, Default)]
pub struct WatchAges(Arc<Mutex<BTreeMap<&'static str, Instant>>>);

impl WatchAges {
    /// Returns the watched resources, with the time since the API server last sent something about
    /// each, or since the first request.
    pub fn at(&self, now: Instant) -> Vec<(&'static str, Duration)> {
        let times = self.times();
        times.iter().map(|(resource, last)| (*resource, now.saturating_duration_since(*last))).collect()
    }

    fn times(&self) -> std::sync::MutexGuard<'_, BTreeMap<&'static str, Instant>> {
        // A panic of another thread cannot leave a time half written.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns the watched resource that a request reads, if it reads one.
    fn requested<B>(&self, request: &Request<B>) -> Option<Age> {
        let path = request.uri().path();
        let resource = RESOURCES.into_iter().find(|name| path.rsplit('/').next() == Some(*name))?;
        (request.method() == Method::GET).then(|| {
            self.times().entry(resource).or_insert_with(Instant::now);
            Age { ages: self.clone(), resource }
        })
    }
}

/// The time of one resource.
#[derive(Debug, Clone)]
struct Age {
    ages: WatchAges,
    resource: &'static str,
}

impl Age {
    fn received(&self) {
        self.ages.times().insert(self.resource, Instant::now());
    }
}

/// Adds the limits to a client.
#[derive(Debug, Clone)]
pub(super) struct ContactLayer {
    pub limits: Limits,
    pub ages: WatchAges,
    pub servers: Servers,
}

impl<S> Layer<S> for ContactLayer {
    type Service = Contact<S>;

    fn layer(&self, inner: S) -> Contact<S> {
        Contact { inner, layer: self.clone() }
    }
}

/// A client with limits.
#[derive(Debug, Clone)]
pub(super) struct Contact<S> {
    inner: S,
    layer: ContactLayer,
}

impl<S, R, B> Service<Request<R>> for Contact<S>
where
    S: Service<Request<R>, Response = Response<B>, Error = BoxError>,
    S::Future: Send + 'static,
{
    type Response = Response<LimitedBody<B>>;
    type Error = BoxError;
    type Future = BoxFuture<'static, Result<Self::Response, BoxError>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, request: Request<R>) -> Self::Future {
        let ContactLayer { limits, ages, servers } = self.layer.clone();
        let age = ages.requested(&request);
        let answer = tokio::time::timeout(limits.answer, self.inner.call(request));
        async move {
            let server = servers.current();
            let Ok(answer) = answer.await else {
                let text = format!("the API server did not answer for {} s", limits.answer.as_secs_f32());
                servers.failed(server, &text);
                return Err(io::Error::new(io::ErrorKind::TimedOut, text).into());
            };
            let answer = answer?;
            if let Some(age) = &age {
                age.received();
            }
            let server = answer.extensions().get().copied().unwrap_or(server);
            Ok(answer.map(|body| LimitedBody {
                body,
                silence: limits.silence,
                end: Box::pin(tokio::time::sleep(limits.silence)),
                age,
                servers,
                server,
            }))
        }
        .boxed()
    }
}

/// A body that ends if nothing comes for too long.
#[derive(Debug)]
pub(super) struct LimitedBody<B> {
    body: B,
    silence: Duration,
    end: Pin<Box<Sleep>>,
    age: Option<Age>,
    servers: Servers,
    /// The API server that sends this body.
    server: SentBy,
}

impl<B> Body for LimitedBody<B>
where
    B: Body<Data = Bytes, Error: Into<BoxError>> + Unpin,
{
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        let this = &mut *self;
        if let Poll::Ready(frame) = Pin::new(&mut this.body).poll_frame(context) {
            this.end.as_mut().reset(tokio::time::Instant::now() + this.silence);
            if let (Some(Ok(_)), Some(age)) = (&frame, &this.age) {
                age.received();
            }
            return Poll::Ready(frame.map(|frame| frame.map_err(Into::into)));
        }
        std::task::ready!(this.end.poll_unpin(context));
        let text = format!("the API server sent nothing for {} s", this.silence.as_secs_f32());
        this.servers.failed(this.server, &text);
        // kube-rs resumes a watch after this kind of error, and repeats a list.
        Poll::Ready(Some(Err(io::Error::new(io::ErrorKind::UnexpectedEof, text).into())))
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> http_body::SizeHint {
        self.body.size_hint()
    }
}
