//! Reads the annotations of one Ingress, and collects their problems.

#[cfg(test)]
use std::collections::BTreeSet;
use std::fmt::Display;
use std::time::Duration;

use ipnet::IpNet;
use lb_model::{ObjectName, ProblemKind, Problems};
use regex::bytes::{Regex, RegexBuilder};

use crate::routes::Template;

/// The prefix of ingress-nginx.
pub(super) const NGINX: &str = "nginx.ingress.kubernetes.io/";
/// The same annotations with the prefix of this project. They come first.
pub(super) const OWN: &str = "lb.sluice.dev/";

/// The annotations of one Ingress.
pub(super) struct Reader<'a> {
    annotations: &'a [(Box<str>, Box<str>)],
    pub namespace: &'a str,
    problems: &'a mut Problems,
    /// Names without prefix that a family has read.
    #[cfg(test)]
    read: BTreeSet<&'static str>,
    /// An annotation of the current family is invalid.
    invalid: bool,
    /// The consequence until an annotation of the current family is corrected.
    consequence: &'static str,
}

/// An annotation of the family is invalid: nothing of the family is applied.
pub(super) struct Invalid;

impl<'a> Reader<'a> {
    pub fn new(
        annotations: &'a [(Box<str>, Box<str>)],
        namespace: &'a str,
        problems: &'a mut Problems,
    ) -> Self {
        Self {
            annotations,
            namespace,
            problems,
            #[cfg(test)]
            read: BTreeSet::new(),
            invalid: false,
            consequence: "",
        }
    }

    /// Reads a family: all of its annotations, or none if one of them is invalid.
    pub fn family<T>(&mut self, read: impl FnOnce(&mut Self) -> T) -> Result<T, Invalid> {
        self.read_family(read, "until then, it and its family are not applied")
    }

    /// Reads a family without which all requests are refused if it is invalid.
    pub fn protecting<T>(&mut self, read: impl FnOnce(&mut Self) -> T) -> Result<T, Invalid> {
        self.read_family(read, "until then, all requests of the Ingress are answered with 503")
    }

    fn read_family<T>(
        &mut self,
        read: impl FnOnce(&mut Self) -> T,
        consequence: &'static str,
    ) -> Result<T, Invalid> {
        (self.invalid, self.consequence) = (false, consequence);
        let family = read(self);
        if std::mem::take(&mut self.invalid) { Err(Invalid) } else { Ok(family) }
    }

    /// Returns the value of an annotation without spaces at its ends. An empty value counts as
    /// missing.
    pub fn text(&mut self, name: &'static str) -> Option<&'a str> {
        #[cfg(test)]
        self.read.insert(name);
        let (_, value) = self.find(name)?;
        Some(value.trim()).filter(|value| !value.is_empty())
    }

    fn find(&self, name: &str) -> Option<&'a (Box<str>, Box<str>)> {
        find(self.annotations, name)
    }

    /// Reports that the value of an annotation cannot be used.
    pub fn bad(&mut self, name: &'static str, reason: impl Display, remedy: impl Display) {
        self.problem(ProblemKind::InvalidAnnotation, name, reason, remedy);
    }

    /// Reports a value that ingress-nginx has and this proxy has not.
    pub fn unsupported(&mut self, name: &'static str, reason: impl Display, remedy: impl Display) {
        self.problem(ProblemKind::Unsupported, name, reason, remedy);
    }

    fn problem(&mut self, kind: ProblemKind, name: &'static str, reason: impl Display, remedy: impl Display) {
        self.invalid = true;
        let field = self.field(name);
        self.problems.error(kind, field, reason, format_args!("{remedy}; {}", self.consequence));
    }

    /// Reports something that changes nothing.
    pub fn note(&mut self, name: &'static str, reason: impl Display, remedy: impl Display) {
        let field = self.field(name);
        self.problems.note(ProblemKind::Unsupported, field, reason, remedy);
    }

    fn field(&self, name: &str) -> String {
        field(self.annotations, name)
    }

    /// Reads `true` or `false`.
    pub fn flag(&mut self, name: &'static str) -> Option<bool> {
        self.either(name, ["true", "false"])
    }

    /// Reads `on` or `off`.
    pub fn switch(&mut self, name: &'static str) -> Option<bool> {
        self.either(name, ["on", "off"])
    }

