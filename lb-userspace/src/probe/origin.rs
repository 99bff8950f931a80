//! Who sends the packet: a process on this node, a pod's process, or somebody whose packets arrive by a device.

use std::collections::HashSet;
use std::convert::Infallible;
use std::net::IpAddr;
use std::str::FromStr;

use lb_common::layout::{KnownAddress, NamespaceAddrs};

use super::packet::{Packet, Protocol};

/// `--in`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum In {
    Pod,
    Node,
    External,
    Device(String),
}

impl FromStr for In {
    type Err = Infallible;

    fn from_str(text: &str) -> Result<Self, Infallible> {
        Ok(match text {
            "pod" => Self::Pod,
            "node" => Self::Node,
            "external" => Self::External,
            device => Self::Device(device.to_owned()),
        })
    }
}

/// A device, as this network namespace knows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Device {
    pub ifindex: u32,
    pub name: String,
    /// The programs are attached to it.
    pub attached: bool,
}

/// Whose calls are translated at the socket (`--socket-hooks`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sockets {
    All,
    /// Those of this node's own processes.
    Node,
    None,
}

/// What is known of this node.
#[derive(Debug, Clone)]
pub struct Facts {
    /// Cookie of the network namespace of the agent.
    pub netns_cookie: u64,
    pub sockets: Sockets,
    pub addresses: Vec<(IpAddr, KnownAddress)>,
    pub namespaces: Vec<(u64, NamespaceAddrs)>,
    /// Addresses of endpoints on this node.
    pub endpoints_here: HashSet<IpAddr>,
    pub devices: Vec<Device>,
    /// Index of the device that leads to the source.
    pub route: Option<u32>,
}

/// How the packet meets the programs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Hook {
    /// It is a call at a socket in the network namespace with this cookie; 0: not known.
    Socket {
        netns_cookie: u64,
    },
    Device {
        ifindex: u32,
    },
}

/// Who sends the packet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Origin {
    /// `pod`, `node`, `external`, or the name of a device.
    pub from: String,
    pub hook: Hook,
    pub why: String,
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum OriginError {
    #[error(
        "there is no device {0} in this network namespace; --in takes one of `ip link`, or pod, node, external"
    )]
    NoDevice(String),
    #[error(
        "no device leads to {0} and no program is attached to any; name the device that its packets arrive by with --in"
    )]
    NoWay(IpAddr),
    #[error(
        "{0} sockets of this node are not served (--socket-hooks, SCTP): its processes reach no Service; \
         --in IFACE explains a packet that arrives"
    )]
    NoSockets(&'static str),
}

impl Facts {
    pub fn is_node(&self, ip: IpAddr) -> bool {
        ip.is_loopback() || self.addresses.iter().any(|(address, _)| *address == ip)
    }

    fn namespace_of(&self, ip: IpAddr) -> Option<u64> {
        let has = |addresses: &NamespaceAddrs| match ip {
            IpAddr::V4(ip) => addresses.addr_v4 == ip.octets(),
            IpAddr::V6(ip) => addresses.addr_v6 == ip.octets(),
        };
        self.namespaces.iter().find(|(_, addresses)| has(addresses)).map(|(cookie, _)| *cookie)
    }

    fn device_to_source(&self) -> Option<&Device> {
        self.devices.iter().find(|device| Some(device.ifindex) == self.route)
    }

    /// Finds out who sends the packet, unless it was said.
    pub fn origin(&self, packet: &Packet, said: Option<&In>) -> Result<Origin, OriginError> {
        let source = packet.source.ip();
        match said {
            Some(In::Node) => self.process("node", "--in node".into(), packet),
            Some(In::Pod) => self.process("pod", "--in pod".into(), packet),
            Some(In::External) => self.arrival("--in external".into(), source),
            Some(In::Device(name)) => {
                let device = self.devices.iter().find(|device| device.name == *name);
                let device = device.ok_or_else(|| OriginError::NoDevice(name.clone()))?;
                Ok(by_device(name, format!("--in {name}"), device))
            }
            None if self.is_node(source) => {
                self.process("node", format!("{source} is an address of this node"), packet)
            }
            None if self.namespace_of(source).is_some() || self.endpoints_here.contains(&source) => {
                let why = format!("{source} is the address of a pod on this node");
                match self.device_to_source() {
                    // Its sockets are not of this kernel: a virtual machine, a sandbox.
                    Some(device) if device.attached && self.namespace_of(source).is_none() => {
                        Ok(by_device("pod", why, device))
                    }
                    _ => self.process("pod", why, packet),
                }
            }
            None => self
                .arrival(format!("{source} is neither an address of this node nor of a pod on it"), source),
        }
    }

