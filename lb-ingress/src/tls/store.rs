//! The certificates of Secrets.

use std::collections::HashMap;
use std::sync::{Arc, PoisonError, RwLock};

use lb_model::ObjectName;
use rustls::crypto::ring;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use rustls::sign::CertifiedKey;

/// The reasons why a Secret has no usable certificate.
#[derive(Debug, thiserror::Error)]
pub enum CertificateError {
    #[error("data[tls.crt] is no PEM certificate ({0}): set it to the chain, the server's certificate first")]
    Certificate(String),
    #[error("data[tls.key] is no PEM private key ({0}): set it to the key of the certificate")]
    Key(String),
    #[error("data[tls.key] cannot be used ({0}): use a key for RSA, ECDSA (P-256, P-384) or Ed25519")]
    KeyKind(rustls::Error),
    #[error("data[tls.key] does not belong to data[tls.crt]: set both from one certificate")]
    Mismatch,
    #[error("the default certificate cannot be made: {0}")]
    SelfSigned(#[from] rcgen::Error),
}

/// Parses `tls.crt` and `tls.key` of a Secret.
///
/// # Errors
/// Fails if one of them is no PEM, or if they do not belong together.
pub fn parse_certificate(chain: &[u8], key: &[u8]) -> Result<CertifiedKey, CertificateError> {
    let chain: Vec<_> = CertificateDer::pem_slice_iter(chain)
        .collect::<Result<_, _>>()
        .map_err(|error| CertificateError::Certificate(error.to_string()))?;
    if chain.is_empty() {
        return Err(CertificateError::Certificate("it has none".into()));
    }
    let key = PrivateKeyDer::from_pem_slice(key).map_err(|error| CertificateError::Key(error.to_string()))?;
    certified(chain, &key)
}

fn certified(
    chain: Vec<CertificateDer<'static>>,
    key: &PrivateKeyDer<'_>,
) -> Result<CertifiedKey, CertificateError> {
    let key = ring::sign::any_supported_type(key).map_err(CertificateError::KeyKind)?;
    let certified = CertifiedKey::new(chain, key);
    match certified.keys_match() {
        Ok(()) | Err(rustls::Error::InconsistentKeys(rustls::InconsistentKeys::Unknown)) => Ok(certified),
        Err(rustls::Error::InconsistentKeys(_)) => Err(CertificateError::Mismatch),
        Err(error) => Err(CertificateError::Certificate(error.to_string())),
    }
}

/// Makes the certificate for server names that have none.
pub fn self_signed() -> Result<CertifiedKey, CertificateError> {
    let rcgen::CertifiedKey { cert, signing_key } =
        rcgen::generate_simple_self_signed(["ingress.invalid".to_owned()])?;
    let key = PrivatePkcs8KeyDer::from(signing_key.serialize_der());
    certified(vec![cert.der().clone()], &key.into())
}

/// The certificates by Secret. A change of one costs nothing for the others; connections keep the
/// certificate that they have.
#[derive(Debug)]
pub struct CertificateStore {
    by_secret: RwLock<HashMap<ObjectName, Arc<CertifiedKey>>>,
    default: Arc<CertifiedKey>,
    /// Its certificate takes precedence over `default`, as soon as it has one.
    default_secret: Option<ObjectName>,
}

impl CertificateStore {
    /// The certificate of `default_secret` is for server names without one, and `default` as long
    /// as that Secret has none.
    pub fn new(default: CertifiedKey, default_secret: Option<ObjectName>) -> Self {
        Self { by_secret: RwLock::default(), default: Arc::new(default), default_secret }
    }

    /// Returns whether a Secret has a certificate.
    pub fn has(&self, secret: &ObjectName) -> bool {
        self.by_secret.read().unwrap_or_else(PoisonError::into_inner).contains_key(secret)
    }

    /// Returns the certificate of a Secret, if it has one.
    pub fn own(&self, secret: &ObjectName) -> Option<Arc<CertifiedKey>> {
        self.by_secret.read().unwrap_or_else(PoisonError::into_inner).get(secret).cloned()
    }

