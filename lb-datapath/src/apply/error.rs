//! Errors of the engine.

use std::sync::Arc;

use lb_plan::desired::ServicePortId;

use super::tables::{ServiceAddress, TableError};

/// A failed operation of the engine. The engine tries it again. The caller only has to report the
/// error.
#[derive(Debug, thiserror::Error)]
pub enum ApplyError {
    /// A write failed. After [`TableError::Full`] the Service port is unchanged, and the operation
    /// is tried again when entries were freed. After other errors, each address has either the old
    /// or the new state, and the operation is tried again with the next tick.
    #[error("service port {service}: {source}")]
    Table { service: Arc<ServicePortId>, source: TableError },
    #[error(
        "service port {service}: {address} is not served because {owner} uses it: change one of \
         the two (the service port gets the address as soon as it is free)"
    )]
    Taken { service: Arc<ServicePortId>, address: ServiceAddress, owner: Arc<ServicePortId> },
    #[error(
        "service port {service}: namespace, name and port name can have at most 64 bytes each: \
         shorten them (Kubernetes allows 63)"
    )]
    NameTooLong { service: Arc<ServicePortId> },
}

impl ApplyError {
    /// Returns the Service port of the failed operation.
    pub fn service(&self) -> &ServicePortId {
        match self {
            Self::Table { service, .. } | Self::Taken { service, .. } | Self::NameTooLong { service } => {
                service
            }
        }
    }

    /// Returns whether a map was full.
    pub fn lacks_room(&self) -> bool {
        self.full_map().is_some()
    }

    /// Returns the map that was full, with its capacity.
    pub(super) fn full_map(&self) -> Option<(&'static str, u32)> {
        match self {
            Self::Table { source: TableError::Full { map, capacity, .. }, .. } => Some((map, *capacity)),
            _ => None,
        }
    }

    /// Returns whether the operation can succeed only after entries were freed.
    pub(super) fn needs_room(&self) -> bool {
        match self {
            Self::Table { source: TableError::Full { .. }, .. }
            | Self::Taken { .. }
            | Self::NameTooLong { .. } => true,
            Self::Table { source: TableError::Kernel { .. }, .. } => false,
        }
    }
}
