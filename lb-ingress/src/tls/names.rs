//! The names in a certificate as texts.

use std::fmt::Write as _;

use rustls::pki_types::CertificateDer;
use x509_parser::asn1_rs::{Any, Tag, ToDer as _};
use x509_parser::prelude::{AttributeTypeAndValue, FromDer as _, X509Certificate, X509Name};

/// Subject and issuer of a certificate, as in `$ssl_client_s_dn` and `$ssl_client_i_dn` of nginx:
/// RFC 2253, with the names of attributes that OpenSSL has. The text is ASCII: other bytes are
/// escaped. The last attribute of the certificate comes first, for example `CN=client,O=Example`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct CertificateNames {
    pub subject: String,
    pub issuer: String,
}

/// Names of attributes by their object identifiers (crypto/objects/objects.txt of OpenSSL).
const ATTRIBUTES: [(&str, &str); 24] = [
    ("2.5.4.3", "CN"),
    ("2.5.4.4", "SN"),
    ("2.5.4.5", "serialNumber"),
    ("2.5.4.6", "C"),
    ("2.5.4.7", "L"),
    ("2.5.4.8", "ST"),
    ("2.5.4.9", "street"),
    ("2.5.4.10", "O"),
    ("2.5.4.11", "OU"),
    ("2.5.4.12", "title"),
    ("2.5.4.13", "description"),
    ("2.5.4.15", "businessCategory"),
    ("2.5.4.17", "postalCode"),
    ("2.5.4.41", "name"),
    ("2.5.4.42", "GN"),
    ("2.5.4.43", "initials"),
    ("2.5.4.44", "generationQualifier"),
    ("2.5.4.45", "x500UniqueIdentifier"),
    ("2.5.4.46", "dnQualifier"),
    ("2.5.4.65", "pseudonym"),
    ("2.5.4.97", "organizationIdentifier"),
    ("0.9.2342.19200300.100.1.1", "UID"),
    ("0.9.2342.19200300.100.1.25", "DC"),
    ("1.2.840.113549.1.9.1", "emailAddress"),
];

impl CertificateNames {
    /// Returns empty names if the certificate cannot be parsed: they match no expression that
    /// requires anything.
    pub fn of(certificate: &CertificateDer<'_>) -> Self {
        match X509Certificate::from_der(certificate) {
            Ok((_, parsed)) => Self { subject: text(parsed.subject()), issuer: text(parsed.issuer()) },
            Err(_) => Self::default(),
        }
    }
}

fn text(name: &X509Name<'_>) -> String {
    let sets: Vec<_> = name.iter_rdn().collect();
    let sets = sets.into_iter().rev().map(|set| {
        let attributes: Vec<_> = set.iter().map(attribute).collect();
        // OpenSSL reverses these, too.
        attributes.into_iter().rev().collect::<Vec<_>>().join("+")
    });
    sets.collect::<Vec<_>>().join(",")
}

fn attribute(attribute: &AttributeTypeAndValue<'_>) -> String {
    let id = attribute.attr_type().to_id_string();
    let known = ATTRIBUTES.iter().find(|(known, _)| *known == id);
    let value = attribute.attr_value();
    match (known, decoded(value)) {
        (Some((_, name)), Some(text)) => format!("{name}={}", escaped(&text)),
        (known, _) => format!("{}={}", known.map_or(id.as_str(), |(_, name)| name), dumped(value)),
    }
}

/// Returns the text of a value, or `None` if it is not a text.
fn decoded(value: &Any<'_>) -> Option<String> {
    let bytes = value.as_bytes();
    match value.header.tag() {
        Tag::Utf8String => String::from_utf8(bytes.to_vec()).ok(),
        // As OpenSSL reads them.
        Tag::PrintableString | Tag::Ia5String | Tag::NumericString | Tag::VisibleString | Tag::T61String => {
            Some(bytes.iter().copied().map(char::from).collect())
        }
        Tag::BmpString if bytes.len().is_multiple_of(2) => {
            let units: Vec<_> =
                bytes.chunks_exact(2).map(|unit| u16::from_be_bytes([unit[0], unit[1]])).collect();
            String::from_utf16(&units).ok()
        }
        Tag::UniversalString if bytes.len().is_multiple_of(4) => {
            let units =
                bytes.chunks_exact(4).map(|unit| u32::from_be_bytes([unit[0], unit[1], unit[2], unit[3]]));
            units.map(char::from_u32).collect()
        }
        _ => None,
    }
}