    fn process(&self, from: &str, why: String, packet: &Packet) -> Result<Origin, OriginError> {
        let source = packet.source.ip();
        let from_pod = from == "pod";
        if packet.protocol == Protocol::Icmp {
            let ifindex = self.arrival_device(source)?.0.ifindex;
            let why = format!("{why}; a ping is answered as a packet");
            return Ok(Origin { from: from.into(), hook: Hook::Device { ifindex }, why });
        }
        // Linux has no hook where an SCTP socket connects.
        let sockets = if packet.protocol == Protocol::Sctp { Sockets::None } else { self.sockets };
        if !from_pod && sockets == Sockets::None {
            return Err(OriginError::NoSockets(packet.protocol.name()));
        }
        if from_pod && sockets != Sockets::All {
            let device = self.device_to_source().ok_or(OriginError::NoWay(source))?;
            let name = packet.protocol.name();
            let why = format!("{why}, whose {name} sockets are not served (--socket-hooks, SCTP)");
            return Ok(by_device("pod", why, device));
        }
        let netns_cookie = if from_pod { self.namespace_of(source).unwrap_or(0) } else { self.netns_cookie };
        let program = if source.is_ipv4() { "lb_connect4" } else { "lb_connect6" };
        let why = format!(
            "{why}: a process there calls connect, and {program} translates the call by the same code and maps"
        );
        Ok(Origin { from: from.into(), hook: Hook::Socket { netns_cookie }, why })
    }

    fn arrival(&self, why: String, source: IpAddr) -> Result<Origin, OriginError> {
        let (device, how) = self.arrival_device(source)?;
        Ok(Origin {
            from: "external".into(),
            hook: Hook::Device { ifindex: device.ifindex },
            why: format!("{why}; arrives by {}, {how}", device.name),
        })
    }

    /// The device that packets of a source arrive by, as far as can be known.
    fn arrival_device(&self, source: IpAddr) -> Result<(&Device, &'static str), OriginError> {
        let to_source = self.device_to_source();
        if let Some(device) = to_source.filter(|device| device.attached) {
            return Ok((device, "which leads to it"));
        }
        let first = self.devices.iter().find(|device| device.attached);
        first
            .map(|device| (device, "the first device with programs, as none of them leads to it"))
            .or(to_source.map(|device| (device, "which leads to it")))
            .ok_or(OriginError::NoWay(source))
    }
}

fn by_device(from: &str, why: String, device: &Device) -> Origin {
    let attached = if device.attached {
        ""
    } else {
        ", to which no program is attached: real packets pass there untouched, whatever is said here"
    };
    let why = format!("{why}; arrives by {}{attached}", device.name);
    Origin { from: from.into(), hook: Hook::Device { ifindex: device.ifindex }, why }
}

#[cfg(test)]
mod tests {
    use lb_common::layout::address_flags;

    use super::*;
    use crate::probe::packet::End;

    fn facts() -> Facts {
        let address =
            |text: &str| (text.parse().unwrap(), KnownAddress { ifindex: 2, flags: address_flags::NODE });
        let device = |ifindex, name: &str, attached| Device { ifindex, name: name.into(), attached };
        Facts {
            netns_cookie: 7,
            sockets: Sockets::All,
            addresses: vec![address("10.10.0.11")],
            namespaces: vec![
                (7, NamespaceAddrs { addr_v4: [10, 10, 0, 11], addr_v6: [0; 16] }),
                (8, NamespaceAddrs { addr_v4: [10, 244, 1, 11], addr_v6: [0; 16] }),
            ],
            endpoints_here: HashSet::from(["10.244.1.12".parse().unwrap()]),
            devices: vec![device(2, "eth0", true), device(3, "eth1", true), device(4, "veth1", false)],
            route: None,
        }
    }