    /// Returns the certificate of a Secret, else the default.
    pub fn of(&self, secret: Option<&ObjectName>) -> Arc<CertifiedKey> {
        let by_secret = self.by_secret.read().unwrap_or_else(PoisonError::into_inner);
        let of = |secret: Option<&ObjectName>| secret.and_then(|secret| by_secret.get(secret));
        of(secret).or_else(|| of(self.default_secret.as_ref())).unwrap_or(&self.default).clone()
    }

    /// Sets the certificate of a Secret. `None` removes it. Returns whether anything has changed.
    pub fn set(&self, secret: ObjectName, certificate: Option<CertifiedKey>) -> bool {
        let mut by_secret = self.by_secret.write().unwrap_or_else(PoisonError::into_inner);
        match certificate {
            Some(certificate) if by_secret.get(&secret).is_some_and(|known| same(known, &certificate)) => {
                false
            }
            Some(certificate) => {
                by_secret.insert(secret, Arc::new(certificate));
                true
            }
            None => by_secret.remove(&secret).is_some(),
        }
    }
}

/// Compares the chains and the public keys: a private key cannot be compared.
fn same(one: &CertifiedKey, other: &CertifiedKey) -> bool {
    let public = |certified: &CertifiedKey| certified.key.public_key().map(|key| key.to_vec());
    one.cert == other.cert && public(one).is_some_and(|key| public(other) == Some(key))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pem(name: &str) -> (String, String) {
        let rcgen::CertifiedKey { cert, signing_key } =
            rcgen::generate_simple_self_signed([name.to_owned()]).unwrap();
        (cert.pem(), signing_key.serialize_pem())
    }

    #[test]
    fn certificates_of_secrets() {
        let (chain, key) = pem("a.example");
        let other = pem("b.example");
        assert!(parse_certificate(chain.as_bytes(), key.as_bytes()).is_ok());
        for (chain, key, expected) in [
            ("", &*key, "data[tls.crt] is no PEM certificate"),
            (&*chain, "", "data[tls.key] is no PEM private key"),
            (&*chain, &*other.1, "data[tls.key] does not belong to data[tls.crt]"),
        ] {
            let error = parse_certificate(chain.as_bytes(), key.as_bytes()).unwrap_err().to_string();
            assert!(error.starts_with(expected), "{error}");
        }
    }

    #[test]
    fn unknown_secrets_get_the_default() {
        let store = CertificateStore::new(self_signed().unwrap(), None);
        let secret = ObjectName::new("a", "tls");
        let (chain, key) = pem("a.example");
        let default = store.of(None);
        assert!(Arc::ptr_eq(&default, &store.of(Some(&secret))));
        store.set(secret.clone(), parse_certificate(chain.as_bytes(), key.as_bytes()).ok());
        let own = store.of(Some(&secret));
        assert!(!Arc::ptr_eq(&default, &own));
        assert!(!store.set(secret.clone(), parse_certificate(chain.as_bytes(), key.as_bytes()).ok()));
        assert!(Arc::ptr_eq(&own, &store.of(Some(&secret))), "no change");
        let (chain, key) = pem("a.example");
        assert!(store.set(secret.clone(), parse_certificate(chain.as_bytes(), key.as_bytes()).ok()));
        assert!(!Arc::ptr_eq(&own, &store.of(Some(&secret))));
        store.set(secret.clone(), None);
        assert!(Arc::ptr_eq(&default, &store.of(Some(&secret))));
    }

    #[test]
    fn the_default_may_come_from_a_secret() {
        let (secret, other) = (ObjectName::new("a", "wildcard"), ObjectName::new("a", "tls"));
        let store = CertificateStore::new(self_signed().unwrap(), Some(secret.clone()));
        let self_signed = store.of(None);
        let (chain, key) = pem("*.example");
        store.set(secret.clone(), parse_certificate(chain.as_bytes(), key.as_bytes()).ok());
        assert!(store.has(&secret) && !store.has(&other));
        assert!(Arc::ptr_eq(&store.of(None), &store.of(Some(&secret))));
        assert!(Arc::ptr_eq(&store.of(Some(&other)), &store.of(Some(&secret))));
        store.set(secret, None);
        assert!(Arc::ptr_eq(&store.of(None), &self_signed));
    }
}
