//! Keeps what the programs know of this host, and where they are attached, equal to what the kernel says of its
//! devices, addresses and network namespaces.
//!
//! A change that fails stays a difference, so the next round tries it again. Each failure is said once.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Instant;

use ipnet::IpNet;
use lb_common::layout::{Device, KnownAddress, NamespaceAddrs, device_flags};
use lb_datapath::Attached;

use crate::node::devices::{Choice, Programs};
use crate::node::namespaces::follow::Addresses;
use crate::serve::Pending;

/// What the programs shall know, and where they shall be. By interface index and by address.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Wanted {
    /// Devices to attach to.
    pub attachments: BTreeMap<u32, Choice>,
    /// Without [`device_flags::XDP_TARGET`]: whether XDP is there turns out when it is attached.
    pub devices: BTreeMap<u32, Device>,
    pub addresses: BTreeMap<IpAddr, KnownAddress>,
    /// With their flags. `None`: not known yet, so what an earlier agent wrote stays.
    pub networks: Option<BTreeMap<IpNet, u32>>,
    /// By cookie.
    pub namespaces: Arc<Addresses>,
}

impl Wanted {
    pub fn new(
        choices: &[Choice],
        devices: Vec<(u32, Device)>,
        addresses: Vec<(IpAddr, KnownAddress)>,
        networks: Option<BTreeMap<IpNet, u32>>,
        namespaces: Arc<Addresses>,
    ) -> Self {
        let taken = choices.iter().filter(|choice| choice.programs != Programs::None);
        Self {
            attachments: taken.map(|choice| (choice.index, choice.clone())).collect(),
            devices: devices.into_iter().collect(),
            addresses: addresses.into_iter().collect(),
            networks,
            namespaces,
        }
    }
}

/// The data path, as far as it knows the host.
pub trait HostTables {
    type Error: std::error::Error;

    /// Attaches, or replaces what is attached.
    fn attach(&mut self, choice: &Choice) -> Result<Attached, Self::Error>;
    /// Detaching from a device that is gone is not an error.
    fn detach(&mut self, ifindex: u32) -> Result<(), Self::Error>;
    fn put_device(&mut self, ifindex: u32, device: &Device) -> Result<(), Self::Error>;
    fn remove_device(&mut self, ifindex: u32) -> Result<(), Self::Error>;
    fn put_address(&mut self, address: IpAddr, value: &KnownAddress) -> Result<(), Self::Error>;
    fn remove_address(&mut self, address: IpAddr) -> Result<(), Self::Error>;
    fn put_network(&mut self, network: IpNet, flags: u32) -> Result<(), Self::Error>;
    fn remove_network(&mut self, network: IpNet) -> Result<(), Self::Error>;
    fn put_namespace(&mut self, cookie: u64, addresses: &NamespaceAddrs) -> Result<(), Self::Error>;
    fn remove_namespace(&mut self, cookie: u64) -> Result<(), Self::Error>;
}

/// What the data path holds.
#[derive(Debug, Default)]
pub struct Network {
    devices: BTreeMap<u32, Device>,
    addresses: BTreeMap<IpAddr, KnownAddress>,
    networks: BTreeMap<IpNet, u32>,
    namespaces: Addresses,
    attachments: BTreeMap<u32, Attachment>,
    /// What could not be done, by what it is about, with what was said about it.
    failed: BTreeMap<String, Failure>,
}

#[derive(Debug)]
struct Failure {
    since: Instant,
    /// What was last said about it.
    reason: String,
}

/// What is attached to a device.
#[derive(Debug)]
enum Attachment {
    /// By an earlier agent, whose programs are still there.
    Adopted,
    Ours {
        choice: Choice,
        xdp: bool,
    },
}

impl Attachment {
    fn is(&self, wanted: &Choice) -> bool {
        match self {
            Self::Adopted => false,
            Self::Ours { choice, .. } => {
                (&choice.name, choice.programs, choice.ethernet)
                    == (&wanted.name, wanted.programs, wanted.ethernet)
            }
        }
    }

    fn has_xdp(&self) -> bool {
        matches!(self, Self::Ours { xdp: true, .. })
    }
}

/// What happened, for the log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    Attached { device: String, how: String, reason: String },
    Detached { device: String },
    Failed { what: String, reason: String },
}

impl Network {
    /// What an earlier agent left: entries of the maps, and the devices that its programs are attached to.
    pub fn adopt(
        devices: impl IntoIterator<Item = (u32, Device)>,
        addresses: impl IntoIterator<Item = (IpAddr, KnownAddress)>,
        networks: impl IntoIterator<Item = (IpNet, u32)>,
        namespaces: impl IntoIterator<Item = (u64, NamespaceAddrs)>,
        attached: impl IntoIterator<Item = u32>,
    ) -> Self {
        Self {
            devices: devices.into_iter().collect(),
            addresses: addresses.into_iter().collect(),
            networks: networks.into_iter().collect(),
            namespaces: namespaces.into_iter().collect(),
            attachments: attached.into_iter().map(|ifindex| (ifindex, Attachment::Adopted)).collect(),
            failed: BTreeMap::new(),
        }
    }

