//! `lb doctor`: turns facts about a node into findings, and renders them.
//!
//! [`Facts`] are collected by the command. The functions here are pure: they decide on severity and
//! remedy.

mod datapath;
mod distribution;
mod facts;
mod finding;
mod host;
mod kernel;

pub use distribution::Distribution;
pub use facts::{
    AgentFacts, ApiServer, Checked, DatapathFacts, DevicePrograms, Facts, FileSystem, FirewallPolicy,
    ForwardingFacts, HookNames, HostFacts, KernelFacts, KubeProxyFacts, MapEntries, MapMemoryFacts,
    NamespaceFacts, PortShortageFacts,
};
pub use finding::{DoctorFormat, Finding, FindingSeverity, has_error, render_findings};

/// Returns the findings in the order in which they are printed: kernel, host, data path, cluster.
pub fn findings(facts: &Facts) -> Vec<Finding> {
    let mut findings = kernel::findings(&facts.kernel);
    findings.extend(host::findings(facts));
    findings.extend(datapath::findings(&facts.datapath));
    findings.push(host::api_server(facts));
    findings.extend(host::watches(&facts.datapath.agent.watches));
    findings
}

#[cfg(test)]
mod tests {
    use lb_datapath::apply::MapUsage;

    use super::facts::healthy;
    use super::*;
    use crate::testing::assert_golden;

    fn rendered(facts: &Facts, format: DoctorFormat) -> String {
        render_findings(&findings(facts), format).unwrap()
    }

    #[test]
    fn a_healthy_node_has_no_error() {
        let facts = healthy();
        assert!(!has_error(&findings(&facts)));
        assert_golden("doctor-healthy.txt", &rendered(&facts, DoctorFormat::Table));
    }

    fn usage(map: &'static str, entries: u64, capacity: u32, option: &'static str) -> MapUsage {
        MapUsage { map, entries, capacity, option }
    }

    /// Every check finds a fault.
    fn faulty() -> Facts {
        let mut facts = healthy();
        facts.kernel = KernelFacts {
            release: "5.10.0".into(),
            missing_features: vec!["no tcx (Linux 6.6): tc programs attach as clsact filters"],
            privileges: Ok(()),
            lockdown: Ok("none integrity [confidentiality]\n".into()),
            config: Ok("CONFIG_BPF_SYSCALL=y\n# CONFIG_CGROUP_BPF is not set\nCONFIG_NET_CLS_BPF=m\n".into()),
        };
        facts.host.cgroups = Ok("30 25 0:26 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n\
                                 32 30 0:28 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu\n"
            .into());
        facts.host.bpffs = FileSystem {
            path: "/sys/fs/bpf".into(),
            error: Some(("is not mounted".into(), "mount it".into())),
        };
        facts.host.local_ports = Ok((10_000, 60_999));
        facts.host.forwarding =
            Ok(ForwardingFacts { v4: false, v6: Some(false), strict_rp_filter: vec!["eth0".into()] });
        facts.host.ipsec = Ok(vec!["10.244.2.0/24".parse().unwrap(), "10.244.3.0/24".parse().unwrap()]);
        facts.host.by_kernel = vec!["10.244.3.0/24".parse().unwrap()];
        facts.host.firewall =
            vec![FirewallPolicy { program: "iptables-nft-save".into(), forward: Ok("DROP".into()) }];
        facts.host.kube_proxy = KubeProxyFacts {
            running: Some("process 812".into()),
            leftovers: vec!["table  nftables ip kube-proxy".into()],
            unchecked: vec!["rules of ip6tables were not checked".into()],
        };
        facts.host.distribution = Some(Distribution::K3s);
        facts.host.namespaces.named = Err("/run/netns cannot be read: No such file or directory".into());
        facts.host.namespaces.elsewhere = vec![("/run/docker/netns".into(), 12)];
        facts.datapath.agent = AgentFacts {
            health: Ok((503, "{\"reason\":\"the main loop is stuck\"}".into())),
            written: Ok(vec![("SERVICES_V4".into(), 12), ("SERVICES_V6".into(), 0)]),
            map_memory: Some(MapMemoryFacts { bytes: 271 << 20, most: 128 << 20, growths: 2 }),
            watches: vec![("services".into(), 340), ("nodes".into(), 3)],
        };
        facts.datapath.devices = Ok(vec![
            DevicePrograms {
                name: "eth0".into(),
                xdp: Some("other_xdp".into()),
                ingress: Ok(vec!["cil_from_netdev".into()]),
                egress: Ok(vec!["cil_to_netdev".into(), "lb_tc_egress".into()]),
            },
            DevicePrograms {
                name: "eth1".into(),
                xdp: None,
                ingress: Ok(vec!["lb_tc_ingress".into()]),
                egress: Ok(vec![]),
            },
        ]);
        facts.datapath.pinned_hooks = Ok(vec!["cgroup-connect4".into()]);
        facts.datapath.sockets = Ok(vec![
            HookNames { hook: "cgroup-connect4", programs: vec!["cil_sock4_conne".into()] },
            HookNames { hook: "cgroup-connect6", programs: vec![] },
        ]);
        facts.datapath.maps = Ok(MapEntries {
            usage: vec![
                usage("SERVICES_V4", 16, 16, "max-map-memory"),
                usage("SLOTS", 95, 100, "max-map-memory"),
                usage("FLOWS_V4", 80, 100, "max-flows"),
                usage("BACKENDS_V4", 79, 100, "max-map-memory"),
            ],
            inconsistent: vec!["10.96.0.10:80 refers to backend 7, which does not exist".into()],
            port_shortages: vec![
                PortShortageFacts {
                    service: "default/web:http TCP".into(),
                    endpoint: "10.244.2.2:8080".parse().unwrap(),
                    packets: 12,
                    seconds_ago: 30,
                },
                PortShortageFacts {
                    service: "default/dns UDP".into(),
                    endpoint: "[fd00:10:244:2::2]:53".parse().unwrap(),
                    packets: 1,
                    seconds_ago: 7201,
                },
            ],
        });
        facts.datapath.other_versions = vec!["/sys/fs/bpf/sluice/v3".into()];
        facts.api_server = ApiServer::Unreachable("connection refused".into());
        facts
    }

