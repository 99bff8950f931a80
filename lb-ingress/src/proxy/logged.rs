//! The texts of a request that the access log has.

use hyper::header::{HOST, HeaderName, HeaderValue, USER_AGENT};
use hyper::{Method, Request, Uri, Version};

use crate::observe::RequestTexts;

const TRACEPARENT: HeaderName = HeaderName::from_static("traceparent");

/// Keeps the texts until the end of a request. It shares the bytes of the request, and copies none.
#[derive(Debug)]
pub struct Logged {
    method: Method,
    uri: Uri,
    version: Version,
    host: Option<HeaderValue>,
    user_agent: Option<HeaderValue>,
    trace: Option<HeaderValue>,
    pub request_id: Option<HeaderValue>,
}

impl Logged {
    pub fn of<B>(request: &Request<B>) -> Self {
        let field = |name| request.headers().get(name).cloned();
        Self {
            method: request.method().clone(),
            uri: request.uri().clone(),
            version: request.version(),
            host: field(HOST),
            user_agent: field(USER_AGENT),
            trace: field(TRACEPARENT),
            request_id: None,
        }
    }

    pub fn texts(&self) -> RequestTexts<'_> {
        let authority = self.uri.authority().map(|authority| authority.as_str());
        RequestTexts {
            method: self.method.as_str(),
            host: authority.or_else(|| text_of(&self.host)).unwrap_or_default(),
            path: self.uri.path_and_query().map_or("*", |path| path.as_str()),
            protocol: match self.version {
                Version::HTTP_2 => "HTTP/2.0",
                Version::HTTP_10 => "HTTP/1.0",
                _ => "HTTP/1.1",
            },
            user_agent: text_of(&self.user_agent),
            request_id: text_of(&self.request_id),
            trace: text_of(&self.trace).and_then(|trace| trace.split('-').nth(1)),
        }
    }
}

fn text_of(value: &Option<HeaderValue>) -> Option<&str> {
    value.as_ref()?.to_str().ok()
}
