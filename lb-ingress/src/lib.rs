//! HTTP routing on every node for Ingress objects.
//!
//! [`routes`] is the table that a request is looked up in. It is immutable: a change of objects
//! makes a new table that shares the hosts that did not change.

pub mod routes;
