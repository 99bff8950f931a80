//! The condition of a route for the path.

use std::borrow::Cow;
use std::fmt;

use regex::bytes::{Regex, RegexBuilder};

/// The path of a rule.
#[derive(Debug, Clone)]
pub enum PathMatcher {
    /// The whole path.
    Exact(Box<str>),
    /// The path begins with these segments. A slash at the end is without meaning. Without a slash
    /// at the end, except for the root, which is `/`.
    Prefix(Box<str>),
    /// The path begins with text that the expression matches.
    Regex(PathRegex),
}

/// A regular expression of a path, as ingress-nginx reads it: it matches the beginning of the path,
/// and upper and lower case are the same.
#[derive(Debug, Clone)]
pub struct PathRegex {
    text: Box<str>,
    regex: Regex,
}

/// The expression does not compile, or is too large.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct RegexError(Box<str>);

/// The compiled size of one expression. A table holds thousands.
const MAX_SIZE: usize = 256 << 10;

impl PathMatcher {
    /// Returns the matcher of `pathType: Exact`.
    pub fn exact(path: &str) -> Self {
        Self::Exact(path.into())
    }

    /// Returns the matcher of `pathType: Prefix`.
    pub fn prefix(path: &str) -> Self {
        let path = path.trim_end_matches('/');
        Self::Prefix(if path.is_empty() { "/" } else { path }.into())
    }

    /// Returns the matcher of a path with the annotation `use-regex`.
    ///
    /// # Errors
    /// Fails if the expression is invalid, has look-around or back references (which no
    /// expression with a bounded run time can have), or is too large.
    pub fn regex(text: &str) -> Result<Self, RegexError> {
        // Paths are ASCII: bytes are characters, as in nginx.
        let regex = RegexBuilder::new(&format!("^(?:{text})"))
            .case_insensitive(true)
            .unicode(false)
            .size_limit(MAX_SIZE)
            .build()
            .map_err(|error| RegexError(last_line(&error.to_string()).into()))?;
        Ok(Self::Regex(PathRegex { text: text.into(), regex }))
    }

    /// Returns whether the path of a request matches.
    pub fn matches(&self, path: &str) -> bool {
        match self {
            Self::Exact(exact) => **exact == *path,
            Self::Prefix(prefix) if **prefix == *"/" => true,
            Self::Prefix(prefix) => {
                path.strip_prefix(&**prefix).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
            }
            Self::Regex(regex) => regex.regex.is_match(path.as_bytes()),
        }
    }

    /// Returns the path of the rule.
    pub fn text(&self) -> &str {
        match self {
            Self::Exact(path) | Self::Prefix(path) => path,
            Self::Regex(regex) => &regex.text,
        }
    }

    /// Replaces `$1` to `$9` in the target of a rewrite by the groups of the expression, and
    /// returns the new path. A group that took no part is empty. Paths without an expression have
    /// no groups.
    pub fn rewrite(&self, path: &str, target: &str) -> String {
        let captures = match self {
            Self::Regex(regex) => regex.regex.captures(path.as_bytes()),
            Self::Exact(_) | Self::Prefix(_) => None,
        };
        let group = |digit: char| -> Cow<'_, str> {
            let number = digit.to_digit(10).and_then(|number| usize::try_from(number).ok());
            let found = captures.as_ref().zip(number).and_then(|(captures, number)| captures.get(number));
            found.map_or(Cow::Borrowed(""), |group| String::from_utf8_lossy(group.as_bytes()))
        };
        let mut parts = target.split('$');
        let mut path = parts.next().unwrap_or_default().to_owned();
        for part in parts {
            match part.chars().next() {
                Some(digit @ '1'..='9') => {
                    path.push_str(&group(digit));
                    path.push_str(&part[1..]);
                }
                _ => {
                    path.push('$');
                    path.push_str(part);
                }
            }
        }
        path
    }
}

/// Errors of the crate `regex` draw the expression above the reason.
fn last_line(error: &str) -> &str {
    let line = error.trim_end().lines().last().unwrap_or_default().trim();
    line.strip_prefix("error: ").unwrap_or(line)
}

impl PartialEq for PathMatcher {
    fn eq(&self, other: &Self) -> bool {
        std::mem::discriminant(self) == std::mem::discriminant(other) && self.text() == other.text()
    }
}

impl Eq for PathMatcher {}

impl fmt::Display for PathMatcher {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Exact(path) => write!(f, "Exact {path}"),
            Self::Prefix(path) => write!(f, "Prefix {path}"),
            Self::Regex(regex) => write!(f, "Regex {}", regex.text),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prefixes_match_by_segment() {
        for (prefix, path, expected) in [
            ("/", "/", true),
            ("/", "/a", true),
            ("/foo", "/foo", true),
            ("/foo", "/foo/", true),
            ("/foo/", "/foo", true),
            ("/foo/", "/foo/bar", true),
            ("/foo", "/foobar", false),
            ("/foo", "/Foo", false),
            ("/aaa/bb", "/aaa/bbb", false),
            ("/aaa/bbb", "/aaa/bbb/ccc", true),
        ] {
            assert_eq!(PathMatcher::prefix(prefix).matches(path), expected, "{prefix} {path}");
        }
    }

    #[test]
    fn expressions_match_the_beginning_in_any_case() {
        for (regex, path, expected) in [
            ("/foo", "/FOOBAR", true),
            ("/foo$", "/foobar", false),
            ("/a|/b", "/b/c", true),
            ("/a|/b", "/c/b", false),
            (r"/v\d+/", "/v12/x", true),
            ("/something(/|$)(.*)", "/something", true),
            ("/something(/|$)(.*)", "/somethings", false),
        ] {
            let matcher = PathMatcher::regex(regex).unwrap();
            assert_eq!(matcher.matches(path), expected, "{regex} {path}");
        }
    }

    #[test]
    fn expressions_that_do_not_compile() {
        for (regex, reason) in [
            ("/(a", "unclosed group"),
            ("/a(?=b)", "look-around, including look-ahead and look-behind, is not supported"),
            (r"/(a)\1", "backreferences are not supported"),
        ] {
            assert_eq!(PathMatcher::regex(regex), Err(RegexError(reason.into())), "{regex}");
        }
        assert!(PathMatcher::regex("/(a{1000}){1000}").is_err(), "the compiled size has a limit");
    }

    #[test]
    fn rewrites_with_groups() {
        let matcher = PathMatcher::regex("/something(/|$)(.*)").unwrap();
        assert_eq!(matcher.rewrite("/something/new/x", "/$2"), "/new/x");
        assert_eq!(matcher.rewrite("/something", "/$2"), "/");
        assert_eq!(matcher.rewrite("/something/new", "/a$9$0$/$2b"), "/a$0$/newb");
        assert_eq!(PathMatcher::prefix("/a").rewrite("/a/b", "/x/$1"), "/x/");
    }
}
