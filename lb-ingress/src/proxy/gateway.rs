//! The state and the settings that all connections share.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use arc_swap::ArcSwap;
use ipnet::IpNet;
use lb_model::{ObjectName, Secret};

use super::external_auth::AuthServers;
use super::guard::ClientTimeouts;
use super::limits::Limiter;
use super::upstream::Connections;
use crate::endpoints::Endpoints;
use crate::observe::Observer;
use crate::routes::RouteTable;
use crate::tls::{
    AuthorityStore, BackendTls, CertificateError, CertificateStore, TlsError, TlsSettings, parse_certificate,
};
use crate::users::UserStore;

/// The settings of a proxy.
#[derive(Debug, Clone)]
pub struct GatewaySettings {
    /// Peers whose `X-Forwarded-*` fields are believed.
    pub trusted_proxies: Vec<IpNet>,
    /// Connections begin with a PROXY protocol header (version 1 or 2).
    pub proxy_protocol: bool,
    /// The port of `https` as clients reach it, for redirects.
    pub https_port: u16,
    pub timeouts: ClientTimeouts,
    /// Connections of clients at a time. More wait in the queue of the kernel.
    pub max_connections: usize,
}

impl Default for GatewaySettings {
    fn default() -> Self {
        Self {
            trusted_proxies: Vec::new(),
            proxy_protocol: false,
            https_port: 443,
            timeouts: ClientTimeouts::default(),
            max_connections: 65_536,
        }
    }
}

/// The state of a proxy. The controller swaps the table, and sets endpoints and certificates.
#[derive(Debug)]
pub struct Gateway {
    pub table: Arc<ArcSwap<RouteTable>>,
    pub endpoints: Endpoints<Connections>,
    pub certificates: Arc<CertificateStore>,
    /// The Secrets with authorities of clients and backends.
    pub authorities: AuthorityStore,
    /// The Secrets of HTTP Basic authentication.
    pub users: UserStore,
    pub observer: Observer,
    pub(super) settings: GatewaySettings,
    pub(super) tls: TlsSettings,
    pub(super) backend_tls: BackendTls,
    pub(super) limiter: Limiter,
    pub(super) auth_servers: AuthServers,
    closing: AtomicBool,
    start: Instant,
}

impl Gateway {
    /// # Errors
    /// Fails if the provider of cryptography lacks a protocol version or random numbers.
    pub fn new(
        settings: GatewaySettings,
        certificates: CertificateStore,
        observer: Observer,
    ) -> Result<Self, TlsError> {
        let table: Arc<ArcSwap<RouteTable>> = Arc::default();
        let certificates = Arc::new(certificates);
        let tls = TlsSettings::new(table.clone(), certificates.clone())?;
        Ok(Self {
            table,
            endpoints: Endpoints::default(),
            certificates,
            authorities: AuthorityStore::default(),
            users: UserStore::new()?,
            observer,
            settings,
            tls,
            backend_tls: BackendTls::default(),
            limiter: Limiter::default(),
            auth_servers: AuthServers::default(),
            closing: AtomicBool::new(false),
            start: Instant::now(),
        })
    }

    /// Sets a Secret, or removes it. After a change, connections to endpoints that were made with
    /// it get no further request, and end with their last one.
    ///
    /// # Errors
    /// Fails if the certificate is invalid. The earlier one stays in effect.
    pub fn set_secret(
        &self,
        name: &ObjectName,
        secret: Option<&Arc<Secret>>,
    ) -> Result<(), CertificateError> {
        self.users.set(name, secret.filter(|secret| &*secret.kind != Secret::TLS).cloned());
        let pair = secret.and_then(|secret| Some((secret.get("tls.crt")?, secret.get("tls.key")?)));
        let certificate = pair.map(|(chain, key)| parse_certificate(chain, key)).transpose();
        let mut changed = self.authorities.set(name, secret.map(|secret| &**secret));
        let result = certificate.map(|certificate| {
            changed |= self.certificates.set(name.clone(), certificate);
        });
        if changed && self.backend_tls.retire(name) {
            self.endpoints.for_each(Connections::end_retired);
        }
        result
    }

    /// From now on, an HTTP/1 connection closes after its next response, which announces it. So no
    /// client sends a request on a connection that closes at the same time.
    pub fn close_after_responses(&self) {
        self.closing.store(true, Ordering::Relaxed);
    }

    pub(super) fn is_closing(&self) -> bool {
        self.closing.load(Ordering::Relaxed)
    }

    /// Returns the milliseconds since the start.
    pub(super) fn now_ms(&self) -> u64 {
        u64::try_from(self.start.elapsed().as_millis()).unwrap_or(u64::MAX)
    }
}
