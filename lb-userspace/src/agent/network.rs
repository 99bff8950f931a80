//! Keeps what the programs know of this host, and where they are attached, equal to what the kernel says of its
//! devices and addresses.
//!
//! A change that fails stays a difference, so the next round tries it again. Each failure is said once.

use std::collections::BTreeMap;
use std::net::IpAddr;

use lb_common::layout::{Device, NodeAddr};

/// How a device is served.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Hooks {
    /// XDP, and tc for what XDP leaves.
    XdpAndTc,
    Tc,
}

/// A device that packets for this node arrive on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Attachment {
    pub name: String,
    pub hooks: Hooks,
    /// No Ethernet header: programs start at the IP header.
    pub layer3: bool,
    /// Why this device and these hooks, for the log.
    pub reason: String,
}

/// What the programs shall know, and where they shall be. By interface index and by address.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Wanted {
    pub attachments: BTreeMap<u32, Attachment>,
    pub devices: BTreeMap<u32, Device>,
    pub addresses: BTreeMap<IpAddr, NodeAddr>,
}

/// The data path, as far as it knows the host.
pub trait HostTables {
    type Error: std::error::Error;

    /// Attaches, or replaces what is attached. Says what was done: hooks, and what had to be left out.
    fn attach(&mut self, ifindex: u32, attachment: &Attachment) -> Result<String, Self::Error>;
    /// Detaching from a device that is gone is not an error.
    fn detach(&mut self, ifindex: u32) -> Result<(), Self::Error>;
    fn put_device(&mut self, ifindex: u32, device: &Device) -> Result<(), Self::Error>;
    fn remove_device(&mut self, ifindex: u32) -> Result<(), Self::Error>;
    fn put_address(&mut self, address: IpAddr, value: &NodeAddr) -> Result<(), Self::Error>;
    fn remove_address(&mut self, address: IpAddr) -> Result<(), Self::Error>;
}

/// What the data path holds.
#[derive(Debug, Default)]
pub struct Network {
    held: Wanted,
    /// What could not be done, by what it is about, with what was said about it.
    failed: BTreeMap<String, String>,
}

/// What happened, for the log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    Attached { name: String, how: String, reason: String },
    Detached { name: String },
    Failed { what: String, reason: String },
}

impl Network {
    /// `devices` and `addresses`: what an earlier agent left in the maps. What it attached is attached anew.
    pub fn adopt(devices: BTreeMap<u32, Device>, addresses: BTreeMap<IpAddr, NodeAddr>) -> Self {
        Self { held: Wanted { attachments: BTreeMap::new(), devices, addresses }, failed: BTreeMap::new() }
    }

    /// Nothing is left to be tried again.
    pub fn is_settled(&self) -> bool {
        self.failed.is_empty()
    }

    pub fn converge<H: HostTables>(&mut self, wanted: &Wanted, host: &mut H) -> Vec<Step> {
        let mut round =
            Round { failed: std::mem::take(&mut self.failed), failing: BTreeMap::new(), steps: Vec::new() };
        let held = &mut self.held;

        // The programs must know a device and its addresses before they see packets of it.
        update(&mut held.devices, &wanted.devices, |ifindex, device| {
            let done = match device {
                Some(device) => host.put_device(*ifindex, device),
                None => host.remove_device(*ifindex),
            };
            round.check(|| format!("map entry of interface {ifindex}"), done).is_some()
        });
        update(&mut held.addresses, &wanted.addresses, |address, value| {
            let done = match value {
                Some(value) => host.put_address(*address, value),
                None => host.remove_address(*address),
            };
            round.check(|| format!("map entry of node address {address}"), done).is_some()
        });

        let gone: Vec<u32> = held
            .attachments
            .keys()
            .filter(|ifindex| !wanted.attachments.contains_key(ifindex))
            .copied()
            .collect();
        for ifindex in gone {
            let name = held.attachments[&ifindex].name.clone();
            if round.check(|| format!("detach from {name}"), host.detach(ifindex)).is_some() {
                held.attachments.remove(&ifindex);
                round.steps.push(Step::Detached { name });
            }
        }
        for (ifindex, attachment) in &wanted.attachments {
            if held.attachments.get(ifindex).is_some_and(|held| held.same_programs(attachment)) {
                continue;
            }
            let done = host.attach(*ifindex, attachment);
            if let Some(how) = round.check(|| format!("attach to {}", attachment.name), done) {
                held.attachments.insert(*ifindex, attachment.clone());
                let Attachment { name, reason, .. } = attachment.clone();
                round.steps.push(Step::Attached { name, how, reason });
            }
        }
        self.failed = round.failing;
        round.steps
    }
}

impl Attachment {
    fn same_programs(&self, other: &Self) -> bool {
        self.name == other.name && self.hooks == other.hooks && self.layer3 == other.layer3
    }
}

