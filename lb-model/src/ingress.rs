//! Ingresses and their classes.

use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;

use crate::problem::ManifestLocation;

/// The fields of an Ingress. The lists have the order of the object, so that an index is that of
/// the field.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Ingress {
    /// `metadata.creationTimestamp` in seconds since 1970. `None` if a manifest does not set it.
    /// The older of two Ingresses that claim one host and path gets it.
    pub created: Option<i64>,
    /// Set if the Ingress was read from a manifest folder.
    pub location: Option<Arc<ManifestLocation>>,
    /// `spec.ingressClassName`.
    pub class: Option<Box<str>>,
    /// The annotations that concern Ingress controllers, by name.
    pub annotations: Box<[(Box<str>, Box<str>)]>,
    pub default_backend: Option<IngressBackend>,
    pub rules: Box<[IngressRule]>,
    pub tls: Box<[IngressTls]>,
    /// `status.loadBalancer.ingress`: where clients reach the Ingress, as its controller wrote it.
    pub addresses: Box<[PublishedAddress]>,
}

impl Ingress {
    /// Returns whether both have the same routes. Their addresses may differ.
    pub fn has_routes_of(&self, other: &Self) -> bool {
        let Self { created, location, class, annotations, default_backend, rules, tls, addresses: _ } = self;
        (created, location, class, annotations)
            == (&other.created, &other.location, &other.class, &other.annotations)
            && (default_backend, rules, tls) == (&other.default_backend, &other.rules, &other.tls)
    }
}

/// An address or name by which clients reach a load balancer.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum PublishedAddress {
    Ip(IpAddr),
    HostName(Box<str>),
}

impl From<&str> for PublishedAddress {
    fn from(text: &str) -> Self {
        text.parse().map_or_else(|_| Self::HostName(text.into()), Self::Ip)
    }
}

impl fmt::Display for PublishedAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Ip(ip) => ip.fmt(f),
            Self::HostName(name) => name.fmt(f),
        }
    }
}

/// A rule: the paths of a host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IngressRule {
    /// Empty for a rule that holds for every host.
    pub host: Box<str>,
    pub paths: Box<[IngressPath]>,
}

/// A path of a rule.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IngressPath {
    /// May be empty for [`PathType::ImplementationSpecific`].
    pub path: Box<str>,
    pub path_type: PathType,
    /// `None` if the backend is invalid.
    pub backend: Option<IngressBackend>,
}

/// How a path is compared with that of a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PathType {
    Exact,
    Prefix,
    ImplementationSpecific,
}

/// The backend of a path.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum IngressBackend {
    Service {
        name: Box<str>,
        port: PortRef,
    },
    /// An object of another kind.
    Resource {
        kind: Box<str>,
        name: Box<str>,
    },
}

/// A port of a Service, as an Ingress refers to it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PortRef {
    Number(u16),
    Name(Box<str>),
}

/// The certificate of some hosts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IngressTls {
    /// Empty for the hosts of the rules.
    pub hosts: Box<[Box<str>]>,
    /// Name of the Secret. `None` means the default certificate.
    pub secret: Option<Box<str>>,
}

/// An IngressClass.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct IngressClass {
    /// Set if the class was read from a manifest folder.
    pub location: Option<Arc<ManifestLocation>>,
    /// `spec.controller`.
    pub controller: Box<str>,
    /// The class of Ingresses without a class (annotation
    /// `ingressclass.kubernetes.io/is-default-class`).
    pub default: bool,
}