    /// Reads one of two words. The first one is `true`.
    pub fn either(&mut self, name: &'static str, [yes, no]: [&str; 2]) -> Option<bool> {
        let text = self.text(name)?;
        if text != yes && text != no {
            self.bad(
                name,
                format_args!("`{text}` is neither {yes} nor {no}"),
                format_args!("use {yes} or {no}"),
            );
            return None;
        }
        Some(text == yes)
    }

    /// Reads a number within a range.
    pub fn number(&mut self, name: &'static str, least: u32, most: u32) -> Option<u32> {
        let text = self.text(name)?;
        let number = text.parse().ok().filter(|number| (least..=most).contains(number));
        if number.is_none() {
            self.bad(name, format_args!("`{text}` is not a number from {least} to {most}"), "correct it");
        }
        number
    }

    /// Reads a time: seconds, or a number with `ms`, `s`, `m`, `h` or `d`.
    pub fn duration(&mut self, name: &'static str) -> Option<Duration> {
        let text = self.text(name)?;
        let duration = parse_duration(text);
        if duration.is_none() {
            self.bad(name, format_args!("`{text}` is not a time"), "use seconds, such as 60, or 60s");
        }
        duration
    }

    /// Reads a size in bytes: a number, perhaps with `k`, `m` or `g`.
    pub fn size(&mut self, name: &'static str) -> Option<u64> {
        let text = self.text(name)?;
        let size = parse_size(text);
        if size.is_none() {
            self.bad(name, format_args!("`{text}` is not a size"), "use bytes, or a number with k, m or g");
        }
        size
    }

    /// Reads networks and addresses, separated by commas.
    pub fn networks(&mut self, name: &'static str) -> Option<Box<[IpNet]>> {
        let text = self.text(name)?;
        let mut networks = Vec::new();
        for part in list(text) {
            match part.parse::<IpNet>().ok().or_else(|| Some(part.parse::<std::net::IpAddr>().ok()?.into())) {
                Some(network) => networks.push(network.trunc()),
                None => self.bad(
                    name,
                    format_args!("`{part}` is neither a network nor an address"),
                    "use the form 192.0.2.0/24",
                ),
            }
        }
        networks.sort_unstable();
        networks.dedup();
        Some(networks.into())
    }

    /// Reads a text with variables.
    pub fn template(&mut self, name: &'static str) -> Option<Template> {
        let text = self.text(name)?;
        self.parse_template(name, text)
    }

    /// As [`Reader::template`], for a part of the annotation.
    pub fn parse_template(&mut self, name: &'static str, text: &str) -> Option<Template> {
        if text.chars().any(char::is_control) {
            self.bad(name, "contains a control character", "remove it");
            return None;
        }
        Template::parse(text).map_err(|unknown| self.bad(name, unknown, "use another variable")).ok()
    }

    /// Reads an absolute URL of HTTP, with variables.
    pub fn url(&mut self, name: &'static str) -> Option<Template> {
        let template = self.template(name)?;
        let text = template.text();
        let after = text.strip_prefix("http://").or_else(|| text.strip_prefix("https://"));
        let after = after.or_else(|| text.strip_prefix("$scheme://"));
        if after.is_none_or(|host| host.is_empty() || host.starts_with('/'))
            || text.contains(char::is_whitespace)
        {
            self.bad(name, format_args!("`{text}` is not an absolute URL"), "use the form https://host/path");
            return None;
        }
        Some(template)
    }

    /// Reads `name` or `namespace/name` of a Secret. Secrets of other namespaces are refused, as
    /// by the defaults of ingress-nginx.
    pub fn secret(&mut self, name: &'static str) -> Option<ObjectName> {
        let text = self.text(name)?;
        let own = self.namespace;
        let (namespace, secret) = text.split_once('/').unwrap_or((own, text));
        if namespace != own {
            self.unsupported(
                name,
                format_args!("the Secret {text} is in another namespace"),
                format_args!("copy it to the namespace {own}"),
            );
            return None;
        }
        Some(ObjectName::new(namespace, secret))
    }