/// One pass over all differences.
struct Round {
    /// What failed in the last round.
    failed: BTreeMap<String, String>,
    failing: BTreeMap<String, String>,
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
        if self.failed.get(&what) != Some(&reason) {
            self.steps.push(Step::Failed { what: what.clone(), reason: reason.clone() });
        }
        self.failing.insert(what, reason);
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

        fn attach(&mut self, ifindex: u32, attachment: &Attachment) -> io::Result<String> {
            self.call(format!("attach {ifindex} {:?}", attachment.hooks)).map(|()| "tc".into())
        }
        fn detach(&mut self, ifindex: u32) -> io::Result<()> {
            self.call(format!("detach {ifindex}"))
        }
        fn put_device(&mut self, ifindex: u32, _: &Device) -> io::Result<()> {
            self.call(format!("put device {ifindex}"))
        }
        fn remove_device(&mut self, ifindex: u32) -> io::Result<()> {
            self.call(format!("remove device {ifindex}"))
        }
        fn put_address(&mut self, address: IpAddr, value: &NodeAddr) -> io::Result<()> {
            self.call(format!("put address {address} flags {}", value.flags))
        }
        fn remove_address(&mut self, address: IpAddr) -> io::Result<()> {
            self.call(format!("remove address {address}"))
        }
    }

    fn attachment(name: &str, hooks: Hooks) -> Attachment {
        Attachment { name: name.into(), hooks, layer3: false, reason: "a NIC".into() }
    }

    fn device(mtu: u32) -> Device {
        Device { addr_v4: [0; 4], addr_v6: [0; 16], mtu, flags: 0 }
    }

    fn wanted() -> Wanted {
        Wanted {
            attachments: BTreeMap::from([(2, attachment("eth0", Hooks::Tc))]),
            devices: BTreeMap::from([(2, device(1500))]),
            addresses: BTreeMap::from([("192.0.2.1".parse().unwrap(), NodeAddr { ifindex: 2, flags: 1 })]),
        }
    }

    #[test]
    fn programs_are_attached_when_they_know_the_device() {
        let (mut network, mut host) = (Network::default(), Host::default());
        let steps = network.converge(&wanted(), &mut host);
        assert_eq!(host.take_calls(), ["put device 2", "put address 192.0.2.1 flags 1", "attach 2 Tc"]);
        assert_eq!(steps, [Step::Attached { name: "eth0".into(), how: "tc".into(), reason: "a NIC".into() }]);
        assert_eq!(network.converge(&wanted(), &mut host), []);
        assert_eq!(host.take_calls(), [] as [String; 0]);
    }

    #[test]
    fn only_what_differs_is_written() {
        let (mut network, mut host) = (Network::default(), Host::default());
        network.converge(&wanted(), &mut host);
        host.take_calls();

        let mut changed = wanted();
        changed.devices.insert(2, device(9000));
        changed.attachments.insert(3, attachment("vxlan0", Hooks::Tc));
        network.converge(&changed, &mut host);
        assert_eq!(host.take_calls(), ["put device 2", "attach 3 Tc"]);

        changed.attachments.insert(2, attachment("eth0", Hooks::XdpAndTc));
        changed.attachments.remove(&3);
        changed.addresses.clear();
        let steps = network.converge(&changed, &mut host);
        assert_eq!(host.take_calls(), ["remove address 192.0.2.1", "detach 3", "attach 2 XdpAndTc"]);
        assert_eq!(steps[0], Step::Detached { name: "vxlan0".into() });
    }

    #[test]
    fn what_an_earlier_agent_left_is_corrected() {
        let stale = "198.51.100.1".parse().unwrap();
        let mut addresses = wanted().addresses;
        addresses.insert(stale, NodeAddr { ifindex: 9, flags: 1 });
        let devices = BTreeMap::from([(2, device(1500)), (9, device(1500))]);
        let mut host = Host::default();
        Network::adopt(devices, addresses).converge(&wanted(), &mut host);
        assert_eq!(host.take_calls(), ["remove device 9", "remove address 198.51.100.1", "attach 2 Tc"]);
    }

    #[test]
    fn a_failure_is_said_once_and_tried_again() {
        let (mut network, mut host) = (Network::default(), Host { fail: Some("attach"), ..Host::default() });
        let failed = Step::Failed { what: "attach to eth0".into(), reason: "injected".into() };
        assert_eq!(network.converge(&wanted(), &mut host), [failed.clone()]);
        assert!(!network.is_settled());
        assert_eq!(network.converge(&wanted(), &mut host), []);

        host.fail = None;
        host.take_calls();
        assert_eq!(network.converge(&wanted(), &mut host).len(), 1);
        assert_eq!(host.take_calls(), ["attach 2 Tc"]);
        assert!(network.is_settled());

        // Failing again after it had worked is news.
        network.held.attachments.clear();
        host.fail = Some("attach");
        assert_eq!(network.converge(&wanted(), &mut host), [failed]);
    }
}
