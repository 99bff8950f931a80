//! Weights of Pods.

use std::collections::HashMap;
use std::num::NonZeroU64;

use crate::balancing::{Weight, hash_of};
use crate::name::ObjectName;

/// The annotation with the weight of a Pod, or of all endpoints of an EndpointSlice.
pub const WEIGHT_ANNOTATION: &str = "lb.sluice.dev/weight";

/// A Pod, by hashes of its name and uid: a cluster has hundreds of thousands of endpoints. The
/// hashes are not seeded. They are compared inside one process only.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PodRef {
    name: NonZeroU64,
    /// `None` if the object does not contain it.
    uid: Option<NonZeroU64>,
}

impl PodRef {
    pub fn new(name: &ObjectName, uid: Option<&str>) -> Self {
        Self { name: hash_of(name), uid: uid.filter(|uid| !uid.is_empty()).map(hash_of) }
    }

    /// Returns whether both can be the same Pod. A Pod with the same name and another uid is a
    /// later or an earlier one.
    fn matches(self, other: Self) -> bool {
        self.name == other.name && self.uid.zip(other.uid).is_none_or(|(own, other)| own == other)
    }

    /// Returns the same reference without its uid.
    #[must_use]
    pub fn without_uid(self) -> Self {
        Self { uid: None, ..self }
    }
}

/// The annotation `lb.sluice.dev/weight` of a Pod.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PodWeight {
    pub pod: PodRef,
    pub weight: Weight,
}

/// The Pods that have a weight.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct PodWeights(HashMap<NonZeroU64, PodWeight>);

impl PodWeights {
    /// Sets or removes the weight of the Pod of this name.
    pub fn set(&mut self, name: &ObjectName, weight: Option<PodWeight>) {
        match weight {
            Some(weight) => self.0.insert(hash_of(name), weight),
            None => self.0.remove(&hash_of(name)),
        };
    }

    /// Returns the weight of the Pod of this name.
    pub fn get(&self, name: &ObjectName) -> Option<PodWeight> {
        self.0.get(&hash_of(name)).copied()
    }

    /// Returns the weight of a Pod.
    pub fn of(&self, pod: PodRef) -> Option<Weight> {
        let known = self.0.get(&pod.name)?;
        known.pod.matches(pod).then_some(known.weight)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn another_uid_is_another_pod() {
        let name = ObjectName::new("default", "web-1");
        let other = ObjectName::new("default", "web-2");
        let mut pods = PodWeights::default();
        for (known, found) in [
            (Some("u-1"), [true, false, true]),
            (Some("u-2"), [false, true, true]),
            (None, [true, true, true]),
        ] {
            let pod = PodWeight { pod: PodRef::new(&name, known), weight: Weight::new(3) };
            pods.set(&name, Some(pod));
            assert_eq!(pods.get(&name), Some(pod));
            let uids = [Some("u-1"), Some("u-2"), None];
            assert_eq!(uids.map(|uid| pods.of(PodRef::new(&name, uid)).is_some()), found, "{known:?}");
            assert_eq!(pods.of(PodRef::new(&other, known)), None);
        }
        pods.set(&name, None);
        assert_eq!(pods.of(PodRef::new(&name, None)), None);
    }
}
