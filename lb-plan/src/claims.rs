//! Which Service port has an address that several want. The oldest one does, and the next oldest gets it when that goes.

use std::collections::HashMap;

use lb_model::{ObjectName, Protocol};

use super::desired::FrontendAddress;

/// What can belong to one Service port only.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) struct Claim {
    pub address: FrontendAddress,
    pub port: u16,
    pub protocol: Protocol,
}

/// A Service port that wants it. The order is that of precedence.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Claimant {
    pub age: Age,
    pub service: ObjectName,
    /// Index of the port in the Service.
    pub port: u16,
}

/// Seconds since 1970 of the creation; objects of a manifest folder have none and go by their names.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Age {
    Created(i64),
    Unknown,
}

impl From<Option<i64>> for Age {
    fn from(created: Option<i64>) -> Self {
        created.map_or(Self::Unknown, Self::Created)
    }
}

#[derive(Debug, Default)]
pub(super) struct Claims {
    /// Sorted; nearly always of one element.
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
            claimants.retain(|other| other != claimant);
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
