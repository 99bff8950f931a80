//! Certificates: from Secrets to the handshake of a connection.

mod config;
mod store;

pub use config::{TlsError, TlsSettings};
pub use store::{CertificateError, CertificateStore, parse_certificate, self_signed};
