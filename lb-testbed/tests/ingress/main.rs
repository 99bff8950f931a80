//! `lb ingress` with real sockets in a network namespace. The tests need root.

mod client;
mod conformance;
mod load;
mod rolling;
#[path = "../../../lb-ingress/tests/short_form/mod.rs"]
mod short_form;
mod upgrade;
