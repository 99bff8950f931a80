//! The proxy: connections of clients, requests to endpoints.
//!
//! - `listener` accepts connections: PROXY protocol, TLS, passthrough, HTTP/1 and HTTP/2;
//! - `guard` and `framing` check the bytes of HTTP/1 before the engine (hyper) reads them;
//! - `service` answers a request by the table of routes: `policy`, `cors`, `limits`,
//!   `basic_auth`, `external_auth`, `client_auth`, `variables`;
//! - `forward` sends it to an endpoint: `headers`, `upstream`, `upgrade`;
//! - `explain` makes the decisions about a request without a connection, for `lb explain http`;
//! - `answer`, `request_body`, `response_body`, `pace` are what goes in both directions;
//! - `logged` keeps the texts of a request for the access log.
//!
//! **Invariant:** a request holds one table from its start to its end.
//! **Invariant:** no byte that follows a request for an upgrade is forwarded before the endpoint
//! has answered 101.

mod answer;
mod basic_auth;
mod client_auth;
mod cors;
mod drain;
mod explain;
mod external_auth;
mod forward;
mod framing;
mod gateway;
mod guard;
mod headers;
mod limits;
mod listener;
mod logged;
mod pace;
mod policy;
mod proxy_protocol;
mod random;
mod request_body;
mod response_body;
mod send_limit;
mod service;
mod upgrade;
mod upstream;
mod variables;

pub use drain::Drain;
pub use explain::{Explanation, OwnAnswer, Question, QuestionError, explain};
pub use gateway::{Gateway, GatewaySettings};
pub use guard::ClientTimeouts;
pub use listener::{ListenerKind, serve};
pub use upstream::Connections;
