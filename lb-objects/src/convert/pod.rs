//! Converts the metadata of Pods.

use k8s_openapi::api::core::v1::Pod;
use kube::core::PartialObjectMeta;
use lb_model::{PodRef, PodWeight, Problems};

use super::balancing;
use super::converted::{Converted, object_name};

/// Converts a Pod into its weight. Returns no value for a Pod without a weight.
pub fn pod_weight(pod: &PartialObjectMeta<Pod>) -> Converted<PodWeight> {
    let name = object_name(&pod.metadata);
    let mut problems = Problems::of("Pod", &name);
    let otherwise = "the weight of its EndpointSlice or Service applies";
    let weight = balancing::weight(&pod.metadata, otherwise, &mut problems);
    let pod = PodRef::new(&name, pod.metadata.uid.as_deref());
    Converted { value: weight.map(|weight| PodWeight { pod, weight }), name, problems: problems.into_vec() }
}
