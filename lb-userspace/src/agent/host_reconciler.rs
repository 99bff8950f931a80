//! Keeps attachments and host maps equal to the [`DesiredHost`].
//!
//! A change that fails is tried again with the next call of [`HostReconciler::converge`]. Each
//! failure is logged once.

use std::collections::BTreeMap;
use std::time::Instant;

use ipnet::IpNet;
use lb_common::layout::device_flags;
use lb_datapath::{Attached, Drift, DriftKind};

use super::desired_host::DesiredHost;
use super::host_tables::{HostEntries, HostTables};
use crate::node::devices::DeviceChoice;
use crate::serve::Pending;

/// The programs of a device are moved to the first place so often. A program of another owner that
/// comes back after that stays there, so that two programs do not alternate for ever.
const MOVES: u32 = 3;

/// The current attachments and the current content of the host maps.
#[derive(Debug, Default)]
pub struct HostReconciler {
    entries: HostEntries,
    attachments: BTreeMap<u32, Attachment>,
    /// How often the programs of a device were moved to the first place, by interface index.
    moved: BTreeMap<u32, u32>,
    /// Changes that failed, by their description.
    failed: BTreeMap<String, Failure>,
}

#[derive(Debug)]
struct Failure {
    since: Instant,
    /// The reason that was logged last.
    reason: String,
}

/// The programs on a device.
#[derive(Debug)]
enum Attachment {
    /// Programs of an earlier agent.
    Adopted,
    /// Programs of this agent.
    Own { choice: DeviceChoice, xdp: bool },
}

impl Attachment {
    /// Returns whether attaching by `desired` would change nothing.
    fn matches(&self, desired: &DeviceChoice) -> bool {
        match self {
            Self::Adopted => false,
            Self::Own { choice, .. } => {
                (&choice.name, choice.hooks, choice.ethernet)
                    == (&desired.name, desired.hooks, desired.ethernet)
            }
        }
    }

    fn has_xdp(&self) -> bool {
        matches!(self, Self::Own { xdp: true, .. })
    }
}

/// A change to be logged.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum HostChange {
    Attached {
        device: String,
        how: String,
        reason: String,
    },
    Detached {
        device: String,
    },
    /// No program can serve the packets of the device.
    Unserved {
        device: String,
        reason: String,
    },
    Failed {
        action: String,
        reason: String,
    },
}

impl HostReconciler {
    /// Starts from the maps and attachments of an earlier agent. `attached` are the interface
    /// indices of devices with attached programs.
    pub fn adopt(entries: HostEntries, attached: impl IntoIterator<Item = u32>) -> Self {
        let attachments = attached.into_iter().map(|ifindex| (ifindex, Attachment::Adopted)).collect();
        Self { entries, attachments, ..Self::default() }
    }

    /// Returns the change that has been failing longest, or `None` if everything is as desired.
    pub fn pending(&self) -> Option<Pending> {
        let (action, failure) = self.failed.iter().min_by_key(|(_, failure)| failure.since)?;
        Some(Pending { since: failure.since, what: format!("{action}: {}", failure.reason) })
    }

    /// Makes every change that is missing, and returns what is to be logged.
    pub fn converge<H: HostTables>(
        &mut self,
        desired: &DesiredHost,
        host: &mut H,
        now: Instant,
    ) -> Vec<HostChange> {
        let failed = std::mem::take(&mut self.failed);
        let mut round = Round { now, failed, failing: BTreeMap::new(), changes: Vec::new() };
        // A program that is attached must find the device and its addresses in the maps.
        self.write_devices(desired, host, &mut round);
        self.write_links(desired, host, &mut round);
        self.write_addresses(desired, host, &mut round);
        self.write_networks(desired, host, &mut round);
        self.write_namespaces(desired, host, &mut round);
        self.detach(desired, host, &mut round);
        self.attach(desired, host, &mut round);
        // Attaching has shown on which devices XDP runs.
        self.write_devices(desired, host, &mut round);
        self.failed = round.failing;
        round.changes
    }

