//! Decides which Service port owns an address that several Service ports request. The kind of the
//! request decides, then the age of the Service. When the owner releases the address, the next one
//! takes over.

use std::collections::HashMap;

use lb_model::{ObjectName, Protocol};

use super::desired::{FrontendAddress, FrontendKind};

/// An address, port and protocol, which at most one Service port can own.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) struct Claim {
    pub address: FrontendAddress,
    pub port: u16,
    pub protocol: Protocol,
}

/// A Service port that requests a claim. The smallest claimant owns it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Claimant {
    pub right: Right,
    pub created: CreationTime,
    pub service: ObjectName,
    /// Index of the port in the Service.
    pub port: u16,
}

/// How a Service port came to its request. Whoever may write a Service can request any external IP
/// (CVE-2020-8554), so such a request takes no address from a Service that the cluster gave it to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Right {
    /// The API server has allocated the address or the port.
    Allocated,
    /// A load balancer controller has written the address into the status.
    Status,
    /// The author of the Service has chosen the address.
    Chosen,
}

impl From<FrontendKind> for Right {
    fn from(kind: FrontendKind) -> Self {
        match kind {
            FrontendKind::ClusterIp | FrontendKind::NodePort => Self::Allocated,
            FrontendKind::LoadBalancer => Self::Status,
            FrontendKind::ExternalIp => Self::Chosen,
        }
    }
}

/// The creation time of a Service. Manifests usually have none: then the names decide.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum CreationTime {
    /// In seconds since 1970.
    At(i64),
    Unknown,
}

impl From<Option<i64>> for CreationTime {
    fn from(created: Option<i64>) -> Self {
        created.map_or(Self::Unknown, Self::At)
    }
}

#[derive(Debug, Default)]
pub(super) struct Claims {
    /// The claimants of each claim, sorted. Nearly all claims have exactly one.
    claimants: HashMap<Claim, Vec<Claimant>>,
}

impl Claims {
    pub fn insert(&mut self, claim: Claim, claimant: Claimant) {
        let claimants = self.claimants.entry(claim).or_insert_with(|| Vec::with_capacity(1));
        if let Err(index) = claimants.binary_search(&claimant) {
            claimants.insert(index, claimant);
        }
    }

    pub fn remove(&mut self, claim: &Claim, claimant: &Claimant) {
        if let Some(claimants) = self.claimants.get_mut(claim) {
            if let Ok(index) = claimants.binary_search(claimant) {
                claimants.remove(index);
            }
            if claimants.is_empty() {
                self.claimants.remove(claim);
            }
        }
    }

    pub fn owner(&self, claim: &Claim) -> Option<&Claimant> {
        self.claimants.get(claim)?.first()
    }

    pub fn claimants(&self, claim: &Claim) -> &[Claimant] {
        self.claimants.get(claim).map_or(&[], Vec::as_slice)
    }
}
