//! Properties of normalised paths, checked by a second implementation that works in another way:
//! it keeps each byte with the knowledge whether it was encoded.

use lb_ingress::routes::NormalPath;
use proptest::prelude::*;

/// A byte of a path, and whether it is written as it is or encoded.
type Letter = (u8, bool);

/// Returns the letters of a path, or `None` if an encoding is broken.
fn letters(path: &str) -> Option<Vec<Letter>> {
    let mut letters = Vec::new();
    let mut rest = path.as_bytes();
    while let [first, tail @ ..] = rest {
        rest = tail;
        if *first != b'%' {
            letters.push((*first, false));
            continue;
        }
        let digits = std::str::from_utf8(rest.get(..2)?).ok()?;
        if !digits.bytes().all(|digit| digit.is_ascii_hexdigit()) {
            return None;
        }
        letters.push((u8::from_str_radix(digits, 16).ok()?, true));
        rest = &rest[2..];
    }
    Some(letters)
}

/// RFC 3986 5.2.4, literally, on a path without encodings. Returns `None` if it leads above the
/// root.
fn without_dot_segments(path: &str) -> Option<String> {
    let (mut input, mut output) = (path.to_owned(), String::new());
    while !input.is_empty() {
        if input.starts_with("/./") {
            input.replace_range(..2, "");
        } else if input == "/." {
            input = "/".to_owned();
        } else if input.starts_with("/../") || input == "/.." {
            input.replace_range(.."/..".len(), "");
            if input.is_empty() {
                input = "/".to_owned();
            }
            output.truncate(output.rfind('/')?);
        } else {
            let end = input[1..].find('/').map_or(input.len(), |end| end + 1);
            output.push_str(&input[..end]);
            input.replace_range(..end, "");
        }
    }
    Some(output)
}

fn expected(path: &str) -> Option<String> {
    let letters = letters(path)?;
    if letters.iter().any(|(byte, _)| *byte < 0x20 || *byte == 0x7f) {
        return None;
    }
    let unreserved = |byte: u8| byte.is_ascii_alphanumeric() || b"-._~".contains(&byte);
    let text: String = letters
        .iter()
        .map(|&(byte, encoded)| {
            if unreserved(byte) || (!encoded && b"/!$&'()*+,;=:@".contains(&byte)) {
                char::from(byte).to_string()
            } else {
                format!("%{byte:02X}")
            }
        })
        .collect();
    // A server that decodes everything, takes `\` for `/` and cuts parameters off.
    let of_other_servers: Vec<u8> =
        letters.iter().map(|(byte, _)| if *byte == b'\\' { b'/' } else { *byte }).collect();
    let dots = |text: &[u8]| {
        let names =
            text.split(|byte| *byte == b'/').map(|part| part.split(|byte| *byte == b';').next().unwrap());
        names.filter(|name| [&b"."[..], b".."].contains(name)).count()
    };
    let plain = text.split('/').filter(|segment| [".", ".."].contains(segment)).count();
    if dots(&of_other_servers) != plain {
        return None;
    }
    without_dot_segments(&text)
}

fn paths() -> impl Strategy<Value = String> {
    let part = prop_oneof![
        4 => Just("/".to_owned()),
        3 => Just(".".to_owned()),
        2 => prop::sample::select(vec!["%2e", "%2E", "%2f", "%2F", "%5c", "\\", ";", "%3b", "%25", "%", "%4", "//", "%00"])
            .prop_map(str::to_owned),
        2 => "[a-cA-C0-9~_!@ \"?é]{1,3}",
        1 => any::<u8>().prop_map(|byte| format!("%{byte:02x}")),
    ];
    prop::collection::vec(part, 0..12).prop_map(|parts| format!("/{}", parts.concat()))
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 1024, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn normal_paths_are_those_of_the_second_implementation(path in paths()) {
        let normal = NormalPath::new(&path).ok().map(|normal| normal.to_string());
        prop_assert_eq!(normal, expected(&path));
    }

    #[test]
    fn a_normal_path_is_its_own_normal_path_and_has_no_dot_segments(path in paths()) {
        if let Ok(normal) = NormalPath::new(&path) {
            prop_assert!(normal.starts_with('/') && normal.is_ascii());
            prop_assert!(normal.split('/').all(|segment| ![".", ".."].contains(&segment)));
            let again = NormalPath::new(&normal);
            prop_assert_eq!(again.as_deref(), Ok(&*normal));
            // An encoded slash is neither decoded nor lost, unless its segment was removed.
            let slashes = |path: &str| path.to_ascii_uppercase().matches("%2F").count();
            prop_assert!(slashes(&normal) <= slashes(&path));
        }
    }
}