    /// Removes networks and flags of networks that are not desired. The programs drop packets to
    /// addresses of ServiceCIDRs that no Service has, so a ServiceCIDR must go before its Services.
    /// The next [`HostReconciler::converge`] repeats what fails.
    pub fn release_networks<H: HostTables>(&mut self, desired: &BTreeMap<IpNet, u32>, host: &mut H) {
        let stay = |(network, flags): (&IpNet, &u32)| {
            let flags = flags & desired.get(network)?;
            (flags != 0).then_some((*network, flags))
        };
        let staying: BTreeMap<_, _> = self.entries.networks.iter().filter_map(stay).collect();
        update(&mut self.entries.networks, &staying, |network, flags| {
            host.set_network(*network, flags.copied()).is_ok()
        });
    }

    /// Compares attachments and host maps with the kernel's. The next [`HostReconciler::converge`]
    /// repairs what differs.
    pub fn compare<H: HostTables>(&mut self, host: &H) -> Result<Comparison, H::Error> {
        let mut comparison = Comparison::default();
        let found = &mut comparison.drift;
        let kernel = host.entries()?;
        differences(&mut self.entries.devices, kernel.devices, found, |ifindex| {
            format!("interface {ifindex}")
        });
        differences(&mut self.entries.links, kernel.links, found, |ifindex| {
            format!("the MAC address of interface {ifindex}")
        });
        differences(&mut self.entries.networks, kernel.networks, found, |network| {
            format!("network {network}")
        });
        differences(&mut self.entries.namespaces, kernel.namespaces, found, |cookie| {
            format!("network namespace {cookie}")
        });
        differences(&mut self.entries.addresses, kernel.addresses, found, |address| {
            format!("node address {address}")
        });
        self.compare_attachments(host, &mut comparison)?;
        Ok(comparison)
    }

    fn compare_attachments<H: HostTables>(
        &mut self,
        host: &H,
        comparison: &mut Comparison,
    ) -> Result<(), H::Error> {
        for (ifindex, attachment) in &mut self.attachments {
            let Attachment::Own { choice, xdp } = attachment else { continue };
            let found = host.check(choice, *xdp)?;
            if found.iter().all(|drift| drift.kind == DriftKind::TcOrder) && !found.is_empty() {
                let moved = self.moved.entry(*ifindex).or_default();
                *moved += 1;
                if *moved > MOVES {
                    if *moved == MOVES + 1 {
                        comparison.left.extend(found.into_iter().map(|drift| drift.found));
                    }
                    continue;
                }
            }
            if !found.is_empty() {
                *attachment = Attachment::Adopted;
                comparison.drift.extend(found);
            }
        }
        Ok(())
    }

    fn write_devices<H: HostTables>(&mut self, desired: &DesiredHost, host: &mut H, round: &mut Round) {
        let mut devices = desired.devices.clone();
        for (ifindex, device) in &mut devices {
            if self.attachments.get(ifindex).is_some_and(Attachment::has_xdp) {
                device.flags |= device_flags::XDP_TARGET;
            }
        }
        update(&mut self.entries.devices, &devices, |ifindex, device| {
            let done = host.set_device(*ifindex, device);
            round.check(|| format!("map entry of interface {ifindex}"), done).is_some()
        });
    }

    fn write_links<H: HostTables>(&mut self, desired: &DesiredHost, host: &mut H, round: &mut Round) {
        update(&mut self.entries.links, &desired.links, |ifindex, link| {
            let done = host.set_link(*ifindex, link);
            round.check(|| format!("map entry of the MAC address of interface {ifindex}"), done).is_some()
        });
    }

    fn write_addresses<H: HostTables>(&mut self, desired: &DesiredHost, host: &mut H, round: &mut Round) {
        update(&mut self.entries.addresses, &desired.addresses, |address, value| {
            let done = host.set_address(*address, value);
            round.check(|| format!("map entry of node address {address}"), done).is_some()
        });
    }

    fn write_networks<H: HostTables>(&mut self, desired: &DesiredHost, host: &mut H, round: &mut Round) {
        let Some(networks) = &desired.networks else { return };
        update(&mut self.entries.networks, networks, |network, flags| {
            let done = host.set_network(*network, flags.copied());
            round.check(|| format!("map entry of network {network}"), done).is_some()
        });
    }

