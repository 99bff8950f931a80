//! Conformance programs of others against a real `lb ingress`: `cargo xtask test ingress-suites`,
//! which builds or fetches the programs. The tests need root.

mod grpc;
mod h2spec;
mod programs;
mod tls;
mod websocket;
