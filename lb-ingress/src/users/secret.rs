//! The users of a Secret.

use lb_model::Secret;

use super::password;
use crate::routes::policy::BasicAuthForm;

/// The key with the htpasswd file.
const FILE: &str = "auth";

/// The reasons why the users of a Secret cannot all be admitted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum UsersFault {
    #[error("has no key auth")]
    NoFile,
    #[error("has no user")]
    Empty,
    #[error("has a line that is not `user:hash` with a supported hash: line {0} of the key auth")]
    Line(usize),
    #[error("has a key whose value is no supported hash: number {0} in the order of the alphabet")]
    Key(usize),
}

/// Returns the first fault of the users of a Secret. The users without a fault are admitted.
pub fn users_fault(secret: &Secret, form: BasicAuthForm) -> Option<UsersFault> {
    if form == BasicAuthForm::File && secret.get(FILE).is_none() {
        return Some(UsersFault::NoFile);
    }
    let mut count = 0;
    for (number, user) in users(secret, form) {
        count += 1;
        if user.is_none() {
            return Some(match form {
                BasicAuthForm::File => UsersFault::Line(number),
                BasicAuthForm::Map => UsersFault::Key(number),
            });
        }
    }
    (count == 0).then_some(UsersFault::Empty)
}

/// Returns the hash of a user. For an unknown user it is the hash of another one, so that the
/// time of the answer does not show which users exist: `false`. Returns `None` for a Secret
/// without users.
pub(super) fn hash_of<'s>(secret: &'s Secret, form: BasicAuthForm, user: &str) -> Option<(&'s str, bool)> {
    let mut known = users(secret, form).filter_map(|(_, user)| user).peekable();
    let (_, substitute) = *known.peek()?;
    let found = known.find(|(name, _)| *name == user);
    Some(found.map_or((substitute, false), |(_, hash)| (hash, true)))
}

/// Returns the users with their hashes, each with its number from 1. `None` stands for a line or
/// key that is no user with a supported hash.
fn users(secret: &Secret, form: BasicAuthForm) -> impl Iterator<Item = (usize, Option<(&str, &str)>)> {
    let of_file = secret.get(FILE).filter(|_| form == BasicAuthForm::File).unwrap_or_default();
    let lines = of_file.split(|byte| *byte == b'\n').enumerate().map(|(index, line)| {
        let line = std::str::from_utf8(line).map(str::trim);
        let user = line.ok().and_then(|line| {
            let (user, rest) = line.split_once(':')?;
            // A comment may follow.
            Some((user, rest.split(':').next()?))
        });
        let is_blank = line.is_ok_and(|line| line.is_empty() || line.starts_with('#'));
        (index + 1, is_blank, user)
    });
    let of_map = secret.data.iter().filter(move |_| form == BasicAuthForm::Map);
    let keys = of_map.enumerate().map(|(index, (user, hash))| {
        let hash = std::str::from_utf8(hash).ok().map(str::trim);
        (index + 1, false, hash.map(|hash| (&**user, hash)))
    });
    lines.chain(keys).filter(|(_, is_blank, _)| !is_blank).map(|(number, _, user)| {
        (number, user.filter(|(user, hash)| !user.is_empty() && password::is_supported(hash)))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const HASH: &str = "{SHA}W6ph5Mm5Pz8GgiULbPgzG37mj9g=";

    fn secret(data: &[(&str, &str)]) -> Secret {
        let data = data.iter().map(|(key, value)| ((*key).into(), value.as_bytes().into())).collect();
        Secret { data, ..Secret::default() }
    }

    #[test]
    fn users_of_both_forms() {
        let file = secret(&[("auth", &format!("# staff\r\n\nann:{HASH}:a comment\r\nbob:plain\n"))]);
        assert_eq!(hash_of(&file, BasicAuthForm::File, "ann"), Some((HASH, true)));
        assert_eq!(hash_of(&file, BasicAuthForm::File, "bob"), Some((HASH, false)));
        assert_eq!(users_fault(&file, BasicAuthForm::File), Some(UsersFault::Line(4)));
        let map = secret(&[("ann", &format!("{HASH}\n")), ("bob", "plain")]);
        assert_eq!(hash_of(&map, BasicAuthForm::Map, "ann"), Some((HASH, true)));
        assert_eq!(hash_of(&map, BasicAuthForm::File, "ann"), None);
        assert_eq!(users_fault(&map, BasicAuthForm::Map), Some(UsersFault::Key(2)));
        assert_eq!(users_fault(&map, BasicAuthForm::File), Some(UsersFault::NoFile));
        assert_eq!(users_fault(&secret(&[]), BasicAuthForm::Map), Some(UsersFault::Empty));
        assert_eq!(users_fault(&secret(&[("auth", "")]), BasicAuthForm::File), Some(UsersFault::Empty));
        assert_eq!(users_fault(&secret(&[("ann", HASH)]), BasicAuthForm::Map), None);
    }
}