    fn write_namespaces<H: HostTables>(&mut self, desired: &DesiredHost, host: &mut H, round: &mut Round) {
        update(&mut self.entries.namespaces, &desired.namespaces, |cookie, addresses| {
            let done = host.set_namespace(*cookie, addresses);
            round.check(|| format!("map entry of network namespace {cookie}"), done).is_some()
        });
    }

    fn detach<H: HostTables>(&mut self, desired: &DesiredHost, host: &mut H, round: &mut Round) {
        let undesired = |ifindex: &&u32| !desired.attachments.contains_key(ifindex);
        let indices: Vec<u32> = self.attachments.keys().filter(undesired).copied().collect();
        for ifindex in indices {
            let device = match self.attachments.get(&ifindex) {
                Some(Attachment::Own { choice, .. }) => choice.name.clone(),
                _ => format!("interface {ifindex}"),
            };
            if round.check(|| format!("detach from {device}"), host.detach(ifindex)).is_some() {
                self.attachments.remove(&ifindex);
                self.moved.remove(&ifindex);
                round.changes.push(HostChange::Detached { device });
            }
        }
    }

    fn attach<H: HostTables>(&mut self, desired: &DesiredHost, host: &mut H, round: &mut Round) {
        for (ifindex, choice) in &desired.attachments {
            if self.attachments.get(ifindex).is_some_and(|attachment| attachment.matches(choice)) {
                continue;
            }
            let done = host.attach(choice);
            let Some(attached) = round.check(|| format!("attach to {}", choice.name), done) else { continue };
            let (device, reason) = (choice.name.clone(), choice.reason.clone());
            let (xdp, change) = match attached {
                Attached::Programs { xdp, how } => (xdp, HostChange::Attached { device, how, reason }),
                Attached::Nothing { reason } => (false, HostChange::Unserved { device, reason }),
            };
            self.attachments.insert(*ifindex, Attachment::Own { choice: choice.clone(), xdp });
            round.changes.push(change);
        }
    }
}

/// The result of [`HostReconciler::compare`].
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Comparison {
    /// What differs, and will be repaired.
    pub drift: Vec<Drift>,
    /// Programs of others that were put before ours again and again, and stay there.
    pub left: Vec<String>,
}

/// Compares the entries of a map with those that were written to it. Afterwards `written` has the
/// entries of the kernel.
fn differences<K: Ord + Copy, V: PartialEq>(
    written: &mut BTreeMap<K, V>,
    kernel: BTreeMap<K, V>,
    found: &mut Vec<Drift>,
    name: impl Fn(&K) -> String,
) {
    let changed = written.iter().filter_map(|(key, value)| match kernel.get(key) {
        None => Some((key, "is missing")),
        Some(other) if other != value => Some((key, "was changed")),
        Some(_) => None,
    });
    let added = kernel.keys().filter(|key| !written.contains_key(key)).map(|key| (key, "was added"));
    let differences: Vec<_> = changed
        .chain(added)
        .map(|(key, how)| Drift::new(DriftKind::MapEntry, format!("the map entry of {} {how}", name(key))))
        .collect();
    found.extend(differences);
    *written = kernel;
}

/// One call of [`HostReconciler::converge`].
struct Round {
    now: Instant,
    /// The failures of the previous round.
    failed: BTreeMap<String, Failure>,
    /// The failures of this round.
    failing: BTreeMap<String, Failure>,
    changes: Vec<HostChange>,
}

impl Round {
    /// Returns the value of `result`, or records the failure of `action` and returns `None`.
    fn check<T, E: std::error::Error>(
        &mut self,
        action: impl FnOnce() -> String,
        result: Result<T, E>,
    ) -> Option<T> {
        let error = match result {
            Ok(value) => return Some(value),
            Err(error) => error,
        };
        let (action, reason) = (action(), with_causes(&error));
        let before = self.failed.get(&action);
        if before.is_none_or(|before| before.reason != reason) {
            self.changes.push(HostChange::Failed { action: action.clone(), reason: reason.clone() });
        }
        let since = before.map_or(self.now, |before| before.since);
        self.failing.insert(action, Failure { since, reason });
        None
    }
}

