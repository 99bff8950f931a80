//! Hashes of passwords, as `htpasswd` and `openssl passwd` write them.

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use md5::{Digest as _, Md5};
use ring::digest::{SHA1_FOR_LEGACY_USE_ONLY, digest};
use sha_crypt::{PasswordVerifier as _, ShaCrypt};
use subtle::ConstantTimeEq as _;

/// The time of a verification doubles with each step. 14 takes about a second.
const MAX_BCRYPT_COST: u32 = 14;
/// The default of `crypt` is 5000. A million takes about a second.
const MAX_SHA_ROUNDS: u32 = 1_000_000;

/// The kinds of hash.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Bcrypt,
    /// MD5 with 1000 rounds, with this prefix.
    Md5(&'static str),
    Sha1,
    /// SHA-256 or SHA-512 of `crypt`.
    Sha,
}

/// Returns whether passwords can be verified with this hash.
pub fn is_supported(hash: &str) -> bool {
    kind(hash).is_some()
}

/// Returns whether the hash is that of the password. The time does not depend on where the two
/// differ.
pub fn verify(password: &[u8], hash: &str) -> bool {
    match kind(hash) {
        Some(Kind::Bcrypt) => bcrypt::verify(password, hash).unwrap_or(false),
        Some(Kind::Md5(prefix)) => {
            let Some((salt, expected)) = hash.strip_prefix(prefix).and_then(|rest| rest.split_once('$'))
            else {
                return false;
            };
            md5_crypt(password, prefix, salt).as_bytes().ct_eq(expected.as_bytes()).into()
        }
        Some(Kind::Sha1) => {
            let expected = hash.strip_prefix("{SHA}").unwrap_or_default();
            let actual = BASE64_STANDARD.encode(digest(&SHA1_FOR_LEGACY_USE_ONLY, password));
            actual.as_bytes().ct_eq(expected.as_bytes()).into()
        }
        Some(Kind::Sha) => ShaCrypt::default().verify_password(password, hash).is_ok(),
        None => false,
    }
}

fn kind(hash: &str) -> Option<Kind> {
    if ["$2a$", "$2b$", "$2y$"].iter().any(|prefix| hash.starts_with(prefix)) {
        let cost = hash.get(4..6)?.parse::<u32>().ok()?;
        return (hash.len() == 60 && cost <= MAX_BCRYPT_COST).then_some(Kind::Bcrypt);
    }
    if let Some(prefix) = ["$apr1$", "$1$"].into_iter().find(|prefix| hash.starts_with(prefix)) {
        return Some(Kind::Md5(prefix));
    }
    if hash.starts_with("{SHA}") {
        return Some(Kind::Sha1);
    }
    let rest = hash.strip_prefix("$5$").or_else(|| hash.strip_prefix("$6$"))?;
    let rounds = match rest.strip_prefix("rounds=") {
        Some(rest) => rest.split('$').next()?.parse::<u32>().ok()?,
        None => 0,
    };
    (rounds <= MAX_SHA_ROUNDS).then_some(Kind::Sha)
}

