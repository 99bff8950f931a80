//! The objects that routes refer to.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use lb_model::{ObjectName, PortRef, Protocol, Secret, Service};

use super::few::Few;
use crate::routes::BackendRef;
use crate::routes::policy::BasicAuthForm;
use crate::tls::has_authorities;
use crate::users::{UsersFault, users_fault};

/// Services and Secrets by name.
#[derive(Debug, Default)]
pub struct Objects {
    pub(super) services: BTreeMap<ObjectName, Arc<Service>>,
    pub(super) secrets: BTreeMap<ObjectName, SecretKeys>,
    /// Secrets that were requested by name and do not exist.
    pub(super) absent: BTreeSet<ObjectName>,
    pub(super) named_secrets: NamedSecrets,
}

/// The Secrets of other types than `kubernetes.io/tls` that the source sends.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum NamedSecrets {
    /// It sends all of them: another one does not exist.
    #[default]
    All,
    /// It sends those that [`Translator::named_secrets`](super::Translator::named_secrets) returns,
    /// and the deletion of those that do not exist.
    OnRequest,
}

/// The keys that a Secret has, and their faults. Its values are not kept here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct SecretKeys {
    pub certificate: bool,
    pub key: bool,
    /// The first fault as an htpasswd file, and as a map of users.
    pub file: Option<UsersFault>,
    pub map: Option<UsersFault>,
    /// It has authorities of client certificates.
    pub authorities: bool,
}

impl SecretKeys {
    pub fn of(secret: &Secret) -> Self {
        Self {
            certificate: secret.get("tls.crt").is_some(),
            key: secret.get("tls.key").is_some(),
            file: users_fault(secret, BasicAuthForm::File),
            map: users_fault(secret, BasicAuthForm::Map),
            authorities: has_authorities(secret),
        }
    }
}

/// The reasons why a backend cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(super) enum NoBackend {
    #[error("the Service {0} does not exist")]
    NoService(ObjectName),
    #[error("the Service {0} has type ExternalName")]
    ExternalName(ObjectName),
    #[error("the Service {service} has no TCP port {port}; it has {ports}")]
    NoPort { service: ObjectName, port: String, ports: String },
}

impl Objects {
    /// Returns whether it is certain that a Secret of an annotation does not exist.
    pub(super) fn is_absent(&self, secret: &ObjectName) -> bool {
        match self.named_secrets {
            NamedSecrets::All => !self.secrets.contains_key(secret),
            NamedSecrets::OnRequest => self.absent.contains(secret),
        }
    }

    /// Returns the port of a Service that an Ingress means. `referenced` gets the Service.
    pub(super) fn backend(
        &self,
        service: ObjectName,
        port: Option<&PortRef>,
        referenced: &mut Few<ObjectName>,
    ) -> Result<BackendRef, NoBackend> {
        referenced.insert(service.clone());
        let Some(found) = self.services.get(&service) else { return Err(NoBackend::NoService(service)) };
        if found.external_name {
            return Err(NoBackend::ExternalName(service));
        }
        let mut tcp = found.ports.iter().filter(|port| port.protocol == Protocol::Tcp);
        let meant = match port {
            Some(PortRef::Number(number)) => tcp.find(|port| port.port == *number),
            Some(PortRef::Name(name)) => tcp.find(|port| port.name == *name),
            None => tcp.next(),
        };
        match meant {
            Some(port) => Ok(BackendRef { service, port: port.name.clone() }),
            None => {
                let port = match port {
                    Some(PortRef::Number(number)) => number.to_string(),
                    Some(PortRef::Name(name)) => format!("`{name}`"),
                    None => "at all".to_owned(),
                };
                let ports: Vec<_> = found.ports.iter().map(|port| port.port.to_string()).collect();
                let ports = if ports.is_empty() { "none".to_owned() } else { ports.join(", ") };
                Err(NoBackend::NoPort { service, port, ports })
            }
        }
    }
}

/// The Service that receives what no route matches: `namespace/name:port`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DefaultBackend {
    pub service: ObjectName,
    /// `None` means the first port.
    pub port: Option<PortRef>,
}

/// The text of a default backend has another form.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a default backend has the form namespace/name or namespace/name:port")]
pub struct BadDefaultBackend;

impl FromStr for DefaultBackend {
    type Err = BadDefaultBackend;

    fn from_str(text: &str) -> Result<Self, BadDefaultBackend> {
        let (namespace, rest) = text.split_once('/').ok_or(BadDefaultBackend)?;
        let (name, port) = rest.split_once(':').map_or((rest, None), |(name, port)| (name, Some(port)));
        if namespace.is_empty() || name.is_empty() || port == Some("") || rest.contains('/') {
            return Err(BadDefaultBackend);
        }
        let port = port.map(|port| port.parse().map_or_else(|_| PortRef::Name(port.into()), PortRef::Number));
        Ok(Self { service: ObjectName::new(namespace, name), port })
    }
}

impl fmt::Display for DefaultBackend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.port {
            None => write!(f, "{}", self.service),
            Some(PortRef::Number(port)) => write!(f, "{}:{port}", self.service),
            Some(PortRef::Name(port)) => write!(f, "{}:{port}", self.service),
        }
    }
}
