//! Converts ServiceCIDRs.

use ipnet::IpNet;
use k8s_openapi::api::networking::v1;
use lb_model::{ObjectName, ProblemKind, Problems};

use super::address::parse_cidr;
use super::converted::Converted;

/// Returns the ranges of a ServiceCIDR (KEP-1880). An address in a range is the ClusterIP of a
/// Service, or unassigned.
pub fn service_cidrs(object: &v1::ServiceCIDR) -> Converted<Box<[IpNet]>> {
    let name = object.metadata.name.as_deref().unwrap_or_default();
    let mut problems = Problems::of("ServiceCIDR", name);
    let mut cidrs = Vec::new();
    let texts = object.spec.iter().flat_map(|spec| spec.cidrs.iter().flatten());
    for (index, text) in texts.enumerate() {
        match parse_cidr(text) {
            Some(cidr) => cidrs.push(cidr),
            None => problems.error(
                ProblemKind::InvalidCidr,
                format_args!("spec.cidrs[{index}]"),
                format_args!("`{text}` is not a CIDR"),
                "correct it; the range is ignored",
            ),
        }
    }
    Converted { name: ObjectName::new("", name), value: Some(cidrs.into()), problems: problems.into_vec() }
}
