//! The table of routes: which backend and which policy a request gets.
//!
//! **Invariant:** no I/O, no clock, no randomness. A request's random number is an argument
//! ([`RequestFacts`]).
//! **Invariant:** one normalised path ([`NormalPath`]) is matched and forwarded.

mod backend;
mod canary;
mod host;
mod matcher;
mod path;
pub mod policy;
mod route;
mod table;
mod template;

pub use backend::{Backend, BackendRef};
pub use canary::{Canary, HeaderCondition, RequestFacts};
pub use host::{HostError, HostPattern, request_host};
pub use matcher::{PathMatcher, RegexError};
pub use path::{NormalPath, PathError};
pub use policy::Policy;
pub use route::{Origin, Route};
pub use table::{Found, HostRoutes, HostSettings, Passthrough, RouteTable};
pub use template::{Template, UnknownVariable, Variable};
