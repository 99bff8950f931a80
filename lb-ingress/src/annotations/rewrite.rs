//! Paths and hosts: `rewrite-target`, `use-regex`, `x-forwarded-prefix`, `upstream-vhost`.

use super::reader::Reader;
use crate::routes::policy::Rewrite;

/// Returns the rewrite, and whether `use-regex` is set.
pub(super) fn read(reader: &mut Reader<'_>) -> (Rewrite, bool) {
    let use_regex = reader.flag("use-regex").unwrap_or(false);
    let target = reader.text("rewrite-target");
    if let Some(target) = target {
        if !target.starts_with('/') || target.contains(char::is_whitespace) {
            reader.bad("rewrite-target", format_args!("`{target}` is not a path"), "begin with a slash");
        }
        if target.contains(['?', '#']) {
            reader.unsupported(
                "rewrite-target",
                "has a query",
                "leave it out; the query of the request is kept",
            );
        }
    }
    let prefix = reader.text("x-forwarded-prefix");
    if prefix.is_some_and(|prefix| prefix.chars().any(char::is_control)) {
        reader.bad("x-forwarded-prefix", "contains a control character", "remove it");
    }
    let rewrite = Rewrite {
        target: target.map(Into::into),
        forwarded_prefix: prefix.map(Into::into),
        host: reader.template("upstream-vhost"),
    };
    (rewrite, use_regex)
}
