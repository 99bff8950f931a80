use ipnet::IpNet;
use k8s_openapi::api::networking::v1;
use lb_model::{ObjectName, ProblemKind};

use super::address::parse_cidr;
use super::problems::{Converted, Problems};

/// The ranges of a ServiceCIDR (KEP-1880): addresses in them belong to Services or to nobody.
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
                "correct it; it is left out",
            ),
        }
    }
    Converted { name: ObjectName::new("", name), value: Some(cidrs.into()), problems: problems.into_vec() }
}
