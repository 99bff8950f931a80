//! Answers in place of the backend's: `custom-http-errors`, `default-backend`.

use super::reader::{Reader, list};

/// The values of `custom-http-errors` and `default-backend`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ErrorRule {
    pub statuses: Box<[u16]>,
    /// Name of a Service in the namespace of the Ingress. Its first port is used.
    pub service: Option<Box<str>>,
}

pub(super) fn read(reader: &mut Reader<'_>) -> ErrorRule {
    const NAME: &str = "custom-http-errors";
    let mut statuses = Vec::new();
    for text in list(reader.text(NAME).unwrap_or_default()) {
        match text.parse::<u16>().ok().filter(|status| (300..=599).contains(status)) {
            Some(status) => statuses.push(status),
            None => reader.bad(NAME, format_args!("`{text}` is not a status"), "use 300 to 599"),
        }
    }
    statuses.sort_unstable();
    statuses.dedup();
    ErrorRule { statuses: statuses.into(), service: reader.text("default-backend").map(Into::into) }
}