/// Escapes a text (RFC 2253 2.4), and all bytes that are not visible ASCII.
fn escaped(text: &str) -> String {
    let last = text.len().saturating_sub(1);
    let mut escaped = String::with_capacity(text.len());
    for (at, byte) in text.bytes().enumerate() {
        match byte {
            b',' | b'+' | b'"' | b'\\' | b'<' | b'>' | b';' => escaped.extend(['\\', char::from(byte)]),
            b'#' if at == 0 => escaped.push_str("\\#"),
            b' ' if at == 0 || at == last => escaped.push_str("\\ "),
            b' '..=b'~' => escaped.push(char::from(byte)),
            _ => drop(write!(escaped, "\\{byte:02X}")),
        }
    }
    escaped
}

/// Returns the encoding of a value in hexadecimal digits.
fn dumped(value: &Any<'_>) -> String {
    let mut text = String::from("#");
    for byte in value.to_der_vec().unwrap_or_default() {
        let _ = write!(text, "{byte:02X}");
    }
    text
}

#[cfg(test)]
mod tests {
    use rcgen::{CertificateParams, DistinguishedName, DnType, DnValue, KeyPair};

    use super::*;

    /// The texts are those of `openssl x509 -noout -subject -nameopt RFC2253`.
    #[test]
    fn names_are_those_of_openssl() {
        let value = |text: &str| DnValue::Utf8String(text.to_owned());
        for (attributes, expected) in [
            (vec![], ""),
            (vec![(DnType::CommonName, value("client"))], "CN=client"),
            (
                vec![
                    (DnType::CountryName, DnValue::PrintableString("DE".try_into().unwrap())),
                    (DnType::OrganizationName, value("Example, Inc.")),
                    (DnType::CommonName, value("client")),
                ],
                "CN=client,O=Example\\, Inc.,C=DE",
            ),
            (
                vec![(DnType::CommonName, value(" #a+b\"c\\d<e>f;g=h "))],
                "CN=\\ #a\\+b\\\"c\\\\d\\<e\\>f\\;g=h\\ ",
            ),
            (vec![(DnType::CommonName, value("#1"))], "CN=\\#1"),
            (vec![(DnType::CommonName, value("Zoë\n\0"))], "CN=Zo\\C3\\AB\\0A\\00"),
            (vec![(DnType::CommonName, DnValue::BmpString("Zoë".try_into().unwrap()))], "CN=Zo\\C3\\AB"),
            (vec![(DnType::CustomDnType(vec![1, 2, 3, 4]), value("a"))], "1.2.3.4=#0C0161"),
            (
                vec![(
                    DnType::CustomDnType(vec![1, 2, 840, 113_549, 1, 9, 1]),
                    DnValue::Ia5String("a@b.c".try_into().unwrap()),
                )],
                "emailAddress=a@b.c",
            ),
        ] {
            let mut params = CertificateParams::default();
            params.distinguished_name = DistinguishedName::new();
            for (kind, value) in attributes {
                params.distinguished_name.push(kind, value);
            }
            let certificate = params.self_signed(&KeyPair::generate().unwrap()).unwrap();
            let names = CertificateNames::of(certificate.der());
            assert_eq!((names.subject.as_str(), names.issuer.as_str()), (expected, expected));
        }
        assert_eq!(
            CertificateNames::of(&CertificateDer::from(vec![0x30, 0x82])),
            CertificateNames::default()
        );
    }
}
