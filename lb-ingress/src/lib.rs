//! HTTP routing on every node for Ingress objects.
//!
//! [`routes`] is the table that a request is looked up in. It is immutable: a change of objects
//! makes a new table that shares the hosts that did not change. [`annotations`] turns the
//! annotations of an Ingress into typed policies, and [`ingress`] the objects into routes.

pub mod annotations;
pub mod ingress;
pub mod migration;
pub mod routes;
