//! Decides which Service port owns an address that several Service ports request. The oldest
//! Service owns it. When it releases the address, the next oldest takes over.

use std::collections::HashMap;

use lb_model::{ObjectName, Protocol};

use super::desired::FrontendAddress;

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
    pub created: CreationTime,
    pub service: ObjectName,
    /// Index of the port in the Service.
    pub port: u16,
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
