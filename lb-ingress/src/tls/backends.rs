//! TLS towards backends: the certificate of the proxy, and the verification of the backends'.

use std::collections::HashMap;
use std::sync::{Arc, LazyLock, Mutex, PoisonError};

use lb_model::ObjectName;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, ring, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::sign::{CertifiedKey, SingleCertAndKey};
use rustls::{CertificateError, ClientConfig, DigitallySignedStruct, Error, OtherError, SignatureScheme};

use super::clients::{Authorities, AuthorityStore, TooLong};
use super::store::CertificateStore;
use crate::routes::policy::UpstreamTls;

/// The settings of connections to backends. They are made for the first connection that needs them,
/// and again after a change of their Secret. So connections with the same settings can be compared
/// by the address of these.
#[derive(Debug, Default)]
pub struct BackendTls(Mutex<HashMap<ObjectName, Vec<OfSecret>>>);

/// The settings that were made from one version of a Secret.
#[derive(Debug)]
struct OfSecret {
    options: Options,
    certificate: Option<Arc<CertifiedKey>>,
    authorities: Option<Arc<Authorities>>,
    config: Arc<ClientConfig>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Options {
    http2: bool,
    send_name: bool,
    /// The greatest length of a chain of certificates that is verified.
    verify: Option<u8>,
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
    ) -> Option<Arc<ClientConfig>> {
        let Some(secret) = &tls.secret else {
            return if tls.verify { None } else { unverified(http2) };
        };
        let certificate = certificates.own(secret);
        let authorities = authorities.of(secret);
        if certificate.is_none() && authorities.is_none() || tls.verify && authorities.is_none() {
            return None;
        }
        let verify = tls.verify.then_some(tls.verify_depth);
        let options = Options { http2, send_name: tls.send_name, verify };
        let mut of_secrets = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let known = of_secrets.entry(secret.clone()).or_default();
        known.retain(|known| {
            same(known.certificate.as_ref(), certificate.as_ref())
                && same(known.authorities.as_ref(), authorities.as_ref())
        });
        if let Some(known) = known.iter().find(|known| known.options == options) {
            return Some(known.config.clone());
        }
        let config = Arc::new(make(options, certificate.clone(), authorities.clone())?);
        known.push(OfSecret { options, certificate, authorities, config: config.clone() });
        Some(config)
    }
}

/// Returns the settings of connections without a certificate of the proxy, to any server.
pub fn unverified(http2: bool) -> Option<Arc<ClientConfig>> {
    static CONFIGS: LazyLock<[Option<Arc<ClientConfig>>; 2]> = LazyLock::new(|| {
        let options = |http2| Options { http2, send_name: true, verify: None };
        [false, true].map(|http2| make(options(http2), None, None).map(Arc::new))
    });
    CONFIGS[usize::from(http2)].clone()
}

fn same<T>(one: Option<&Arc<T>>, other: Option<&Arc<T>>) -> bool {
    one.map(Arc::as_ptr) == other.map(Arc::as_ptr)
}

fn make(
    options: Options,
    certificate: Option<Arc<CertifiedKey>>,
    authorities: Option<Arc<Authorities>>,
) -> Option<ClientConfig> {
    let provider = Arc::new(ring::default_provider());
    let verifier: Arc<dyn ServerCertVerifier> = match options.verify {
        Some(depth) => Arc::new(OfAuthorities { authorities: authorities?, depth }),
        None => Arc::new(AnyCertificate(provider.clone())),
    };
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
    Some(config)
}

/// Accepts the certificates of authorities.
#[derive(Debug)]
struct OfAuthorities {
    authorities: Arc<Authorities>,
    depth: u8,
}

impl ServerCertVerifier for OfAuthorities {
    fn verify_server_cert(
        &self,
        own: &CertificateDer<'_>,
        others: &[CertificateDer<'_>],
        name: &ServerName<'_>,
        stapled: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        if self.authorities.is_too_long(others, self.depth) {
            let error = OtherError(Arc::new(TooLong));
            return Err(Error::InvalidCertificate(CertificateError::Other(error)));
        }
        self.authorities.servers.verify_server_cert(own, others, name, stapled, now)
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.authorities.servers.verify_tls12_signature(message, certificate, signed)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.authorities.servers.verify_tls13_signature(message, certificate, signed)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.authorities.servers.supported_verify_schemes()
    }
}

/// Accepts every certificate: endpoints have self-signed ones, and `proxy-ssl-verify` is off by
/// default in ingress-nginx. The signature of the handshake is checked.
#[derive(Debug)]
struct AnyCertificate(Arc<CryptoProvider>);

impl ServerCertVerifier for AnyCertificate {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls12_signature(message, certificate, signed, &self.0.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(message, certificate, signed, &self.0.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}
