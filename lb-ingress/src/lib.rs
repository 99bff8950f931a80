//! HTTP routing on every node for Ingress objects.
//!
//! - [`routes`] is the table that a request is looked up in. It is immutable: a change of objects
//!   makes a new table that shares the hosts that did not change.
//! - [`annotations`] turns the annotations of an Ingress into typed policies, and [`ingress`] the
//!   objects into routes.
//! - [`endpoints`] are the pods behind the routes, and the choice among them.
//! - [`tls`] holds the certificates, and [`users`] the users of HTTP Basic authentication.
//! - [`observe`] writes the access log and counts.
//! - [`status`] decides which addresses are written to which Ingress.
//! - [`control`] keeps a proxy equal to the objects.
//! - [`proxy`] receives connections and forwards their requests. It alone uses the HTTP engine.

pub mod annotations;
pub mod control;
pub mod endpoints;
pub mod ingress;
pub mod migration;
pub mod observe;
pub mod proxy;
pub mod routes;
pub mod status;
pub mod tls;
pub mod users;
