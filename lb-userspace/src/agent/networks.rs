//! Which networks the programs know: those of pods, whose addresses count as inside the cluster, and ServiceCIDRs, where
//! nobody but a Service has an address.

use std::collections::BTreeMap;

use ipnet::IpNet;
use lb_common::layout::network_flags;

/// What `NETWORKS` shall hold. The programs find the longest entry that covers an address and no other: each entry says all
/// that applies to its addresses, also what follows from a wider one.
pub fn network_table(pods: &[IpNet], services: &[IpNet]) -> BTreeMap<IpNet, u32> {
    let all: Vec<(IpNet, u32)> = [(pods, network_flags::PODS), (services, network_flags::SERVICES)]
        .into_iter()
        .flat_map(|(networks, flag)| networks.iter().map(move |network| (network.trunc(), flag)))
        .collect();
    let flags_of = |network: &IpNet| {
        all.iter().filter(|(other, _)| other.contains(network)).fold(0, |flags, (_, flag)| flags | flag)
    };
    all.iter().map(|(network, _)| (*network, flags_of(network))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const PODS: u32 = network_flags::PODS;
    const SERVICES: u32 = network_flags::SERVICES;

    fn table(pods: &[&str], services: &[&str]) -> Vec<(String, u32)> {
        let [pods, services] = [pods, services]
            .map(|texts| texts.iter().map(|text| text.parse().unwrap()).collect::<Vec<IpNet>>());
        network_table(&pods, &services).into_iter().map(|(net, flags)| (net.to_string(), flags)).collect()
    }

    #[test]
    fn each_network_has_its_own_meaning() {
        assert_eq!(
            table(&["10.244.1.7/24", "fd00:10:244:1::/64"], &["10.96.0.0/12", "fd00:10:96::/112"]),
            [
                ("10.96.0.0/12".into(), SERVICES),
                ("10.244.1.0/24".into(), PODS),
                ("fd00:10:96::/112".into(), SERVICES),
                ("fd00:10:244:1::/64".into(), PODS),
            ]
        );
        assert_eq!(table(&[], &[]), []);
    }

    #[test]
    fn a_network_inside_another_has_the_meaning_of_both() {
        let expected = [
            ("10.0.0.0/8".into(), PODS),
            ("10.96.0.0/12".into(), PODS | SERVICES),
            ("10.96.1.0/24".into(), PODS | SERVICES),
        ];
        assert_eq!(table(&["10.0.0.0/8", "10.96.1.0/24"], &["10.96.0.0/12"]), expected);
        let expected = [("10.0.0.0/8".into(), SERVICES), ("10.244.0.0/16".into(), PODS | SERVICES)];
        assert_eq!(table(&["10.244.0.0/16"], &["10.0.0.0/8"]), expected);
        assert_eq!(table(&["10.0.0.0/8"], &["10.0.0.0/8"]), [("10.0.0.0/8".into(), PODS | SERVICES)]);
        assert_eq!(table(&["0.0.0.0/0"], &["::/0"]), [("0.0.0.0/0".into(), PODS), ("::/0".into(), SERVICES)]);
    }
}
