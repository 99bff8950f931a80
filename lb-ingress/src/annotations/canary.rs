//! Canaries: `canary`, `canary-*`.

use super::reader::{Reader, is_token};
use crate::routes::HeaderCondition;

/// The conditions of a canary. Its backends are those of the paths of its Ingress.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CanaryRule {
    pub header: Option<HeaderCondition>,
    pub cookie: Option<Box<str>>,
    pub weight: u32,
    pub weight_total: u32,
}

pub(super) fn read(reader: &mut Reader<'_>) -> Option<CanaryRule> {
    let canary = reader.flag("canary").unwrap_or(false);
    let weight_total = reader.number("canary-weight-total", 1, 1_000_000).unwrap_or(100);
    let weight = reader.number("canary-weight", 0, weight_total).unwrap_or(0);
    let header = header(reader);
    let cookie = reader.text("canary-by-cookie");
    if let Some(cookie) = cookie.filter(|cookie| !is_token(cookie)) {
        reader.bad("canary-by-cookie", format_args!("`{cookie}` is not a name of a cookie"), "correct it");
    }
    canary.then(|| CanaryRule { header, cookie: cookie.map(Into::into), weight, weight_total })
}

fn header(reader: &mut Reader<'_>) -> Option<HeaderCondition> {
    let value = reader.text("canary-by-header-value");
    let pattern = reader.text("canary-by-header-pattern");
    let name = reader.text("canary-by-header")?;
    if !is_token(name) {
        reader.bad("canary-by-header", format_args!("`{name}` is not a name of a header"), "correct it");
    }
    let name: Box<str> = name.to_ascii_lowercase().into();
    // The value comes before the pattern, as in ingress-nginx.
    match (value, pattern) {
        (Some(value), _) => Some(HeaderCondition::Value(name, value.into())),
        (None, Some(pattern)) => {
            let regex = reader.expression("canary-by-header-pattern", pattern)?;
            Some(HeaderCondition::Pattern(name, regex))
        }
        (None, None) => Some(HeaderCondition::AlwaysOrNever(name)),
    }
}