    /// What has been waiting longest to be done. None: nothing is left to be tried again.
    pub fn pending(&self) -> Option<Pending> {
        let (what, failure) = self.failed.iter().min_by_key(|(_, failure)| failure.since)?;
        Some(Pending { since: failure.since, what: format!("{what}: {}", failure.reason) })
    }

    pub fn converge<H: HostTables>(&mut self, wanted: &Wanted, host: &mut H, now: Instant) -> Vec<Step> {
        let failed = std::mem::take(&mut self.failed);
        let mut round = Round { now, failed, failing: BTreeMap::new(), steps: Vec::new() };
        // The programs must know a device and its addresses before they see packets of it.
        self.write_devices(wanted, host, &mut round);
        update(&mut self.addresses, &wanted.addresses, |address, value| {
            let done = match value {
                Some(value) => host.put_address(*address, value),
                None => host.remove_address(*address),
            };
            round.check(|| format!("map entry of node address {address}"), done).is_some()
        });
        if let Some(networks) = &wanted.networks {
            update(&mut self.networks, networks, |network, flags| {
                let done = match flags {
                    Some(flags) => host.put_network(*network, *flags),
                    None => host.remove_network(*network),
                };
                round.check(|| format!("map entry of network {network}"), done).is_some()
            });
        }
        update(&mut self.namespaces, &wanted.namespaces, |cookie, addresses| {
            let done = match addresses {
                Some(addresses) => host.put_namespace(*cookie, addresses),
                None => host.remove_namespace(*cookie),
            };
            round.check(|| format!("map entry of network namespace {cookie}"), done).is_some()
        });
        self.detach(wanted, host, &mut round);
        self.attach(wanted, host, &mut round);
        // Now it is known where XDP is.
        self.write_devices(wanted, host, &mut round);
        self.failed = round.failing;
        round.steps
    }

    fn write_devices<H: HostTables>(&mut self, wanted: &Wanted, host: &mut H, round: &mut Round) {
        let mut devices = wanted.devices.clone();
        for (ifindex, device) in &mut devices {
            if self.attachments.get(ifindex).is_some_and(Attachment::has_xdp) {
                device.flags |= device_flags::XDP_TARGET;
            }
        }
        update(&mut self.devices, &devices, |ifindex, device| {
            let done = match device {
                Some(device) => host.put_device(*ifindex, device),
                None => host.remove_device(*ifindex),
            };
            round.check(|| format!("map entry of interface {ifindex}"), done).is_some()
        });
    }

    fn detach<H: HostTables>(&mut self, wanted: &Wanted, host: &mut H, round: &mut Round) {
        let unwanted = |ifindex: &&u32| !wanted.attachments.contains_key(ifindex);
        let gone: Vec<u32> = self.attachments.keys().filter(unwanted).copied().collect();
        for ifindex in gone {
            let device = match self.attachments.get(&ifindex) {
                Some(Attachment::Ours { choice, .. }) => choice.name.clone(),
                _ => format!("interface {ifindex}"),
            };
            if round.check(|| format!("detach from {device}"), host.detach(ifindex)).is_some() {
                self.attachments.remove(&ifindex);
                round.steps.push(Step::Detached { device });
            }
        }
    }

    fn attach<H: HostTables>(&mut self, wanted: &Wanted, host: &mut H, round: &mut Round) {
        for (ifindex, choice) in &wanted.attachments {
            if self.attachments.get(ifindex).is_some_and(|attachment| attachment.is(choice)) {
                continue;
            }
            let done = host.attach(choice);
            if let Some(Attached { xdp, how }) = round.check(|| format!("attach to {}", choice.name), done) {
                self.attachments.insert(*ifindex, Attachment::Ours { choice: choice.clone(), xdp });
                let (device, reason) = (choice.name.clone(), choice.reason.clone());
                round.steps.push(Step::Attached { device, how, reason });
            }
        }
    }
}

/// One pass over all differences.
struct Round {
    now: Instant,
    /// What failed in the last round.
    failed: BTreeMap<String, Failure>,
    failing: BTreeMap<String, Failure>,
    steps: Vec<Step>,
}

