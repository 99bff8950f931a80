//! Verifies the passwords of requests, on threads of their own.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::{Duration, Instant};

use lb_model::{ObjectName, Secret};
use ring::hmac;
use ring::rand::SystemRandom;
use tokio::sync::Semaphore;
use tokio::task::spawn_blocking;

use super::password;
use super::secret::hash_of;
use crate::routes::policy::BasicAuth;

/// A password that was verified is not verified again for this time.
const REMEMBER: Duration = Duration::from_secs(300);
/// Verified passwords that are remembered.
const REMEMBERED: usize = 4096;
/// Requests that may wait for a verification. Each takes up to a second.
const WAITING: usize = 64;
/// `crypt` takes no longer passwords. The time of some hashes grows with the square of the length.
const MAX_PASSWORD: usize = 512;

/// The decision about a user and password.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    Admitted,
    Refused,
    /// The Secret does not exist, or has no users.
    NoUsers,
    /// Too many requests wait for a verification.
    Busy,
}

/// The Secrets with users, and the passwords that were verified.
#[derive(Debug)]
pub struct UserStore {
    secrets: RwLock<HashMap<ObjectName, Arc<Secret>>>,
    key: hmac::Key,
    verified: Mutex<Verified>,
    waiting: Semaphore,
    workers: Arc<Semaphore>,
}

impl UserStore {
    /// # Errors
    /// Fails if the system has no random numbers.
    pub fn new() -> Result<Self, rustls::Error> {
        let key = hmac::Key::generate(hmac::HMAC_SHA256, &SystemRandom::new());
        let workers = std::thread::available_parallelism().map_or(1, |count| count.get().div_ceil(2));
        Ok(Self {
            secrets: RwLock::default(),
            key: key.map_err(|_| rustls::Error::FailedToGetRandomBytes)?,
            verified: Mutex::default(),
            waiting: Semaphore::new(WAITING),
            workers: Arc::new(Semaphore::new(workers)),
        })
    }

    /// Sets a Secret. `None` removes it.
    pub fn set(&self, name: &ObjectName, secret: Option<Arc<Secret>>) {
        let mut secrets = self.secrets.write().unwrap_or_else(PoisonError::into_inner);
        match secret {
            Some(secret) => drop(secrets.insert(name.clone(), secret)),
            None => drop(secrets.remove(name)),
        }
    }

    /// Returns whether the Secret of a policy has users.
    pub fn has_users(&self, auth: &BasicAuth) -> bool {
        self.secret(auth).is_some_and(|secret| hash_of(&secret, auth.form, "").is_some())
    }

    fn secret(&self, auth: &BasicAuth) -> Option<Arc<Secret>> {
        self.secrets.read().unwrap_or_else(PoisonError::into_inner).get(&auth.secret).cloned()
    }

    /// Decides about a user and password.
    pub async fn check(&self, auth: &BasicAuth, user: &str, password: &[u8]) -> Verdict {
        let Some(secret) = self.secret(auth) else { return Verdict::NoUsers };
        let Some((hash, is_known)) = hash_of(&secret, auth.form, user) else { return Verdict::NoUsers };
        if password.len() > MAX_PASSWORD {
            return Verdict::Refused;
        }
        // A changed hash has another tag.
        let tag = self.tag(&[user.as_bytes(), hash.as_bytes(), password]);
        if is_known && self.verified().contains(&tag, Instant::now()) {
            return Verdict::Admitted;
        }
        let Ok(_waiting) = self.waiting.try_acquire() else { return Verdict::Busy };
        let Ok(worker) = self.workers.clone().acquire_owned().await else { return Verdict::Busy };
        let (hash, password) = (hash.to_owned(), password.to_owned());
        let matches = spawn_blocking(move || {
            // The thread keeps its place if the client goes away.
            let _worker = worker;
            password::verify(&password, &hash)
        });
        if !(matches.await.unwrap_or(false) && is_known) {
            return Verdict::Refused;
        }
        self.verified().insert(tag, Instant::now());
        Verdict::Admitted
    }

    fn tag(&self, parts: &[&[u8]]) -> [u8; 32] {
        let mut context = hmac::Context::with_key(&self.key);
        for part in parts {
            context.update(&(part.len() as u64).to_be_bytes());
            context.update(part);
        }
        let mut tag = [0; 32];
        tag.copy_from_slice(context.sign().as_ref());
        tag
    }

    fn verified(&self) -> std::sync::MutexGuard<'_, Verified> {
        self.verified.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The tags of verified passwords, with their times.
#[derive(Debug, Default)]
struct Verified(HashMap<[u8; 32], Instant>);

impl Verified {
    fn contains(&self, tag: &[u8; 32], now: Instant) -> bool {
        self.0.get(tag).is_some_and(|since| now.saturating_duration_since(*since) < REMEMBER)
    }

    fn insert(&mut self, tag: [u8; 32], now: Instant) {
        if self.0.len() >= REMEMBERED {
            self.0.retain(|_, since| now.saturating_duration_since(*since) < REMEMBER);
        }
        if self.0.len() >= REMEMBERED
            && let Some(oldest) = self.0.iter().min_by_key(|(_, since)| **since).map(|(tag, _)| *tag)
        {
            self.0.remove(&oldest);
        }
        self.0.insert(tag, now);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::routes::policy::BasicAuthForm;

    #[test]
    fn verified_passwords_are_bounded_in_count_and_time() {
        let mut verified = Verified::default();
        let start = Instant::now();
        let tag = |number: usize| {
            let mut tag = [0; 32];
            tag[..8].copy_from_slice(&(number as u64).to_be_bytes());
            tag
        };
        for number in 0..REMEMBERED + 10 {
            verified.insert(tag(number), start + Duration::from_millis(number as u64));
        }
        assert_eq!(verified.0.len(), REMEMBERED);
        assert!(!verified.contains(&tag(9), start) && verified.contains(&tag(10), start));
        assert!(!verified.contains(&tag(10), start + REMEMBER + Duration::from_secs(1)));
    }

    #[tokio::test]
    async fn users_are_admitted_by_their_current_hash() {
        let store = UserStore::new().unwrap();
        let auth = BasicAuth {
            secret: ObjectName::new("default", "users"),
            form: BasicAuthForm::Map,
            realm: "".into(),
        };
        let secret = |hash: &str| {
            let data = [("ann".into(), hash.as_bytes().into())].into();
            Some(Arc::new(Secret { data, ..Secret::default() }))
        };
        assert_eq!(store.check(&auth, "ann", b"password").await, Verdict::NoUsers);
        store.set(&auth.secret, secret("{SHA}W6ph5Mm5Pz8GgiULbPgzG37mj9g="));
        for _ in 0..2 {
            assert_eq!(store.check(&auth, "ann", b"password").await, Verdict::Admitted);
            assert_eq!(store.check(&auth, "ann", b"Password").await, Verdict::Refused);
            assert_eq!(store.check(&auth, "bob", b"password").await, Verdict::Refused);
            assert_eq!(store.check(&auth, "ann", &[b'x'; 513]).await, Verdict::Refused);
        }
        assert_eq!(store.verified().0.len(), 1);
        store.set(&auth.secret, secret("{SHA}AAAAAAAAAAAAAAAAAAAAAAAAAAA="));
        assert_eq!(store.check(&auth, "ann", b"password").await, Verdict::Refused);
        store.set(&auth.secret, None);
        assert_eq!(store.check(&auth, "ann", b"password").await, Verdict::NoUsers);
        let text = format!("{store:?}");
        assert!(!text.contains("SHA}"), "{text}");
    }
}