    /// Compiles an expression for single bytes.
    pub fn expression(&mut self, name: &'static str, text: &str) -> Option<Regex> {
        /// The compiled size.
        const MAX_SIZE: usize = 256 << 10;
        let compiled = RegexBuilder::new(text).unicode(false).size_limit(MAX_SIZE).build();
        if compiled.is_err() {
            let remedy = "use an expression without look-around and back references";
            self.bad(name, format_args!("`{text}` does not compile"), remedy);
        }
        compiled.ok()
    }

    /// Reads the names of headers, separated by commas, and returns them in lower case.
    pub fn header_names(&mut self, name: &'static str) -> Option<Box<[Box<str>]>> {
        let text = self.text(name)?;
        for header in list(text) {
            if !is_token(header) {
                self.bad(name, format_args!("`{header}` is not the name of a header"), "correct it");
            }
        }
        Some(list(text).map(|header| header.to_ascii_lowercase().into()).collect())
    }

    /// Calls `report` with the full name and the name without prefix of each annotation. Of two
    /// annotations with the same name without prefix, only the one in effect is reported.
    pub fn for_each(self, report: impl Fn(&str, &str, &mut Problems)) {
        for (name, _) in self.annotations {
            if let Some(short) = name.strip_prefix(NGINX).or_else(|| name.strip_prefix(OWN))
                && self.find(short).is_some_and(|(effective, _)| effective == name)
            {
                report(name, short, self.problems);
            }
        }
    }

    /// Returns the names that have been read.
    #[cfg(test)]
    pub fn into_names(self) -> BTreeSet<&'static str> {
        self.read
    }
}

fn find<'a>(annotations: &'a [(Box<str>, Box<str>)], name: &str) -> Option<&'a (Box<str>, Box<str>)> {
    let with = |prefix: &str| annotations.iter().find(|(found, _)| found.strip_prefix(prefix) == Some(name));
    with(OWN).or_else(|| with(NGINX))
}

/// Returns the field of an annotation, as the Ingress has it. `name` has no prefix.
pub fn field(annotations: &[(Box<str>, Box<str>)], name: &str) -> String {
    let written =
        find(annotations, name).map_or_else(|| format!("{NGINX}{name}"), |(name, _)| name.to_string());
    format!("metadata.annotations[{written}]")
}

/// Returns the parts of a list that is separated by commas.
pub(super) fn list(text: &str) -> impl Iterator<Item = &str> {
    text.split(',').map(str::trim).filter(|part| !part.is_empty())
}

/// Returns whether a text is a token (RFC 9110 5.6.2), such as a name of a header or a method.
pub(super) fn is_token(text: &str) -> bool {
    !text.is_empty()
        && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte))
}

fn parse_duration(text: &str) -> Option<Duration> {
    let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let number: u64 = number.parse().ok()?;
    let seconds = match unit {
        "ms" => return Some(Duration::from_millis(number)),
        "" | "s" => 1,
        "m" => 60,
        "h" => 3600,
        "d" => 86_400,
        _ => return None,
    };
    // A year: more is a mistake, and could overflow.
    let total = number.checked_mul(seconds).filter(|total| *total <= 366 * 86_400)?;
    Some(Duration::from_secs(total))
}

fn parse_size(text: &str) -> Option<u64> {
    let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let shift = match unit {
        "" => 0,
        "k" | "K" => 10,
        "m" | "M" => 20,
        "g" | "G" => 30,
        _ => return None,
    };
    number.parse::<u64>().ok()?.checked_mul(1 << shift)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_and_sizes() {
        let seconds = |number| Some(Duration::from_secs(number));
        for (text, expected) in [
            ("60", seconds(60)),
            ("60s", seconds(60)),
            ("2m", seconds(120)),
            ("1h", seconds(3600)),
            ("250ms", Some(Duration::from_millis(250))),
            ("0", seconds(0)),
            ("", None),
            ("s", None),
            ("-1", None),
            ("1.5", None),
            ("99999999999999999999", None),
            ("9999999999h", None),
        ] {
            assert_eq!(parse_duration(text), expected, "{text}");
        }
        for (text, expected) in [
            ("0", Some(0)),
            ("8k", Some(8192)),
            ("1M", Some(1 << 20)),
            ("2g", Some(2 << 30)),
            ("1t", None),
            ("m", None),
            ("99999999999999999999g", None),
        ] {
            assert_eq!(parse_size(text), expected, "{text}");
        }
    }
}
