//! TLS towards backends: the certificate of the proxy, and the verification of the backends'.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, LazyLock, Mutex, MutexGuard, PoisonError};

use lb_model::ObjectName;
use rustls::client::ResolvesClientCert;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, ring, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::sign::{CertifiedKey, SingleCertAndKey};
use rustls::{CertificateError, ClientConfig, DigitallySignedStruct, Error, OtherError, SignatureScheme};

use super::clients::{Authorities, AuthorityStore, TooLong};
use super::store::CertificateStore;
use crate::routes::policy::UpstreamTls;

/// The settings of connections to backends, by their Secret. They are made for the first connection
/// that needs them, and end with [`BackendTls::retire`].
#[derive(Debug, Default)]
pub struct BackendTls(Mutex<BySecret>);

type BySecret = HashMap<ObjectName, Vec<(Options, Arc<BackendConfig>)>>;

/// The settings of connections that can replace each other.
#[derive(Debug)]
pub struct BackendConfig {
    pub client: Arc<ClientConfig>,
    /// The Secret has changed since.
    retired: AtomicBool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Options {
    http2: bool,
    send_name: bool,
    /// The greatest number of certificates between the backend's and its authority.
    verify: Option<u8>,
}

impl BackendConfig {
    /// Returns whether no further connection and no further request may use the settings.
    pub fn is_retired(&self) -> bool {
        self.retired.load(Ordering::Relaxed)
    }
}

impl BackendTls {
    /// Returns the settings for a policy. Returns `None` if its Secret has neither a certificate
    /// nor authorities, or no authorities to verify the backend with.
    pub fn config(
        &self,
        tls: &UpstreamTls,
        http2: bool,
        certificates: &CertificateStore,
        authorities: &AuthorityStore,
    ) -> Option<Arc<BackendConfig>> {
        let Some(secret) = &tls.secret else {
            return if tls.verify { None } else { unverified(http2) };
        };
        let verify = tls.verify.then_some(tls.verify_depth);
        let options = Options { http2, send_name: tls.send_name, verify };
        let mut by_secret = self.by_secret();
        let known = by_secret.get(secret).into_iter().flatten().find(|(known, _)| *known == options);
        if let Some((_, config)) = known {
            return Some(config.clone());
        }
        // They are read with the lock: `retire` removes what was made from an earlier Secret.
        let (certificate, authorities) = (certificates.own(secret), authorities.of(secret));
        if certificate.is_none() && authorities.is_none() || tls.verify && authorities.is_none() {
            return None;
        }
        let config = Arc::new(make(options, certificate, authorities)?);
        by_secret.entry(secret.clone()).or_default().push((options, config.clone()));
        Some(config)
    }

    /// Removes the settings with a Secret that has changed or is gone, and their key with them.
    /// Returns whether there were any.
    pub fn retire(&self, secret: &ObjectName) -> bool {
        let Some(configs) = self.by_secret().remove(secret) else { return false };
        for (_, config) in &configs {
            config.retired.store(true, Ordering::Relaxed);
        }
        true
    }

    fn by_secret(&self) -> MutexGuard<'_, BySecret> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Returns the settings of connections without a certificate of the proxy, to any server.
pub fn unverified(http2: bool) -> Option<Arc<BackendConfig>> {
    static CONFIGS: LazyLock<[Option<Arc<BackendConfig>>; 2]> = LazyLock::new(|| {
        let options = |http2| Options { http2, send_name: true, verify: None };
        [false, true].map(|http2| make(options(http2), None, None).map(Arc::new))
    });
    CONFIGS[usize::from(http2)].clone()
}

fn make(
    options: Options,
    certificate: Option<Arc<CertifiedKey>>,
    authorities: Option<Arc<Authorities>>,
) -> Option<BackendConfig> {
    let provider = Arc::new(ring::default_provider());
    let accepted = match options.verify {
        Some(depth) => Some((authorities?, depth)),
        None => None,
    };
    let verifier = Arc::new(Verifier { accepted, provider: provider.clone() });
    let builder = ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13, &rustls::version::TLS12])
        .ok()?
        .dangerous()
        .with_custom_certificate_verifier(verifier);
    let mut config = match certificate {
        Some(certificate) => builder.with_client_cert_resolver(Arc::new(SingleCertAndKey::from(certificate))),
        None => builder.with_no_client_auth(),
    };
    config.alpn_protocols = vec![if options.http2 { b"h2".to_vec() } else { b"http/1.1".to_vec() }];
    config.enable_sni = options.send_name;
    let own = config.client_auth_cert_resolver.clone();
    config.client_auth_cert_resolver = Arc::new(NoteRequest(own));
    Some(BackendConfig { client: Arc::new(config), retired: AtomicBool::new(false) })
}

tokio::task_local! {
    /// The backend requests a certificate in the handshake of this task.
    static REQUESTED: Arc<AtomicBool>;
}

/// Runs a handshake with settings of [`BackendConfig`]. Sets `requested` if the backend requests a
/// certificate.
pub async fn noting_requests<T>(requested: Arc<AtomicBool>, handshake: impl Future<Output = T>) -> T {
    REQUESTED.scope(requested, handshake).await
}

/// Notes the request of a backend for a certificate. All connections share it: rustls resumes
/// sessions only with the same resolver.
#[derive(Debug)]
struct NoteRequest(Arc<dyn ResolvesClientCert>);

impl ResolvesClientCert for NoteRequest {
    fn resolve(&self, authorities: &[&[u8]], schemes: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        let _ = REQUESTED.try_with(|requested| requested.store(true, Ordering::Relaxed));
        self.0.resolve(authorities, schemes)
    }

    fn has_certs(&self) -> bool {
        self.0.has_certs()
    }
}

/// Accepts the certificates of authorities up to a depth. Without authorities, it accepts every
/// certificate: endpoints have self-signed ones, and `proxy-ssl-verify` is off by default in
/// ingress-nginx. The signature of the handshake is always checked.
#[derive(Debug)]
struct Verifier {
    accepted: Option<(Arc<Authorities>, u8)>,
    provider: Arc<CryptoProvider>,
}

impl ServerCertVerifier for Verifier {
    fn verify_server_cert(
        &self,
        own: &CertificateDer<'_>,
        others: &[CertificateDer<'_>],
        name: &ServerName<'_>,
        stapled: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let Some((authorities, depth)) = &self.accepted else { return Ok(ServerCertVerified::assertion()) };
        if authorities.is_too_long(others, *depth) {
            let error = OtherError(Arc::new(TooLong));
            return Err(Error::InvalidCertificate(CertificateError::Other(error)));
        }
        authorities.servers.verify_server_cert(own, others, name, stapled, now)
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        verify_tls12_signature(message, certificate, signed, algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        verify_tls13_signature(message, certificate, signed, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}