impl Round {
    fn check<T, E: std::error::Error>(
        &mut self,
        what: impl FnOnce() -> String,
        result: Result<T, E>,
    ) -> Option<T> {
        let error = match result {
            Ok(value) => return Some(value),
            Err(error) => error,
        };
        let (what, mut reason) = (what(), error.to_string());
        let mut cause = error.source();
        while let Some(next) = cause {
            let text = next.to_string();
            if !reason.contains(&text) {
                reason = format!("{reason}: {text}");
            }
            cause = next.source();
        }
        let before = self.failed.get(&what);
        if before.is_none_or(|before| before.reason != reason) {
            self.steps.push(Step::Failed { what: what.clone(), reason: reason.clone() });
        }
        let since = before.map_or(self.now, |before| before.since);
        self.failing.insert(what, Failure { since, reason });
        None
    }
}

/// Makes `held` equal to `wanted`, as far as `write` (with `None`: remove) succeeds.
fn update<K: Ord + Copy, V: Clone + PartialEq>(
    held: &mut BTreeMap<K, V>,
    wanted: &BTreeMap<K, V>,
    mut write: impl FnMut(&K, Option<&V>) -> bool,
) {
    held.retain(|key, _| wanted.contains_key(key) || !write(key, None));
    for (key, value) in wanted {
        if held.get(key) != Some(value) && write(key, Some(value)) {
            held.insert(*key, value.clone());
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io;
    use std::time::Duration;

    use super::*;

    /// Notes every call; fails those that contain a given text.
    #[derive(Default)]
    struct Host {
        calls: Vec<String>,
        fail: Option<&'static str>,
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

        fn attach(&mut self, choice: &Choice) -> io::Result<Attached> {
            self.call(format!("attach {} {}", choice.index, choice.programs))?;
            let xdp = choice.programs == Programs::XdpAndTc;
            Ok(Attached { xdp, how: choice.programs.to_string() })
        }
        fn detach(&mut self, ifindex: u32) -> io::Result<()> {
            self.call(format!("detach {ifindex}"))
        }
        fn put_device(&mut self, ifindex: u32, device: &Device) -> io::Result<()> {
            let xdp = if device.flags & device_flags::XDP_TARGET == 0 { "" } else { " XDP" };
            self.call(format!("put device {ifindex} {}{xdp}", IpAddr::from(device.addr_v4)))
        }
        fn remove_device(&mut self, ifindex: u32) -> io::Result<()> {
            self.call(format!("remove device {ifindex}"))
        }
        fn put_address(&mut self, address: IpAddr, value: &KnownAddress) -> io::Result<()> {
            self.call(format!("put address {address} flags {}", value.flags))
        }
        fn remove_address(&mut self, address: IpAddr) -> io::Result<()> {
            self.call(format!("remove address {address}"))
        }
        fn put_namespace(&mut self, cookie: u64, addresses: &NamespaceAddrs) -> io::Result<()> {
            self.call(format!("put namespace {cookie} {}", IpAddr::from(addresses.addr_v4)))
        }
        fn remove_namespace(&mut self, cookie: u64) -> io::Result<()> {
            self.call(format!("remove namespace {cookie}"))
        }
        fn put_network(&mut self, network: IpNet, flags: u32) -> io::Result<()> {
            self.call(format!("put network {network} flags {flags}"))
        }
        fn remove_network(&mut self, network: IpNet) -> io::Result<()> {
            self.call(format!("remove network {network}"))
        }
    }

    fn choice(index: u32, name: &str, programs: Programs) -> Choice {
        Choice { index, name: name.into(), programs, ethernet: true, pod: false, reason: "NIC".into() }
    }

    fn device(last: u8) -> Device {
        Device { addr_v4: [192, 0, 2, last], addr_v6: [0; 16], flags: 0 }
    }

    fn namespace(cookie: u64, last: u8) -> (u64, NamespaceAddrs) {
        (cookie, NamespaceAddrs { addr_v4: [10, 244, 0, last], addr_v6: [0; 16] })
    }

    fn wanted() -> Wanted {
        let choices = [choice(1, "lo", Programs::None), choice(2, "eth0", Programs::Tc)];
        let address = ("192.0.2.1".parse().unwrap(), KnownAddress { ifindex: 2, flags: 1 });
        Wanted::new(&choices, vec![(2, device(1))], vec![address], None, Arc::default())
    }

    fn now() -> Instant {
        Instant::now()
    }

    const NO_CALLS: [String; 0] = [];

    #[test]
    fn programs_are_attached_when_they_know_the_device() {
        let (mut network, mut host) = (Network::default(), Host::default());
        let steps = network.converge(&wanted(), &mut host, now());
        assert_eq!(
            host.take_calls(),
            ["put device 2 192.0.2.1", "put address 192.0.2.1 flags 1", "attach 2 tc"]
        );
        assert_eq!(steps, [Step::Attached { device: "eth0".into(), how: "tc".into(), reason: "NIC".into() }]);
        assert_eq!(network.converge(&wanted(), &mut host, now()), []);
        assert_eq!(host.take_calls(), NO_CALLS);
    }

    #[test]
    fn only_what_differs_is_written() {
        let (mut network, mut host) = (Network::default(), Host::default());
        network.converge(&wanted(), &mut host, now());
        host.take_calls();

        let mut changed = wanted();
        changed.devices.insert(2, device(9));
        changed.attachments.insert(3, choice(3, "vxlan0", Programs::Tc));
        network.converge(&changed, &mut host, now());
        assert_eq!(host.take_calls(), ["put device 2 192.0.2.9", "attach 3 tc"]);

        changed.attachments.remove(&3);
        changed.addresses.clear();
        let steps = network.converge(&changed, &mut host, now());
        assert_eq!(host.take_calls(), ["remove address 192.0.2.1", "detach 3"]);
        assert_eq!(steps, [Step::Detached { device: "vxlan0".into() }]);
    }

    #[test]
    fn redirects_go_to_a_device_once_xdp_is_on_it() {
        let (mut network, mut host) = (Network::default(), Host::default());
        let mut xdp = wanted();
        xdp.attachments.insert(2, choice(2, "eth0", Programs::XdpAndTc));
        network.converge(&xdp, &mut host, now());
        assert_eq!(
            host.take_calls(),
            [
                "put device 2 192.0.2.1",
                "put address 192.0.2.1 flags 1",
                "attach 2 XDP and tc",
                "put device 2 192.0.2.1 XDP"
            ]
        );
        network.converge(&xdp, &mut host, now());
        assert_eq!(host.take_calls(), NO_CALLS);
    }

    #[test]
    fn what_an_earlier_agent_left_is_taken_over_or_removed() {
        let stale = ("198.51.100.1".parse().unwrap(), KnownAddress { ifindex: 9, flags: 1 });
        let devices = [(2, device(1)), (9, device(1))];
        let addresses = wanted().addresses.into_iter().chain([stale]);
        let mut network = Network::adopt(devices, addresses, [], [namespace(1, 7), namespace(2, 8)], [2, 9]);
        let mut host = Host::default();
        let namespaces = Arc::new(Addresses::from([namespace(1, 7), namespace(3, 9)]));
        network.converge(&Wanted { namespaces, ..wanted() }, &mut host, now());
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

    #[test]
    fn networks_of_an_earlier_agent_stay_until_the_wanted_ones_are_known() {
        let networks = |list: &[(&str, u32)]| -> BTreeMap<IpNet, u32> {
            list.iter().map(|(text, flags)| (text.parse().unwrap(), *flags)).collect()
        };
        let left = networks(&[("10.96.0.0/12", 2), ("10.244.0.0/16", 1), ("fd00::/56", 1)]);
        let mut network = Network::adopt([], [], left, [], []);
        let mut host = Host { fail: Some("fd00::/56"), ..Host::default() };
        network.converge(&Wanted::default(), &mut host, now());
        assert_eq!(host.take_calls(), NO_CALLS);

        let wanted = networks(&[("10.96.0.0/12", 2), ("10.244.0.0/16", 3)]);
        let wanted = Wanted { networks: Some(wanted), ..Wanted::default() };
        let steps = network.converge(&wanted, &mut host, now());
        assert_eq!(host.take_calls(), ["put network 10.244.0.0/16 flags 3"]);
        assert!(matches!(&*steps, [Step::Failed { what, .. }] if what == "map entry of network fd00::/56"));

        host.fail = None;
        network.converge(&wanted, &mut host, now());
        assert_eq!(host.take_calls(), ["remove network fd00::/56"]);
        assert_eq!(network.pending(), None);
    }

    #[test]
    fn a_failure_is_said_once_and_tried_again() {
        let (mut network, mut host) = (Network::default(), Host { fail: Some("attach"), ..Host::default() });
        let failed =
            |steps: &[Step]| matches!(steps, [Step::Failed { what, .. }] if what == "attach to eth0");
        let start = now();
        assert!(failed(&network.converge(&wanted(), &mut host, start)));
        assert_eq!(network.converge(&wanted(), &mut host, start + Duration::from_secs(9)), []);
        let pending = Pending { since: start, what: "attach to eth0: injected".into() };
        assert_eq!(network.pending(), Some(pending));

        host.fail = None;
        host.take_calls();
        assert_eq!(network.converge(&wanted(), &mut host, now()).len(), 1);
        assert_eq!(host.take_calls(), ["attach 2 tc"]);
        assert_eq!(network.pending(), None);

        // Failing again after it had worked is news.
        network.attachments.clear();
        host.fail = Some("attach");
        assert!(failed(&network.converge(&wanted(), &mut host, now())));
    }
}
