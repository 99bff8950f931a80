//! Annotations of an Ingress as typed values, one file for each family.
//!
//! The names are those of ingress-nginx, with the prefix `nginx.ingress.kubernetes.io/` or
//! `lb.sluice.dev/`.
//!
//! **Invariant:** a family with an invalid annotation is not applied at all, and a
//! [`Problem`](lb_model::Problem) names the annotation. If the family restricts access or
//! protects requests, all requests are refused.
//! **Invariant:** no annotation is executed: there are no templates, no scripts, no files.

mod affinity;
mod auth;
mod body;
mod canary;
mod cors;
mod errors;
mod headers;
mod host;
mod limits;
mod reader;
mod redirect;
mod responses;
mod result;
mod rewrite;
mod sources;
mod support;
mod timeouts;
mod upstream;

use lb_model::Problems;

pub use canary::CanaryRule;
pub use errors::ErrorRule;
pub use host::HostRules;
pub(crate) use reader::field;
pub use result::Annotations;

use self::reader::{Invalid, Reader};

/// Reads the annotations of an Ingress in `namespace`, and adds their problems.
pub fn read(annotations: &[(Box<str>, Box<str>)], namespace: &str, problems: &mut Problems) -> Annotations {
    let mut reader = Reader::new(annotations, namespace, problems);
    let result = families(&mut reader);
    reader.for_each(|name, short, problems| support::report(name, short, &result, problems));
    result
}

fn families(reader: &mut Reader<'_>) -> Annotations {
    let mut result = Annotations::default();
    let policy = &mut result.policy;
    policy.redirect = reader.family(redirect::read).unwrap_or_default();
    match reader.protecting(rewrite::read) {
        Ok((rewrite, use_regex)) => (policy.rewrite, result.use_regex) = (rewrite, use_regex),
        Err(_) => result.invalid_rewrite = true,
    }
    policy.timeouts = reader.family(timeouts::read).unwrap_or_default();
    policy.body = reader.family(body::read).unwrap_or_default();
    policy.responses = reader.family(responses::read).unwrap_or_default();
    policy.cors = reader.family(cors::read).unwrap_or_default();
    policy.affinity = reader.family(affinity::read).unwrap_or_default();
    policy.upstream = or_refuse(reader.protecting(upstream::read_protocol), &mut policy.refused);
    if let Ok((balance, retry)) = reader.family(upstream::read) {
        (policy.upstream.balance, policy.upstream.retry) = (balance, retry);
    }
    match reader.protecting(headers::read) {
        Ok((headers, answer)) => (policy.headers, policy.answer) = (headers, answer),
        // A snippet may refuse requests.
        Err(_) => policy.refused = true,
    }
    policy.sources = or_refuse(reader.protecting(sources::read), &mut policy.refused);
    policy.auth = or_refuse(reader.protecting(auth::read), &mut policy.refused);
    policy.limits = or_refuse(reader.protecting(limits::read), &mut policy.refused);
    policy.rate = or_refuse(reader.protecting(limits::rate), &mut policy.refused);
    result.client_certificates = or_refuse(reader.protecting(host::client_certificates), &mut policy.refused);
    let canary = reader.family(canary::read);
    result.invalid_canary = canary.is_err();
    result.canary = canary.unwrap_or_default();
    result.errors = reader.family(errors::read).unwrap_or_default();
    result.host = reader.family(host::read).unwrap_or_default();
    result
}

/// Returns a family that restricts access or protects requests. If it is invalid, all requests are
/// refused.
fn or_refuse<T: Default>(family: Result<T, Invalid>, refused: &mut bool) -> T {
    *refused |= family.is_err();
    family.unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::reader::list;
    use super::support::{Support, TABLE};
    use super::*;

    #[test]
    fn the_table_has_each_annotation_once_and_matches_the_families() {
        let mut seen = BTreeSet::new();
        let mut of_families = BTreeSet::new();
        for (support, names) in TABLE {
            assert!(names.is_sorted(), "{support:?}");
            for name in *names {
                assert!(seen.insert(*name), "{name} is in the table twice");
                if !matches!(support, Support::WithoutEffect | Support::Missing) {
                    of_families.insert(*name);
                }
            }
        }
        let mut problems = Problems::of("Ingress", lb_model::ObjectName::new("default", "web"));
        let mut reader = Reader::new(&[], "default", &mut problems);
        families(&mut reader);
        assert_eq!(of_families, reader.into_names());
    }

    #[test]
    fn the_documentation_names_what_is_ignored() {
        let page = include_str!("../../../docs/ingress.md");
        let listed = |first: &str| {
            let row = page.lines().find(|line| line.starts_with(first)).unwrap();
            let names = list(row.split('|').nth(2).unwrap()).map(|name| name.trim_matches('`').to_owned());
            names.collect::<BTreeSet<_>>()
        };
        let of = |wanted: fn(Support) -> bool| {
            let rows = TABLE.iter().filter(|(support, _)| wanted(*support)).flat_map(|(_, names)| *names);
            rows.map(|name| (*name).to_owned()).collect::<BTreeSet<_>>()
        };
        assert_eq!(listed("| without effect |"), of(|it| matches!(it, Support::Ignored(..))));
    }
}
