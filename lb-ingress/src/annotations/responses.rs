//! The host and the paths of the backend in responses: `proxy-cookie-domain`, `proxy-cookie-path`,
//! `proxy-redirect-*`.

use super::reader::Reader;
use crate::routes::policy::{Replacement, Responses};

const FROM: &str = "proxy-redirect-from";
const TO: &str = "proxy-redirect-to";

pub(super) fn read(reader: &mut Reader<'_>) -> Option<Box<Responses>> {
    let responses = Responses {
        cookie_domain: two_words(reader, "proxy-cookie-domain"),
        cookie_path: two_words(reader, "proxy-cookie-path"),
        redirect: redirect(reader),
    };
    (responses != Responses::default()).then(|| Box::new(responses))
}

/// Reads a text and its replacement, separated by a space.
fn two_words(reader: &mut Reader<'_>, name: &'static str) -> Option<Replacement> {
    let text = reader.text(name)?;
    if text == "off" {
        return None;
    }
    match text.split_whitespace().collect::<Vec<_>>()[..] {
        [from, to] => replacement(reader, (name, from), (name, to)),
        _ => {
            let remedy = "write the text that is replaced, a space, and the new text";
            reader.bad(name, format_args!("`{text}` has not two words"), remedy);
            None
        }
    }
}

/// Without both annotations, nothing is replaced, as in ingress-nginx. `default` has no effect
/// there either: it concerns redirects to the name of the upstream.
fn redirect(reader: &mut Reader<'_>) -> Option<Replacement> {
    let (from, to) = (reader.text(FROM), reader.text(TO));
    let is_text = |text: &&str| !["off", "default"].contains(text);
    replacement(reader, (FROM, from.filter(is_text)?), (TO, to.filter(is_text)?))
}

fn replacement(
    reader: &mut Reader<'_>,
    (from_name, from): (&'static str, &str),
    (to_name, to): (&'static str, &str),
) -> Option<Replacement> {
    if from.starts_with('~') {
        reader.unsupported(from_name, "is an expression", "write the text that is replaced");
        return None;
    }
    Some(Replacement {
        from: reader.parse_template(from_name, from)?,
        to: reader.parse_template(to_name, to)?,
    })
}