    fn origin(
        facts: &Facts,
        protocol: Protocol,
        source: &str,
        said: Option<&str>,
    ) -> Result<Origin, OriginError> {
        let port = (protocol != Protocol::Icmp).then_some(80);
        let source = End { ip: source.parse().unwrap(), port: None };
        let packet = Packet::new(protocol, source, End { ip: "10.96.0.10".parse().unwrap(), port }).unwrap();
        facts.origin(&packet, said.map(|text| text.parse().unwrap()).as_ref())
    }

    #[test]
    fn who_sends_follows_from_the_source() {
        let facts = facts();
        let hook = |source| {
            let origin = origin(&facts, Protocol::Tcp, source, None).unwrap();
            (origin.from, origin.hook)
        };
        assert_eq!(hook("10.10.0.11"), ("node".into(), Hook::Socket { netns_cookie: 7 }));
        assert_eq!(hook("127.0.0.1"), ("node".into(), Hook::Socket { netns_cookie: 7 }));
        assert_eq!(hook("10.244.1.11"), ("pod".into(), Hook::Socket { netns_cookie: 8 }));
        // An endpoint here whose namespace is not known.
        assert_eq!(hook("10.244.1.12"), ("pod".into(), Hook::Socket { netns_cookie: 0 }));
        assert_eq!(hook("192.0.2.1"), ("external".into(), Hook::Device { ifindex: 2 }));
    }

    #[test]
    fn packets_arrive_by_the_device_that_leads_to_their_source() {
        let external = |route| {
            let facts = Facts { route, ..facts() };
            origin(&facts, Protocol::Udp, "192.0.2.1", Some("external")).unwrap()
        };
        assert_eq!(external(Some(3)).why, "--in external; arrives by eth1, which leads to it");
        // Behind a device without programs: not from there.
        assert_eq!(external(Some(4)).hook, Hook::Device { ifindex: 2 });
        let nowhere = Facts { devices: vec![], ..facts() };
        assert!(matches!(origin(&nowhere, Protocol::Udp, "192.0.2.1", None), Err(OriginError::NoWay(_))));
    }

    #[test]
    fn a_device_can_be_named() {
        let facts = facts();
        let named = |name| origin(&facts, Protocol::Tcp, "10.244.1.11", Some(name));
        assert_eq!(named("eth1").unwrap().hook, Hook::Device { ifindex: 3 });
        assert!(named("veth1").unwrap().why.contains("no program is attached"));
        assert!(named("eth9").unwrap_err().to_string().contains("no device eth9"));
    }

    #[test]
    fn a_pod_without_sockets_here_comes_by_its_device() {
        let facts = Facts { route: Some(3), ..facts() };
        let machine = origin(&facts, Protocol::Tcp, "10.244.1.12", None).unwrap();
        assert_eq!((machine.from.as_str(), machine.hook), ("pod", Hook::Device { ifindex: 3 }));
        let pod = origin(&facts, Protocol::Tcp, "10.244.1.11", None).unwrap();
        assert_eq!(pod.hook, Hook::Socket { netns_cookie: 8 });
    }

    #[test]
    fn pings_and_pods_whose_sockets_are_left_alone_come_as_packets() {
        let mut facts = facts();
        let ping = origin(&facts, Protocol::Icmp, "10.244.1.11", None).unwrap();
        assert_eq!((ping.from.as_str(), ping.hook), ("pod", Hook::Device { ifindex: 2 }));
        facts.sockets = Sockets::Node;
        facts.route = Some(3);
        let pod = origin(&facts, Protocol::Tcp, "10.244.1.11", None).unwrap();
        assert_eq!((pod.from.as_str(), pod.hook), ("pod", Hook::Device { ifindex: 3 }));
        let node = origin(&facts, Protocol::Tcp, "10.10.0.11", None).unwrap();
        assert_eq!(node.hook, Hook::Socket { netns_cookie: 7 });
        let association = origin(&facts, Protocol::Sctp, "10.10.0.11", None);
        assert_eq!(association, Err(OriginError::NoSockets("sctp")));
        facts.sockets = Sockets::None;
        assert_eq!(origin(&facts, Protocol::Tcp, "10.10.0.11", None), Err(OriginError::NoSockets("tcp")));
    }
}
