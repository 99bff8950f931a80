//! Answers to requests before they are finished.

use std::time::Duration;

use bytes::Bytes;
use hyper::body::Incoming;
use hyper::header::{CONTENT_TYPE, HeaderValue, LOCATION};
use hyper::{Response, StatusCode};

use super::upstream::Lease;

/// An answer before it is finished.
pub type Answer = Response<Content>;

/// The body of a response before it is finished.
#[derive(Debug)]
pub enum Content {
    /// The proxy's own.
    Own(Bytes),
    /// An endpoint's. The lease goes back when the body has ended.
    Endpoint { body: Incoming, lease: Option<Lease>, read: Duration },
    /// The connection has another protocol after this response.
    Upgraded,
}

/// Returns an answer of the proxy itself, without fields.
pub fn plain(status: StatusCode, body: impl Into<Bytes>) -> Answer {
    let mut answer = Response::new(Content::Own(body.into()));
    *answer.status_mut() = status;
    answer
}

/// Returns an answer of the proxy itself, with the status as its text.
pub fn own(status: StatusCode) -> Answer {
    let mut answer = plain(status, format!("{status}\n"));
    let headers = answer.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
    headers.insert("x-content-type-options", HeaderValue::from_static("nosniff"));
    answer
}

/// Returns an answer without a body that leads to another place.
pub fn redirect(status: StatusCode, location: &str) -> Answer {
    let Ok(location) = HeaderValue::from_str(location) else { return own(StatusCode::BAD_REQUEST) };
    let mut answer = plain(status, "");
    answer.headers_mut().insert(LOCATION, location);
    answer
}
