//! The settings of TLS connections with clients.

use std::sync::Arc;

use arc_swap::ArcSwap;
use rustls::ServerConfig;
use rustls::crypto::ring;
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;

use super::store::CertificateStore;
use crate::routes::{RouteTable, request_host};

/// The settings of all connections: TLS 1.2 and 1.3, HTTP/2 and HTTP/1.1. The certificate is that
/// of the current table for the server name of each handshake.
#[derive(Debug, Clone)]
pub struct TlsSettings(Arc<ServerConfig>);

/// The provider of cryptography lacks a protocol version, or cannot encrypt tickets.
#[derive(Debug, thiserror::Error)]
#[error("cannot set up TLS: {0}")]
pub struct TlsError(#[from] rustls::Error);

#[derive(Debug)]
struct Resolver {
    table: Arc<ArcSwap<RouteTable>>,
    certificates: Arc<CertificateStore>,
}

impl ResolvesServerCert for Resolver {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        let table = self.table.load();
        let name = hello.server_name().and_then(request_host);
        Some(self.certificates.of(name.and_then(|name| table.certificate(&name))))
    }
}

impl TlsSettings {
    /// # Errors
    /// Fails if the provider of cryptography lacks a protocol version or cannot encrypt tickets.
    pub fn new(
        table: Arc<ArcSwap<RouteTable>>,
        certificates: Arc<CertificateStore>,
    ) -> Result<Self, TlsError> {
        let resolver = Arc::new(Resolver { table, certificates });
        let mut config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_protocol_versions(&[&rustls::version::TLS13, &rustls::version::TLS12])?
            .with_no_client_auth()
            .with_cert_resolver(resolver);
        config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        config.ticketer = ring::Ticketer::new()?;
        Ok(Self(Arc::new(config)))
    }

    pub fn config(&self) -> Arc<ServerConfig> {
        self.0.clone()
    }
}
