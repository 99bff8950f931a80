//! Certificates of clients, and the authorities that sign them, and those of backends.

use std::collections::HashMap;
use std::sync::{Arc, OnceLock, PoisonError, RwLock};

use lb_model::{ObjectName, Secret};
use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerifier};
use rustls::crypto::ring;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, CertificateRevocationListDer, UnixTime};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::server::{NoServerSessionStorage, WebPkiClientVerifier};
use rustls::{DigitallySignedStruct, DistinguishedName, RootCertStore, ServerConfig, SignatureScheme};

/// The key with the certificates of the authorities, and the one with their revocation lists.
const AUTHORITIES: &str = "ca.crt";
const REVOCATIONS: &str = "ca.crl";

/// The certificate of the client of a connection.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ClientCertificate {
    Missing,
    Valid(CertificateDer<'static>),
    /// With the reason.
    Invalid(CertificateDer<'static>, Box<str>),
}

impl ClientCertificate {
    /// Returns the certificate, also an invalid one.
    pub fn shown(&self) -> Option<&CertificateDer<'static>> {
        match self {
            Self::Missing => None,
            Self::Valid(certificate) | Self::Invalid(certificate, _) => Some(certificate),
        }
    }
}

/// The authorities of each Secret. They are parsed when the first client needs them.
#[derive(Debug, Default)]
pub struct AuthorityStore(RwLock<HashMap<ObjectName, Arc<Source>>>);

#[derive(Debug)]
struct Source {
    authorities: Box<[u8]>,
    revocations: Option<Box<[u8]>>,
    parsed: OnceLock<Option<Arc<Authorities>>>,
}

/// The authorities of a Secret, for handshakes.
#[derive(Debug)]
pub struct Authorities {
    roots: Vec<CertificateDer<'static>>,
    verifier: Arc<dyn ClientCertVerifier>,
    /// Verifies the certificates of backends.
    pub(super) servers: Arc<dyn ServerCertVerifier>,
    /// Made for the first handshake.
    config: OnceLock<Option<Arc<ServerConfig>>>,
}

/// A chain of certificates is longer than a policy allows.
#[derive(Debug, thiserror::Error)]
#[error("certificate chain too long")]
pub(super) struct TooLong;

/// Returns whether clients can be verified with the authorities of a Secret.
pub fn has_authorities(secret: &Secret) -> bool {
    Source::of(secret).is_some_and(|source| source.parse().is_some())
}

impl AuthorityStore {
    /// Sets the Secret. One without authorities is removed. Returns whether anything has changed.
    pub fn set(&self, name: &ObjectName, secret: Option<&Secret>) -> bool {
        let source = secret.and_then(Source::of).map(Arc::new);
        let mut sources = self.0.write().unwrap_or_else(PoisonError::into_inner);
        match source {
            Some(source) if sources.get(name).is_some_and(|known| known.is_like(&source)) => false,
            Some(source) => {
                sources.insert(name.clone(), source);
                true
            }
            None => sources.remove(name).is_some(),
        }
    }

    /// Returns the authorities of a Secret. Returns `None` if they cannot be used.
    pub fn of(&self, name: &ObjectName) -> Option<Arc<Authorities>> {
        let source = self.0.read().unwrap_or_else(PoisonError::into_inner).get(name)?.clone();
        source.parsed.get_or_init(|| source.parse().map(Arc::new)).clone()
    }
}

impl Source {
    fn of(secret: &Secret) -> Option<Self> {
        let authorities = secret.get(AUTHORITIES)?.into();
        let revocations = secret.get(REVOCATIONS).map(Into::into);
        Some(Self { authorities, revocations, parsed: OnceLock::new() })
    }

    fn is_like(&self, other: &Self) -> bool {
        self.authorities == other.authorities && self.revocations == other.revocations
    }

    fn parse(&self) -> Option<Authorities> {
        let roots = CertificateDer::pem_slice_iter(&self.authorities).collect::<Result<Vec<_>, _>>().ok()?;
        let mut store = RootCertStore::empty();
        for root in &roots {
            store.add(root.clone()).ok()?;
        }
        let provider = Arc::new(ring::default_provider());
        let store = Arc::new(store);
        let mut clients = WebPkiClientVerifier::builder_with_provider(store.clone(), provider.clone());
        let mut servers = WebPkiServerVerifier::builder_with_provider(store, provider);
        if let Some(revocations) = &self.revocations {
            let lists = CertificateRevocationListDer::pem_slice_iter(revocations);
            // Without a list, revoked certificates would be valid.
            let lists = lists.collect::<Result<Vec<_>, _>>().ok().filter(|lists| !lists.is_empty())?;
            clients = clients.with_crls(lists.clone()).allow_unknown_revocation_status();
            servers = servers.with_crls(lists).allow_unknown_revocation_status();
        }
        let (verifier, servers) = (clients.build().ok()?, servers.build().ok()?);
        Some(Authorities { roots, verifier, servers, config: OnceLock::new() })
    }
}

impl Authorities {
    /// Returns the settings of connections that request a certificate. The handshake ends with any
    /// certificate, or none: the answer to the request names the fault. `base` are the settings of
    /// the proxy for all other connections, the same in each call.
    pub fn config(&self, base: &ServerConfig) -> Option<Arc<ServerConfig>> {
        self.config.get_or_init(|| self.make_config(base).map(Arc::new)).clone()
    }

