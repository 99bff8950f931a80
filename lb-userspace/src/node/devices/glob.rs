//! Patterns of device names, as in a shell: `*` matches any characters, `?` matches one.
//!
//! The crate `globset` is for paths: it would also give `{`, `[` and `\` a meaning, and `lb` would
//! have to refuse some patterns.

/// Returns the first pattern that matches a name.
pub fn first_match<'a>(globs: &'a [String], name: &str) -> Option<&'a String> {
    globs.iter().find(|glob| matches(glob, name))
}

/// Returns whether a pattern matches a whole name.
fn matches(pattern: &str, name: &str) -> bool {
    let mut pattern_chars = pattern.chars();
    match pattern_chars.next() {
        None => name.is_empty(),
        Some('*') => {
            let rest = pattern_chars.as_str();
            name.char_indices().map(|(at, _)| at).chain([name.len()]).any(|at| matches(rest, &name[at..]))
        }
        Some(expected) => {
            let mut name_chars = name.chars();
            name_chars.next().is_some_and(|c| {
                (expected == '?' || c == expected) && matches(pattern_chars.as_str(), name_chars.as_str())
            })
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn globs() {
        for (pattern, name, expected) in [
            ("eth0", "eth0", true),
            ("eth0", "eth01", false),
            ("eth*", "eth", true),
            ("*.7", "bond0.7", true),
            ("e?h*", "eth12", true),
            ("?", "", false),
            ("*", "", true),
            ("**a", "bca", true),
        ] {
            assert_eq!(matches(pattern, name), expected, "{pattern} {name}");
        }
    }
}
