//! Reads the objects that exist, then watches them.
//!
//! All nodes can start at once. So the objects come from the cache of the API server, not from a
//! quorum of etcd. Of three methods the first one that the API server supports is used:
//!
//! 1. A streaming list (KEP-3157): one watch sends the objects that exist, then their changes.
//!    Neither side holds the whole list in memory. On by default in Kubernetes 1.32 and since 1.34.
//! 2. A list with `resourceVersion=0`. The answer is compressed, but it has no pages.
//! 3. A list in pages, which the API server reads from etcd (Kubernetes before 1.31).

use std::fmt::Debug;
use std::time::Duration;

use futures::stream::BoxStream;
use futures::{Stream, StreamExt as _};
use kube::runtime::watcher::{Event, ListSemantic};
use kube::runtime::{WatchStreamExt, watcher};
use kube::{Api, Client};
use serde::de::DeserializeOwned;
use tokio::time::timeout;
use tracing::info;

use super::watch::{WatchBackoff, status_code};

/// Selects objects of a resource.
#[derive(Debug, Clone, Default)]
pub(super) struct Selector {
    pub labels: Option<String>,
    pub fields: Option<String>,
    /// A field selector that old API servers do not know. They send all objects.
    pub optional_fields: Option<&'static str>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Method {
    Streamed,
    Cached,
    Paged,
}

/// The request that is being tried.
#[derive(Debug, Clone)]
struct Attempt {
    selector: Selector,
    method: Method,
    /// The number of times that the method has begun since it was complete.
    begun: u32,
    /// The objects that exist are being received.
    listing: bool,
}

/// Another method is tried if this one did not complete so many times.
const MAX_BEGUN: u32 = 4;

const BAD_REQUEST: u16 = 400;
const UNPROCESSABLE: u16 = 422;
const INTERNAL_ERROR: u16 = 500;

impl Attempt {
    fn config(&self) -> watcher::Config {
        let fields = self.selector.fields.as_deref().or(self.selector.optional_fields);
        let config = watcher::Config {
            label_selector: self.selector.labels.clone(),
            field_selector: fields.map(str::to_owned),
            ..watcher::Config::default()
        };
        match self.method {
            Method::Streamed => config.streaming_lists(),
            // kube-rs requests the cached list only if it has no pages.
            Method::Cached => watcher::Config { page_size: None, list_semantic: ListSemantic::Any, ..config },
            Method::Paged => config,
        }
    }

    /// Returns whether the stream is to be replaced because of this item, and changes the attempt
    /// if so.
    fn falls_back<K>(&mut self, item: &watcher::Result<Event<K>>) -> bool {
        match item {
            Ok(Event::Init) => {
                self.begun += 1;
                self.listing = true;
                // A proxy between agent and API server may end every long answer.
                self.begun >= MAX_BEGUN && self.method == Method::Streamed && self.next_method()
            }
            Ok(Event::InitDone) => {
                self.begun = 0;
                self.listing = false;
                false
            }
            Ok(_) => false,
            Err(error) => match status_code(error) {
                Some(BAD_REQUEST) if self.selector.optional_fields.is_some() => {
                    self.selector.optional_fields = None;
                    info!("the API server does not select Services by spec.clusterIP: all of them are read");
                    true
                }
                Some(BAD_REQUEST | UNPROCESSABLE) => self.next_method(),
                // The answer of an API server whose etcd is older than 3.4.25.
                Some(INTERNAL_ERROR) if self.method == Method::Streamed && self.listing => self.next_method(),
                _ => false,
            },
        }
    }

    fn next_method(&mut self) -> bool {
        let (next, text) = match self.method {
            Method::Streamed => (Method::Cached, "does not stream lists: they are read from its cache"),
            Method::Cached => (Method::Paged, "refuses lists from its cache: they are read in pages"),
            Method::Paged => return false,
        };
        info!("the API server {text}");
        (self.method, self.begun, self.listing) = (next, 0, false);
        true
    }
}

/// Reads objects with one client.
#[derive(Clone)]
pub(super) struct Reader {
    pub client: Client,
    /// A streaming list without an item for this time is given up: Kubernetes before 1.27 ignores
    /// the parameter, and never reports the end of the list.
    pub patience: Duration,
}

impl Reader {
    /// Watches the selected objects of a resource in all namespaces. After an error it pauses and
    /// begins again.
    pub fn objects<K: Object>(
        &self,
        selector: Selector,
    ) -> impl Stream<Item = watcher::Result<Event<K>>> + use<K> {
        let attempt = Attempt { selector, method: Method::Streamed, begun: 0, listing: false };
        let stream = self.stream(&attempt);
        futures::stream::unfold(Listing { reader: self.clone(), attempt, stream }, Listing::next)
    }

    fn stream<K: Object>(&self, attempt: &Attempt) -> BoxStream<'static, watcher::Result<Event<K>>> {
        let api = Api::<K>::all(self.client.clone());
        watcher(api, attempt.config()).backoff(WatchBackoff::default()).boxed()
    }
}

/// An API object that can be watched.
pub(super) trait Object:
    kube::Resource<DynamicType = ()> + Clone + Debug + DeserializeOwned + Send + 'static
{
}

impl<K> Object for K where
    K: kube::Resource<DynamicType = ()> + Clone + Debug + DeserializeOwned + Send + 'static
{
}

struct Listing<K> {
    reader: Reader,
    attempt: Attempt,
    stream: BoxStream<'static, watcher::Result<Event<K>>>,
}

impl<K: Object> Listing<K> {
    /// Returns the next item. Continues with another method if this one fails.
    async fn next(mut self) -> Option<(watcher::Result<Event<K>>, Self)> {
        loop {
            let item = if self.attempt.method == Method::Streamed && self.attempt.listing {
                timeout(self.reader.patience, self.stream.next()).await
            } else {
                Ok(self.stream.next().await)
            };
            match item {
                Ok(item) => {
                    let item = item?;
                    if !self.attempt.falls_back(&item) {
                        return Some((item, self));
                    }
                }
                Err(_) => _ = self.attempt.next_method(),
            }
            self.stream = self.reader.stream(&self.attempt);
        }
    }
}