    #[test]
    fn every_fault_has_evidence_and_a_remedy() {
        let facts = faulty();
        let findings = findings(&facts);
        assert!(has_error(&findings));
        for finding in &findings {
            let is_fault = matches!(finding.severity, FindingSeverity::Warning | FindingSeverity::Error);
            assert!(!is_fault || finding.remedy.is_some(), "{finding:?}");
            assert!(!finding.evidence.is_empty(), "{finding:?}");
        }
        assert_golden("doctor-faults.txt", &rendered(&facts, DoctorFormat::Table));
        assert_golden("doctor-faults.json", &rendered(&facts, DoctorFormat::Json));
    }

    #[test]
    fn namespaces_of_another_container_runtime_are_found() {
        let mut facts = healthy();
        let evidence = |facts: &Facts| {
            let finding = findings(facts).into_iter().find(|finding| finding.check == "network namespaces");
            finding.map(|finding| (finding.severity, finding.evidence, finding.remedy)).unwrap()
        };
        facts.host.namespaces.elsewhere = vec![("/run/docker/netns".into(), 1)];
        let (severity, text, remedy) = evidence(&facts);
        assert_eq!((severity, remedy), (FindingSeverity::Ok, None));
        assert_eq!(text, "4 have a name in /run/netns");
        facts.host.namespaces.named = Ok(0);
        let (severity, text, remedy) = evidence(&facts);
        assert_eq!(severity, FindingSeverity::Warning);
        assert!(text.contains("none has a name in /run/netns; 1 in /run/docker/netns"), "{text}");
        assert!(remedy.unwrap().contains("--netns-dir /run/docker/netns"));
        facts.host.namespaces.elsewhere.clear();
        assert_eq!(evidence(&facts).0, FindingSeverity::Note);
    }

    #[test]
    fn the_remedy_depends_on_the_distribution() {
        let mut facts = healthy();
        facts.host.kube_proxy.running = Some("http://127.0.0.1:10249/proxyMode answers".into());
        facts.api_server = ApiServer::Unreachable("connection refused".into());
        let remedies = |facts: &Facts| {
            let findings = findings(facts);
            let remedy = |check| {
                let finding = findings.iter().find(|finding| finding.check == check);
                finding.and_then(|finding| finding.remedy.clone()).unwrap()
            };
            (remedy("kube-proxy"), remedy("API server"))
        };
        let (kube_proxy, api_server) = remedies(&facts);
        assert!(kube_proxy.contains("remove its DaemonSet") && !api_server.contains("127.0.0.1"));
        facts.host.distribution = Some(Distribution::Talos);
        let (kube_proxy, api_server) = remedies(&facts);
        assert!(kube_proxy.contains("cluster.proxy.disabled"), "{kube_proxy}");
        assert!(api_server.contains("https://127.0.0.1:7445"), "{api_server}");
    }

    #[test]
    fn an_unprivileged_process_reports_what_it_could_not_check() {
        let mut facts = healthy();
        let no = || "this process lacks CAP_BPF".to_owned();
        facts.kernel.privileges = Err(no());
        facts.kernel.lockdown = Err("/sys/kernel/security/lockdown: Permission denied".into());
        facts.host.firewall = vec![FirewallPolicy { program: "iptables-save".into(), forward: Err(no()) }];
        facts.host.kube_proxy.unchecked = vec!["rules  iptables-nft: you must be root".into()];
        facts.datapath.pinned_hooks = Err(no());
        facts.datapath.sockets = Err(no());
        facts.datapath.maps = Err(no());
        for device in facts.datapath.devices.iter_mut().flatten() {
            (device.ingress, device.egress) = (Err(no()), Err(no()));
        }
        assert!(!has_error(&findings(&facts)));
        assert_golden("doctor-unprivileged.txt", &rendered(&facts, DoctorFormat::Table));
    }

    #[test]
    fn a_node_without_sluice_has_no_error() {
        let mut facts = healthy();
        facts.datapath = DatapathFacts {
            bpffs: "/sys/fs/bpf".into(),
            installed: Ok(false),
            agent: AgentFacts {
                health: Err("connection refused".into()),
                written: Err("no agent".into()),
                map_memory: None,
                watches: vec![],
            },
            devices: Ok(vec![]),
            pinned_hooks: Ok(vec![]),
            sockets: Ok(vec![]),
            maps: Err("there are no maps".into()),
            other_versions: vec![],
        };
        assert!(!has_error(&findings(&facts)));
        assert_golden("doctor-no-agent.txt", &rendered(&facts, DoctorFormat::Table));
    }
}