/// Returns the text of an error and of its causes, without repeating a text that contains another.
fn with_causes(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(next) = cause {
        let message = next.to_string();
        if !text.contains(&message) {
            text = format!("{text}: {message}");
        }
        cause = next.source();
    }
    text
}

/// Makes `current` equal to `desired`. `write` writes one entry (`None`: removes it) and returns
/// whether it succeeded. An entry that could not be written stays different.
fn update<K: Ord + Copy, V: Clone + PartialEq>(
    current: &mut BTreeMap<K, V>,
    desired: &BTreeMap<K, V>,
    mut write: impl FnMut(&K, Option<&V>) -> bool,
) {
    // Remove before adding: removal frees map entries that the additions may need.
    current.retain(|key, _| desired.contains_key(key) || !write(key, None));
    for (key, value) in desired {
        if current.get(key) != Some(value) && write(key, Some(value)) {
            current.insert(*key, value.clone());
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io;
    use std::net::IpAddr;
    use std::sync::Arc;
    use std::time::Duration;

    use lb_common::layout::{Device, KnownAddress, LinkAddress, NamespaceAddrs};

    use super::*;
    use crate::node::devices::{Behind, Hooks};
    use crate::node::namespaces::follow::NamespaceAddresses;

    /// Records every call. Calls whose text contains `fail` fail.
    #[derive(Default)]
    struct Host {
        calls: Vec<String>,
        fail: Option<&'static str>,
        /// The kernel refuses the tc programs.
        refused: bool,
        /// What the kernel has.
        entries: HostEntries,
        /// What is wrong with the programs of the devices.
        drift: Vec<Drift>,
    }

    impl Host {
        fn call(&mut self, call: String) -> io::Result<()> {
            match self.fail {
                Some(fail) if call.contains(fail) => Err(io::Error::other("injected")),
                _ => {
                    self.calls.push(call);
                    Ok(())
                }
            }
        }

        fn take_calls(&mut self) -> Vec<String> {
            std::mem::take(&mut self.calls)
        }
    }

    impl HostTables for Host {
        type Error = io::Error;

        fn attach(&mut self, choice: &DeviceChoice) -> io::Result<Attached> {
            self.call(format!("attach {} {}", choice.index, choice.hooks))?;
            let xdp = choice.hooks == Hooks::XdpAndTc;
            if self.refused {
                return Ok(Attached::Nothing { reason: "refused".to_owned() });
            }
            Ok(Attached::Programs { xdp, how: choice.hooks.to_string() })
        }
        fn check(&self, _: &DeviceChoice, _: bool) -> io::Result<Vec<Drift>> {
            Ok(self.drift.clone())
        }
        fn entries(&self) -> io::Result<HostEntries> {
            Ok(self.entries.clone())
        }
        fn detach(&mut self, ifindex: u32) -> io::Result<()> {
            self.call(format!("detach {ifindex}"))
        }
        fn set_device(&mut self, ifindex: u32, device: Option<&Device>) -> io::Result<()> {
            let Some(device) = device else { return self.call(format!("remove device {ifindex}")) };
            let xdp = if device.flags & device_flags::XDP_TARGET == 0 { "" } else { " XDP" };
            self.call(format!("put device {ifindex} {}{xdp}", IpAddr::from(device.addr_v4)))
        }
        fn set_link(&mut self, ifindex: u32, link: Option<&LinkAddress>) -> io::Result<()> {
            self.call(match link {
                Some(link) => format!("put link {ifindex} {:02x?}", link.addr),
                None => format!("remove link {ifindex}"),
            })
        }
        fn set_address(&mut self, address: IpAddr, value: Option<&KnownAddress>) -> io::Result<()> {
            self.call(match value {
                Some(value) => format!("put address {address} flags {}", value.flags),
                None => format!("remove address {address}"),
            })
        }
        fn set_namespace(&mut self, cookie: u64, addresses: Option<&NamespaceAddrs>) -> io::Result<()> {
            self.call(match addresses {
                Some(addresses) => format!("put namespace {cookie} {}", IpAddr::from(addresses.addr_v4)),
                None => format!("remove namespace {cookie}"),
            })
        }
        fn set_network(&mut self, network: IpNet, flags: Option<u32>) -> io::Result<()> {
            self.call(match flags {
                Some(flags) => format!("put network {network} flags {flags}"),
                None => format!("remove network {network}"),
            })
        }
    }

    fn choice(index: u32, name: &str, hooks: Hooks) -> DeviceChoice {
        DeviceChoice {
            index,
            name: name.into(),
            hooks,
            ethernet: true,
            pod: false,
            behind: Behind::OtherNodes,
            reason: "NIC".into(),
        }
    }

    fn device(last: u8) -> Device {
        Device { addr_v4: [192, 0, 2, last], addr_v6: [0; 16], flags: 0 }
    }

    fn namespace(cookie: u64, last: u8) -> (u64, NamespaceAddrs) {
        (cookie, NamespaceAddrs { addr_v4: [10, 244, 0, last], addr_v6: [0; 16] })
    }

    fn desired() -> DesiredHost {
        DesiredHost {
            attachments: BTreeMap::from([(2, choice(2, "eth0", Hooks::Tc))]),
            devices: BTreeMap::from([(2, device(1))]),
            addresses: BTreeMap::from([(
                "192.0.2.1".parse().unwrap(),
                KnownAddress { ifindex: 2, flags: 1 },
            )]),
            ..DesiredHost::default()
        }
    }

    fn now() -> Instant {
        Instant::now()
    }

    const NO_CALLS: [String; 0] = [];

    #[test]
    fn programs_are_attached_after_the_maps_contain_the_device() {
        let (mut host_reconciler, mut host) = (HostReconciler::default(), Host::default());
        let changes = host_reconciler.converge(&desired(), &mut host, now());
        assert_eq!(
            host.take_calls(),
            ["put device 2 192.0.2.1", "put address 192.0.2.1 flags 1", "attach 2 tc"]
        );
        assert_eq!(
            changes,
            [HostChange::Attached { device: "eth0".into(), how: "tc".into(), reason: "NIC".into() }]
        );
        assert_eq!(host_reconciler.converge(&desired(), &mut host, now()), []);
        assert_eq!(host.take_calls(), NO_CALLS);
    }

    #[test]
    fn entries_that_another_program_changed_are_written_again() {
        let (mut host_reconciler, mut host) = (HostReconciler::default(), Host::default());
        let mut desired = desired();
        desired.devices.insert(3, device(3));
        host_reconciler.converge(&desired, &mut host, now());
        host.take_calls();
        host.entries.devices = desired.devices.clone();
        host.entries.addresses = desired.addresses.clone();
        assert_eq!(host_reconciler.compare(&host).unwrap(), Comparison::default());

        host.entries.devices = BTreeMap::from([(2, device(9)), (4, device(4))]);
        let found: Vec<_> = host_reconciler.compare(&host).unwrap().drift;
        let texts: Vec<&str> = found.iter().map(|drift| drift.found.as_str()).collect();
        assert_eq!(
            texts,
            [
                "the map entry of interface 2 was changed",
                "the map entry of interface 3 is missing",
                "the map entry of interface 4 was added"
            ]
        );
        host_reconciler.converge(&desired, &mut host, now());
        assert_eq!(
            host.take_calls(),
            ["remove device 4", "put device 2 192.0.2.1", "put device 3 192.0.2.3"]
        );
    }

    #[test]
    fn programs_are_attached_again_and_moved_only_some_times() {
        let (mut host_reconciler, mut host) = (HostReconciler::default(), Host::default());
        host_reconciler.converge(&desired(), &mut host, now());
        host.entries = HostEntries {
            devices: desired().devices,
            addresses: desired().addresses,
            ..HostEntries::default()
        };
        host.take_calls();
        let round = |host_reconciler: &mut HostReconciler, host: &mut Host, kind| {
            host.drift = vec![Drift::new(kind, "found")];
            let comparison = host_reconciler.compare(host).unwrap();
            host_reconciler.converge(&desired(), host, now());
            (comparison.drift.len(), comparison.left.len(), host.take_calls().len())
        };
        for _ in 0..5 {
            assert_eq!(round(&mut host_reconciler, &mut host, DriftKind::Tc), (1, 0, 1));
        }
        for _ in 0..MOVES {
            assert_eq!(round(&mut host_reconciler, &mut host, DriftKind::TcOrder), (1, 0, 1));
        }
        assert_eq!(round(&mut host_reconciler, &mut host, DriftKind::TcOrder), (0, 1, 0));
        assert_eq!(round(&mut host_reconciler, &mut host, DriftKind::TcOrder), (0, 0, 0));
        assert_eq!(round(&mut host_reconciler, &mut host, DriftKind::Tc), (1, 0, 1));
    }

    #[test]
    fn only_differences_are_written() {
        let (mut host_reconciler, mut host) = (HostReconciler::default(), Host::default());
        host_reconciler.converge(&desired(), &mut host, now());
        host.take_calls();

        let mut changed = desired();
        changed.devices.insert(2, device(9));
        changed.attachments.insert(3, choice(3, "vxlan0", Hooks::Tc));
        host_reconciler.converge(&changed, &mut host, now());
        assert_eq!(host.take_calls(), ["put device 2 192.0.2.9", "attach 3 tc"]);

        changed.attachments.remove(&3);
        changed.addresses.clear();
        let changes = host_reconciler.converge(&changed, &mut host, now());
        assert_eq!(host.take_calls(), ["remove address 192.0.2.1", "detach 3"]);
        assert_eq!(changes, [HostChange::Detached { device: "vxlan0".into() }]);
    }

    #[test]
    fn a_device_becomes_an_xdp_target_after_xdp_is_attached() {
        let (mut host_reconciler, mut host) = (HostReconciler::default(), Host::default());
        let mut xdp = desired();
        xdp.attachments.insert(2, choice(2, "eth0", Hooks::XdpAndTc));
        host_reconciler.converge(&xdp, &mut host, now());
        assert_eq!(
            host.take_calls(),
            [
                "put device 2 192.0.2.1",
                "put address 192.0.2.1 flags 1",
                "attach 2 XDP and tc",
                "put device 2 192.0.2.1 XDP"
            ]
        );
        host_reconciler.converge(&xdp, &mut host, now());
        assert_eq!(host.take_calls(), NO_CALLS);
    }

    #[test]
    fn entries_and_attachments_of_an_earlier_agent_are_adopted_or_removed() {
        let stale = ("198.51.100.1".parse().unwrap(), KnownAddress { ifindex: 9, flags: 1 });
        let left = HostEntries {
            devices: BTreeMap::from([(2, device(1)), (9, device(1))]),
            addresses: desired().addresses.into_iter().chain([stale]).collect(),
            namespaces: BTreeMap::from([namespace(1, 7), namespace(2, 8)]),
            ..HostEntries::default()
        };
        let mut host_reconciler = HostReconciler::adopt(left, [2, 9]);
        let mut host = Host::default();
        let namespaces = Arc::new(NamespaceAddresses::from([namespace(1, 7), namespace(3, 9)]));
        host_reconciler.converge(&DesiredHost { namespaces, ..desired() }, &mut host, now());
        assert_eq!(
            host.take_calls(),
            [
                "remove device 9",
                "remove address 198.51.100.1",
                "remove namespace 2",
                "put namespace 3 10.244.0.9",
                "detach 9",
                "attach 2 tc"
            ]
        );
    }

    fn networks(list: &[(&str, u32)]) -> BTreeMap<IpNet, u32> {
        list.iter().map(|(network, flags)| (network.parse().unwrap(), *flags)).collect()
    }

    #[test]
    fn networks_and_flags_that_go_are_released_and_nothing_is_added() {
        let left = networks(&[("10.96.0.0/12", 2), ("10.244.0.0/16", 3), ("fd00::/56", 1)]);
        let left = HostEntries { networks: left, ..HostEntries::default() };
        let (mut host_reconciler, mut host) = (HostReconciler::adopt(left, []), Host::default());
        let desired = networks(&[("10.244.0.0/16", 5), ("fd00::/56", 1), ("fd00:96::/108", 2)]);
        host_reconciler.release_networks(&desired, &mut host);
        assert_eq!(host.take_calls(), ["remove network 10.96.0.0/12", "put network 10.244.0.0/16 flags 1"]);
        let desired = DesiredHost { networks: Some(desired), ..DesiredHost::default() };
        host_reconciler.converge(&desired, &mut host, now());
        let calls = host.take_calls();
        assert_eq!(calls, ["put network 10.244.0.0/16 flags 5", "put network fd00:96::/108 flags 2"]);
    }

    #[test]
    fn networks_of_an_earlier_agent_stay_until_the_initial_sync() {
        let left = networks(&[("10.96.0.0/12", 2), ("10.244.0.0/16", 1), ("fd00::/56", 1)]);
        let left = HostEntries { networks: left, ..HostEntries::default() };
        let mut host_reconciler = HostReconciler::adopt(left, []);
        let mut host = Host { fail: Some("fd00::/56"), ..Host::default() };
        host_reconciler.converge(&DesiredHost::default(), &mut host, now());
        assert_eq!(host.take_calls(), NO_CALLS);

        let desired = networks(&[("10.96.0.0/12", 2), ("10.244.0.0/16", 3)]);
        let desired = DesiredHost { networks: Some(desired), ..DesiredHost::default() };
        let changes = host_reconciler.converge(&desired, &mut host, now());
        assert_eq!(host.take_calls(), ["put network 10.244.0.0/16 flags 3"]);
        assert!(
            matches!(&*changes, [HostChange::Failed { action, .. }] if action == "map entry of network fd00::/56")
        );

        host.fail = None;
        host_reconciler.converge(&desired, &mut host, now());
        assert_eq!(host.take_calls(), ["remove network fd00::/56"]);
        assert_eq!(host_reconciler.pending(), None);
    }

    #[test]
    fn a_refused_program_is_logged_once_and_not_tried_again() {
        let (mut host_reconciler, mut host) =
            (HostReconciler::default(), Host { refused: true, ..Host::default() });
        let mut xdp = desired();
        xdp.attachments.insert(2, choice(2, "eth0", Hooks::XdpAndTc));
        let changes = host_reconciler.converge(&xdp, &mut host, now());
        assert_eq!(changes, [HostChange::Unserved { device: "eth0".into(), reason: "refused".into() }]);
        // The device does not become an XDP target, and the agent does not become unhealthy.
        assert!(host.take_calls().iter().all(|call| call != "put device 2 192.0.2.1 XDP"));
        assert_eq!(host_reconciler.pending(), None);
        assert_eq!(host_reconciler.converge(&xdp, &mut host, now()), []);
        assert_eq!(host.take_calls(), NO_CALLS);
    }

    #[test]
    fn a_failure_is_logged_once_and_tried_again() {
        let (mut host_reconciler, mut host) =
            (HostReconciler::default(), Host { fail: Some("attach"), ..Host::default() });
        let failed = |changes: &[HostChange]| match changes {
            [HostChange::Failed { action, .. }] => action == "attach to eth0",
            _ => false,
        };
        let start = now();
        assert!(failed(&host_reconciler.converge(&desired(), &mut host, start)));
        assert_eq!(host_reconciler.converge(&desired(), &mut host, start + Duration::from_secs(9)), []);
        let pending = Pending { since: start, what: "attach to eth0: injected".into() };
        assert_eq!(host_reconciler.pending(), Some(pending));

        host.fail = None;
        host.take_calls();
        assert_eq!(host_reconciler.converge(&desired(), &mut host, now()).len(), 1);
        assert_eq!(host.take_calls(), ["attach 2 tc"]);
        assert_eq!(host_reconciler.pending(), None);

        // A failure after a success is logged again.
        host_reconciler.attachments.clear();
        host.fail = Some("attach");
        assert!(failed(&host_reconciler.converge(&desired(), &mut host, now())));
    }
}
