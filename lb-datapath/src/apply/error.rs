//! Why a service port is not, or not fully, as it is wanted.

use std::sync::Arc;

use lb_plan::desired::ServicePortId;

use super::tables::{ServiceAddress, TableError};

/// The engine remembers what failed and tries again by itself; the caller only reports.
#[derive(Debug, thiserror::Error)]
pub enum ApplyError {
    /// With [`TableError::Full`] the service port is exactly as it was before; it is tried again when something was
    /// freed. After another error it may be between the old and the new state (each address has one of the two, whole);
    /// it is tried again with the next tick.
    #[error("service port {service}: {source}")]
    Table { service: Arc<ServicePortId>, source: TableError },
    #[error(
        "service port {service}: {address} is not served, {owner} holds it: change one of the two (it is taken over as soon as it is free)"
    )]
    Taken { service: Arc<ServicePortId>, address: ServiceAddress, owner: Arc<ServicePortId> },
    #[error(
        "service port {service}: namespace, name and port name can have 64 bytes each: shorten them (Kubernetes allows 63)"
    )]
    NameTooLong { service: Arc<ServicePortId> },
}

impl ApplyError {
    /// The service port that is concerned.
    pub fn service(&self) -> &ServicePortId {
        match self {
            Self::Table { service, .. } | Self::Taken { service, .. } | Self::NameTooLong { service } => {
                service
            }
        }
    }

    /// Only something that is freed can help: trying again before is in vain.
    pub(super) fn needs_room(&self) -> bool {
        match self {
            Self::Table { source: TableError::Full { .. }, .. }
            | Self::Taken { .. }
            | Self::NameTooLong { .. } => true,
            Self::Table { source: TableError::Kernel { .. }, .. } => false,
        }
    }
}
