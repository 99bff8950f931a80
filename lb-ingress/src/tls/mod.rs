//! Certificates: from Secrets to the handshake of a connection.

mod backends;
mod clients;
mod config;
mod names;
mod store;

pub use backends::{BackendConfig, BackendTls, noting_requests, unverified};
pub use clients::{AuthorityStore, ClientCertificate, has_authorities};
pub use config::{TlsError, TlsSettings};
pub use names::CertificateNames;
pub use store::{CertificateError, CertificateStore, parse_certificate, self_signed};