/// Returns the hash without prefix and salt (`apr_md5_encode` of the Apache Portable Runtime).
fn md5_crypt(password: &[u8], prefix: &str, salt: &str) -> String {
    const ALPHABET: &[u8; 64] = b"./0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz";
    let salt = &salt.as_bytes()[..salt.len().min(8)];
    let of = |parts: &[&[u8]]| {
        let mut hash = Md5::new();
        parts.iter().for_each(|part| hash.update(part));
        <[u8; 16]>::from(hash.finalize())
    };
    let alternate = of(&[password, salt, password]);
    let mut first = Md5::new();
    first.update(password);
    first.update(prefix.as_bytes());
    first.update(salt);
    let mut left = password.len();
    while left > 0 {
        first.update(&alternate[..left.min(16)]);
        left = left.saturating_sub(16);
    }
    let mut bits = password.len();
    while bits > 0 {
        first.update(if bits & 1 == 1 { &[0][..] } else { &password[..1] });
        bits >>= 1;
    }
    let mut hash = <[u8; 16]>::from(first.finalize());
    for round in 0..1000 {
        let (before, after): (&[u8], &[u8]) =
            if round % 2 == 1 { (password, &hash) } else { (&hash, password) };
        let salt = if round % 3 == 0 { &[][..] } else { salt };
        let again = if round % 7 == 0 { &[][..] } else { password };
        hash = of(&[before, salt, again, after]);
    }
    let mut text = String::with_capacity(22);
    let mut push = |mut value: u32, count: usize| {
        for _ in 0..count {
            text.push(char::from(ALPHABET[(value & 63) as usize]));
            value >>= 6;
        }
    };
    for (high, middle, low) in [(0, 6, 12), (1, 7, 13), (2, 8, 14), (3, 9, 15), (4, 10, 5)] {
        push(u32::from(hash[high]) << 16 | u32::from(hash[middle]) << 8 | u32::from(hash[low]), 4);
    }
    push(u32::from(hash[11]), 2);
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Written by `openssl passwd`, `htpasswd` and the test vectors of bcrypt.
    const HASHES: [(&str, &str); 9] = [
        ("password", "$apr1$8eZg1bQx$aRh0nx6rKOb6RFVAqOqg30"),
        (
            "password",
            "$6$saltsalt12./$4gbx7ydD3IxXG0aqJBxpdVsq68Ko8Gi016iilluvExJ0AbqCB/g09Jd6oMcyRmAH6OJAtF7dtWZ9X9SVrW.xI1",
        ),
        ("a long password with more than sixteen characters", "$apr1$8eZg1bQx$DJZMK37pYQ/PFI9gmWsBS1"),
        (
            "a long password with more than sixteen characters",
            "$6$saltsalt12./$NWC1rrzlobk5Kk2ZIoLDh0UYp/ECTiTTS61S6rzhWxjHbCiz/C5vUrsLlVMa1vWMO5yKIE4Pk5dvQzbx3gqPE0",
        ),
        ("password", "$1$abc$BXBqpb9BZcZhXLgbee.0s/"),
        ("password", "$5$saltstring$OH4IDuTlsuTYPdED1gsuiRMyTAwNlRWyA6Xr3I4/dQ5"),
        (
            "pässwort",
            "$6$x$TLnG0lckVFrZ5eMn4ctY0/0vLFC6foNnjLgkJu2AgvonnE1W0qCc9296.vOdsdin9mRhouPS4mku1wAPO.rKM/",
        ),
        ("password", "{SHA}W6ph5Mm5Pz8GgiULbPgzG37mj9g="),
        ("password", "$2y$05$abcdefghijklmnopqrstuuWG29KuyeAicPCJODk1zjyGvyQUU2awu"),
    ];

    #[test]
    fn hashes_of_other_programs() {
        for (password, hash) in HASHES {
            assert!(is_supported(hash), "{hash}");
            assert!(verify(password.as_bytes(), hash), "{hash}");
            for other in ["", "x", "password ", "pässwort"] {
                assert_eq!(verify(other.as_bytes(), hash), other == password, "{other} {hash}");
            }
            let cut = &hash[..hash.len() - 1];
            assert!(!verify(password.as_bytes(), cut), "{cut}");
        }
    }

    #[test]
    fn hashes_of_other_kinds_admit_nobody() {
        for hash in [
            "",
            "secret",
            "{PLAIN}secret",
            "rl.3StKT.4T8M",
            "$apr1$",
            "$1$x",
            "$5$",
            "$6$a",
            "$2y$10$x",
            "{SHA}",
            // Minutes for each request.
            "$2y$31$L6Bc/AlTQHyd9liGgGEZyOFLPHNgyxeEPfgYfBCVxJ7JIlwxyVU3u",
            "$6$rounds=999999999$salt$x",
        ] {
            for password in ["", "secret"] {
                assert!(!verify(password.as_bytes(), hash), "{hash}");
            }
        }
    }
}
