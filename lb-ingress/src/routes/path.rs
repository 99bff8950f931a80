//! The one form of a path that is matched and forwarded.

use std::borrow::Cow;
use std::ops::Deref;

/// The path of a request in the one form that is matched and forwarded (RFC 3986 6.2.2):
///
/// * encoded characters that need no encoding are decoded (`%7E`, `%2e`), and no others: `%2F`
///   stays a part of its segment;
/// * characters that a path must not contain are encoded, digits of encodings are upper case;
/// * dot segments are removed.
///
/// Two slashes in a row stay, as RFC 3986 has it: the segment between them is empty.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NormalPath<'a>(Cow<'a, str>);

/// The reasons why a path is refused. The answer is 400.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum PathError {
    #[error("the path does not begin with a slash")]
    NoSlash,
    #[error("the path has a `%` without two hexadecimal digits")]
    BadEncoding,
    #[error("the path contains a control character")]
    Control,
    #[error("the path leads above its root")]
    AboveRoot,
    /// `/..;x/` (servers that remove parameters from segments read `..`) and `/a%2F..%2Fb` (servers
    /// that decode slashes read `..`).
    #[error("the path hides a dot segment")]
    HiddenDots,
}

impl<'a> NormalPath<'a> {
    /// Normalises the path of a request, without its query. Allocates only if the path changes.
    ///
    /// # Errors
    /// Fails for paths that servers read in different ways.
    pub fn new(path: &'a str) -> Result<Self, PathError> {
        if !path.starts_with('/') {
            return Err(PathError::NoSlash);
        }
        let decoded = decode(path)?;
        if decoded.split('/').any(hides_dots) {
            return Err(PathError::HiddenDots);
        }
        if decoded.split('/').any(|segment| matches!(segment, "." | "..")) {
            return remove_dot_segments(&decoded).map(|path| Self(path.into()));
        }
        Ok(Self(decoded))
    }
}

impl Deref for NormalPath<'_> {
    type Target = str;

    fn deref(&self) -> &str {
        &self.0
    }
}

fn is_unreserved(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_' | b'~')
}

/// Returns whether the byte may stand in a path as it is (RFC 3986 3.3: pchar and `/`).
fn is_path_byte(byte: u8) -> bool {
    is_unreserved(byte)
        || matches!(
            byte,
            b'!' | b'$' | b'&' | b'\'' | b'(' | b')' | b'*' | b'+' | b',' | b';' | b'=' | b':' | b'@' | b'/'
        )
}

fn decode(path: &str) -> Result<Cow<'_, str>, PathError> {
    let Some(start) = path.bytes().position(|byte| !is_path_byte(byte)) else { return Ok(path.into()) };
    let mut decoded = String::with_capacity(path.len() + 8);
    decoded.push_str(&path[..start]);
    let mut bytes = path.as_bytes()[start..].iter();
    while let Some(&byte) = bytes.next() {
        let encoded = byte == b'%';
        let byte = if encoded {
            let mut digit =
                || char::from(*bytes.next()?).to_digit(16).and_then(|digit| u8::try_from(digit).ok());
            let (Some(high), Some(low)) = (digit(), digit()) else { return Err(PathError::BadEncoding) };
            high << 4 | low
        } else {
            byte
        };
        if byte < b' ' || byte == 0x7f {
            return Err(PathError::Control);
        }
        if is_unreserved(byte) || (!encoded && is_path_byte(byte)) {
            decoded.push(char::from(byte));
        } else {
            const DIGITS: &[u8; 16] = b"0123456789ABCDEF";
            decoded.push('%');
            decoded.push(char::from(DIGITS[usize::from(byte >> 4)]));
            decoded.push(char::from(DIGITS[usize::from(byte & 15)]));
        }
    }
    Ok(decoded.into())
}

/// Returns whether some servers would read a dot segment in this segment.
fn hides_dots(segment: &str) -> bool {
    if !segment.contains([';', '%']) {
        return false;
    }
    let without_slashes = segment.replace("%2F", "/").replace("%5C", "/").replace("%3B", ";");
    without_slashes.split('/').any(|part| {
        let name = part.split(';').next().unwrap_or_default();
        matches!(name, "." | "..")
    })
}

/// RFC 3986 5.2.4, but a path that leads above its root is an error.
fn remove_dot_segments(path: &str) -> Result<String, PathError> {
    let mut segments: Vec<&str> = Vec::new();
    let mut rest = path[1..].split('/').peekable();
    while let Some(segment) = rest.next() {
        let last = rest.peek().is_none();
        match segment {
            "." => {}
            ".." => drop(segments.pop().ok_or(PathError::AboveRoot)?),
            _ => {
                segments.push(segment);
                continue;
            }
        }
        if last {
            segments.push("");
        }
    }
    Ok(format!("/{}", segments.join("/")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths() {
        use PathError::{AboveRoot, BadEncoding, Control, HiddenDots, NoSlash};
        for (path, expected) in [
            ("/", Ok("/")),
            ("/a/b", Ok("/a/b")),
            ("/a//b/", Ok("/a//b/")),
            ("/a/./b", Ok("/a/b")),
            ("/a/../b", Ok("/b")),
            ("/a/b/..", Ok("/a/")),
            ("/a/.", Ok("/a/")),
            ("/a//../b", Ok("/a/b")),
            ("/a/%2e%2e/b", Ok("/b")),
            ("/a/.%2E/b", Ok("/b")),
            ("/..", Err(AboveRoot)),
            ("/a/../../b", Err(AboveRoot)),
            ("/%2e%2e/b", Err(AboveRoot)),
            ("/a%2fb", Ok("/a%2Fb")),
            ("/a%2Fb", Ok("/a%2Fb")),
            ("/a%5cb", Ok("/a%5Cb")),
            ("/a\\b", Ok("/a%5Cb")),
            ("/a%2f..%2fb", Err(HiddenDots)),
            ("/a/..%2fb", Err(HiddenDots)),
            ("/a/..\\b", Err(HiddenDots)),
            ("/a/..;x/b", Err(HiddenDots)),
            ("/a/..%3bx/b", Err(HiddenDots)),
            ("/a/.;/b", Err(HiddenDots)),
            ("/a;v=1/b..c/...", Ok("/a;v=1/b..c/...")),
            ("/%7Euser/%41", Ok("/~user/A")),
            ("/a%252e", Ok("/a%252e")),
            ("/caf\u{e9}", Ok("/caf%C3%A9")),
            ("/a b\"<>", Ok("/a%20b%22%3C%3E")),
            ("/%", Err(BadEncoding)),
            ("/%4", Err(BadEncoding)),
            ("/%g1", Err(BadEncoding)),
            ("/%00", Err(Control)),
            ("/%0d%0aX", Err(Control)),
            ("/\u{7f}", Err(Control)),
            ("", Err(NoSlash)),
            ("*", Err(NoSlash)),
            ("a/b", Err(NoSlash)),
        ] {
            let normal = NormalPath::new(path);
            assert_eq!(normal.as_deref(), expected.as_ref().copied(), "{path}");
        }
    }

    #[test]
    fn a_normal_path_is_not_copied() {
        assert!(matches!(NormalPath::new("/a/b;c=d"), Ok(NormalPath(Cow::Borrowed(_)))));
    }
}
