//! The current problems, and what changed about them.

use std::collections::BTreeMap;

use lb_model::{ObjectName, Problem, ProblemSource};

use crate::routes::HostPattern;

/// The place in which problems were found.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Place {
    /// In one Ingress.
    Ingress(ObjectName),
    /// Between the Ingresses of a host.
    Host(HostPattern),
    /// Between the default backends.
    Default,
    /// In the source of the objects.
    Source(ProblemSource),
}

/// All current problems.
#[derive(Debug, Default)]
pub struct OpenProblems {
    by_place: BTreeMap<Place, Vec<Problem>>,
    raised: Vec<Problem>,
    resolved: Vec<Problem>,
}

impl OpenProblems {
    /// Replaces the problems of a place.
    pub(super) fn set(&mut self, place: Place, problems: Vec<Problem>) {
        let before = match problems.is_empty() {
            true => self.by_place.remove(&place).unwrap_or_default(),
            false => self.by_place.insert(place, problems.clone()).unwrap_or_default(),
        };
        self.resolved.extend(before.iter().filter(|problem| !problems.contains(problem)).cloned());
        self.raised.extend(problems.into_iter().filter(|problem| !before.contains(problem)));
    }

    /// Returns the problems that were raised and resolved since the last call. A problem that was
    /// both does not appear.
    pub(super) fn take_changes(&mut self) -> (Vec<Problem>, Vec<Problem>) {
        let (mut raised, mut resolved) = (Vec::new(), std::mem::take(&mut self.resolved));
        for problem in std::mem::take(&mut self.raised) {
            match resolved.iter().position(|old| *old == problem) {
                Some(index) => drop(resolved.swap_remove(index)),
                None => raised.push(problem),
            }
        }
        (raised, resolved)
    }

    /// Returns all current problems.
    pub fn iter(&self) -> impl Iterator<Item = &Problem> {
        self.by_place.values().flatten()
    }
}