    fn make_config(&self, base: &ServerConfig) -> Option<ServerConfig> {
        let verifier = Arc::new(AnyClient(self.verifier.clone()));
        let mut config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_protocol_versions(&[&rustls::version::TLS13, &rustls::version::TLS12])
            .ok()?
            .with_client_cert_verifier(verifier)
            .with_cert_resolver(base.cert_resolver.clone());
        config.alpn_protocols.clone_from(&base.alpn_protocols);
        // Each connection verifies its certificate: none resumes an earlier one.
        config.session_storage = Arc::new(NoServerSessionStorage {});
        config.send_tls13_tickets = 0;
        Some(config)
    }

    /// Returns whether a chain has more than `depth` certificates between the first and the
    /// authority (`X509_VERIFY_PARAM_set_depth` of OpenSSL, which nginx calls). `others` are its
    /// certificates after the first.
    pub(super) fn is_too_long(&self, others: &[CertificateDer<'_>], depth: u8) -> bool {
        let between = others.iter().filter(|certificate| !self.roots.contains(certificate)).count();
        between > usize::from(depth)
    }

    /// Verifies the certificates that a client has sent, its own first. `depth` bounds the number
    /// of certificates between its own and the authority.
    pub fn verify(&self, chain: Option<&[CertificateDer<'static>]>, depth: u8) -> ClientCertificate {
        let Some((own, others)) = chain.and_then(<[_]>::split_first) else {
            return ClientCertificate::Missing;
        };
        if self.is_too_long(others, depth) {
            return ClientCertificate::Invalid(own.clone(), TooLong.to_string().into());
        }
        match self.verifier.verify_client_cert(own, others, UnixTime::now()) {
            Ok(_) => ClientCertificate::Valid(own.clone()),
            Err(error) => ClientCertificate::Invalid(own.clone(), error.to_string().into()),
        }
    }
}

/// Accepts every certificate whose key the client has. [`Authorities::verify`] decides later.
#[derive(Debug)]
struct AnyClient(Arc<dyn ClientCertVerifier>);

impl ClientCertVerifier for AnyClient {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        self.0.root_hint_subjects()
    }

    fn client_auth_mandatory(&self) -> bool {
        false
    }

    fn verify_client_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: UnixTime,
    ) -> Result<ClientCertVerified, rustls::Error> {
        Ok(ClientCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.0.verify_tls12_signature(message, certificate, signed)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.0.verify_tls13_signature(message, certificate, signed)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.supported_verify_schemes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn revoked_certificates_and_long_chains_are_invalid() {
        let mut params = rcgen::CertificateParams::new([]).unwrap();
        params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        let key = rcgen::KeyPair::generate().unwrap();
        let root = params.self_signed(&key).unwrap();
        let issuer = rcgen::Issuer::new(params, key);
        let client = |serial: u64| {
            let mut params = rcgen::CertificateParams::new(["client".to_owned()]).unwrap();
            params.serial_number = Some(serial.into());
            let key = rcgen::KeyPair::generate().unwrap();
            params.signed_by(&key, &issuer).unwrap().der().clone()
        };
        let revocations = rcgen::CertificateRevocationListParams {
            this_update: rcgen::date_time_ymd(2025, 1, 1),
            next_update: rcgen::date_time_ymd(4000, 1, 1),
            crl_number: 1_u64.into(),
            issuing_distribution_point: None,
            revoked_certs: vec![rcgen::RevokedCertParams {
                serial_number: 7_u64.into(),
                revocation_time: rcgen::date_time_ymd(2025, 1, 1),
                reason_code: None,
                invalidity_date: None,
            }],
            key_identifier_method: rcgen::KeyIdMethod::Sha256,
        };
        let revocations = revocations.signed_by(&issuer).unwrap().pem().unwrap();
        let name = ObjectName::new("default", "ca");
        let store = AuthorityStore::default();
        let secret = |revocations: &str| {
            let data = [("ca.crt", root.pem()), ("ca.crl", revocations.to_owned())];
            let data = data.map(|(key, value)| (key.into(), value.into_bytes().into()));
            Secret { data: data.into(), ..Secret::default() }
        };
        assert!(store.set(&name, Some(&secret(&revocations))));
        let authorities = store.of(&name).unwrap();
        assert!(!store.set(&name, Some(&secret(&revocations))));
        assert!(Arc::ptr_eq(&authorities, &store.of(&name).unwrap()), "no change");
        let root = root.der().clone();
        let (valid, revoked) = (client(6), client(7));
        for (chain, depth, expected) in [
            (vec![valid.clone()], 1, true),
            (vec![valid.clone(), root], 1, true),
            (vec![valid.clone(), revoked.clone(), revoked.clone()], 1, false),
            (vec![valid.clone(), revoked.clone(), revoked.clone()], 2, true),
            (vec![valid.clone(), revoked.clone()], 1, true),
            (vec![revoked], 1, false),
        ] {
            let found = authorities.verify(Some(&chain), depth);
            assert_eq!(found == ClientCertificate::Valid(valid.clone()), expected, "{found:?}");
        }
        assert_eq!(authorities.verify(None, 1), ClientCertificate::Missing);
        // Revocations must not vanish with a mistake.
        for invalid in ["", "no PEM", &revocations.replace("CRL-----\n", "CRL-----\n***")] {
            store.set(&name, Some(&secret(invalid)));
            assert!(store.of(&name).is_none(), "{invalid}");
        }
        store.set(&name, None);
        assert!(store.of(&name).is_none());
    }
}
