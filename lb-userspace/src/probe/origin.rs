//! Determines the origin of the packet: a process of this node, a process of a pod, or a device.
//!
//! The origin decides which program sees the packet first: a socket program sees the calls of local
//! processes, an XDP or tc program sees packets that arrive at a device.

use std::collections::HashSet;
use std::convert::Infallible;
use std::net::IpAddr;
use std::str::FromStr;

use lb_common::layout::{KnownAddress, NamespaceAddrs};

use super::packet::{PacketProtocol, ProbePacket};
use crate::config::SocketHooks;

/// Option `--in`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum OriginOption {
    Pod,
    Node,
    External,
    Device(String),
}

impl FromStr for OriginOption {
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

/// A network device of this network namespace.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OriginDevice {
    pub ifindex: u32,
    pub name: String,
    /// Whether programs of Sluice are attached to it.
    pub attached: bool,
}

/// The state of this node that determines the origin of a packet.
#[derive(Debug, Clone)]
pub struct OriginFacts {
    /// Cookie of the network namespace of the agent.
    pub netns_cookie: u64,
    pub socket_hooks: SocketHooks,
    pub addresses: Vec<(IpAddr, KnownAddress)>,
    /// Network namespaces of pods by their cookie, with their addresses.
    pub namespaces: Vec<(u64, NamespaceAddrs)>,
    /// Addresses of endpoints on this node.
    pub local_endpoints: HashSet<IpAddr>,
    pub devices: Vec<OriginDevice>,
    /// Index of the device on the route to the source of the packet.
    pub route_device: Option<u32>,
}

/// The hook at which a program of Sluice sees the packet first.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Hook {
    /// The packet is the call of a process at its socket. `netns_cookie` identifies the network
    /// namespace of the process; 0 means that it is unknown.
    Socket { netns_cookie: u64 },
    /// The packet arrives at a device.
    Device { ifindex: u32 },
}

/// The origin of a packet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Origin {
    /// `pod`, `node`, `external`, or the name of a device.
    pub from: String,
    pub hook: Hook,
    /// The explanation for people.
    pub why: String,
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum OriginError {
    #[error(
        "there is no device {0} in this network namespace; give --in a device that `ip link` lists, \
         or pod, node or external"
    )]
    NoDevice(String),
    #[error(
        "there is no route to {0} and no device has a program attached; name the device at which \
         its packets arrive with --in"
    )]
    NoRoute(IpAddr),
    #[error(
        "{0} sockets of this node are not served (--socket-hooks=off, or SCTP), so its processes \
         reach no Service; use --in DEVICE to explain a packet that arrives at a device"
    )]
    SocketsNotServed(&'static str),
}

impl OriginFacts {
    /// Returns whether `ip` is an address of this node.
    pub fn is_node(&self, ip: IpAddr) -> bool {
        ip.is_loopback() || self.addresses.iter().any(|(address, _)| *address == ip)
    }

    /// Returns the cookie of the network namespace that has this address.
    fn namespace_of(&self, ip: IpAddr) -> Option<u64> {
        let has = |addresses: &NamespaceAddrs| match ip {
            IpAddr::V4(ip) => addresses.addr_v4 == ip.octets(),
            IpAddr::V6(ip) => addresses.addr_v6 == ip.octets(),
        };
        self.namespaces.iter().find(|(_, addresses)| has(addresses)).map(|(cookie, _)| *cookie)
    }

    fn device_to_source(&self) -> Option<&OriginDevice> {
        self.devices.iter().find(|device| Some(device.ifindex) == self.route_device)
    }

    /// Returns the origin of the packet. It follows from `--in`, or else from the source address.
    pub fn origin(&self, packet: &ProbePacket, option: Option<&OriginOption>) -> Result<Origin, OriginError> {
        let source = packet.source.ip();
        match option {
            Some(OriginOption::Node) => self.process("node", "--in node".into(), packet),
            Some(OriginOption::Pod) => self.process("pod", "--in pod".into(), packet),
            Some(OriginOption::External) => self.arrival("--in external".into(), source),
            Some(OriginOption::Device(name)) => {
                let device = self.devices.iter().find(|device| device.name == *name);
                let device = device.ok_or_else(|| OriginError::NoDevice(name.clone()))?;
                Ok(arrives_at(name, format!("--in {name}"), device))
            }
            None if self.is_node(source) => {
                self.process("node", format!("{source} is an address of this node"), packet)
            }
            None if self.namespace_of(source).is_some() || self.local_endpoints.contains(&source) => {
                let why = format!("{source} is the address of a pod on this node");
                match self.device_to_source() {
                    // The pod has no sockets in this kernel: it is a virtual machine or a sandbox.
                    Some(device) if device.attached && self.namespace_of(source).is_none() => {
                        Ok(arrives_at("pod", why, device))
                    }
                    _ => self.process("pod", why, packet),
                }
            }
            None => {
                self.arrival(format!("{source} is not an address of this node or of a pod on it"), source)
            }
        }
    }

    /// Returns the origin of a packet that a process of this node or of a pod sends.
    fn process(&self, from: &str, why: String, packet: &ProbePacket) -> Result<Origin, OriginError> {
        let source = packet.source.ip();
        let from_pod = from == "pod";
        if packet.protocol == PacketProtocol::Icmp {
            let ifindex = self.arrival_device(source)?.0.ifindex;
            let why = format!("{why}; a ping passes no socket program");
            return Ok(Origin { from: from.into(), hook: Hook::Device { ifindex }, why });
        }
        // Linux has no hook for the connect call of SCTP sockets.
        let is_sctp = packet.protocol == PacketProtocol::Sctp;
        let socket_hooks = if is_sctp { SocketHooks::Off } else { self.socket_hooks };
        if !from_pod && socket_hooks == SocketHooks::Off {
            return Err(OriginError::SocketsNotServed(packet.protocol.name()));
        }
        if from_pod && socket_hooks != SocketHooks::All {
            let device = self.device_to_source().ok_or(OriginError::NoRoute(source))?;
            let name = packet.protocol.name();
            let why = format!("{why}; its {name} sockets are not served (--socket-hooks, or SCTP)");
            return Ok(arrives_at("pod", why, device));
        }
        let netns_cookie = if from_pod { self.namespace_of(source).unwrap_or(0) } else { self.netns_cookie };
        let program = if source.is_ipv4() { "lb_connect4" } else { "lb_connect6" };
        let why = format!(
            "{why}: a process there calls connect, and {program} translates the call with the same \
             code and maps"
        );
        Ok(Origin { from: from.into(), hook: Hook::Socket { netns_cookie }, why })
    }

    /// Returns the origin of a packet that arrives at a device from outside this node.
    fn arrival(&self, why: String, source: IpAddr) -> Result<Origin, OriginError> {
        let (device, how) = self.arrival_device(source)?;
        Ok(Origin {
            from: "external".into(),
            hook: Hook::Device { ifindex: device.ifindex },
            why: format!("{why}; arrives at {}, {how}", device.name),
        })
    }

    /// Returns the device at which packets of a source arrive, with the reason for this choice.
    /// Prefers the device on the route to the source, if a program is attached to it.
    fn arrival_device(&self, source: IpAddr) -> Result<(&OriginDevice, &'static str), OriginError> {
        let to_source = self.device_to_source();
        if let Some(device) = to_source.filter(|device| device.attached) {
            return Ok((device, "the device on the route to it"));
        }
        let first = self.devices.iter().find(|device| device.attached);
        first
            .map(|device| (device, "the first device with a program: the route to it uses none of them"))
            .or(to_source.map(|device| (device, "the device on the route to it")))
            .ok_or(OriginError::NoRoute(source))
    }
}

/// Returns the origin of a packet that arrives at a given device.
fn arrives_at(from: &str, why: String, device: &OriginDevice) -> Origin {
    let attached = if device.attached {
        ""
    } else {
        ", which has no program attached: real packets pass it unchanged, unlike here"
    };
    let why = format!("{why}; arrives at {}{attached}", device.name);
    Origin { from: from.into(), hook: Hook::Device { ifindex: device.ifindex }, why }
}

#[cfg(test)]
mod tests {
    use lb_common::layout::address_flags;

    use super::*;
    use crate::probe::packet::AddressArg;

    fn node_state() -> OriginFacts {
        let address =
            |text: &str| (text.parse().unwrap(), KnownAddress { ifindex: 2, flags: address_flags::NODE });
        let device = |ifindex, name: &str, attached| OriginDevice { ifindex, name: name.into(), attached };
        OriginFacts {
            netns_cookie: 7,
            socket_hooks: SocketHooks::All,
            addresses: vec![address("10.10.0.11")],
            namespaces: vec![
                (7, NamespaceAddrs { addr_v4: [10, 10, 0, 11], addr_v6: [0; 16] }),
                (8, NamespaceAddrs { addr_v4: [10, 244, 1, 11], addr_v6: [0; 16] }),
            ],
            local_endpoints: HashSet::from(["10.244.1.12".parse().unwrap()]),
            devices: vec![device(2, "eth0", true), device(3, "eth1", true), device(4, "veth1", false)],
            route_device: None,
        }
    }

    fn origin(
        node: &OriginFacts,
        protocol: PacketProtocol,
        source: &str,
        option: Option<&str>,
    ) -> Result<Origin, OriginError> {
        let port = (protocol != PacketProtocol::Icmp).then_some(80);
        let source = AddressArg { ip: source.parse().unwrap(), port: None };
        let destination = AddressArg { ip: "10.96.0.10".parse().unwrap(), port };
        let packet = ProbePacket::new(protocol, source, destination).unwrap();
        node.origin(&packet, option.map(|text| text.parse().unwrap()).as_ref())
    }

    #[test]
    fn the_origin_follows_from_the_source_address() {
        let node = node_state();
        let hook = |source| {
            let origin = origin(&node, PacketProtocol::Tcp, source, None).unwrap();
            (origin.from, origin.hook)
        };
        assert_eq!(hook("10.10.0.11"), ("node".into(), Hook::Socket { netns_cookie: 7 }));
        assert_eq!(hook("127.0.0.1"), ("node".into(), Hook::Socket { netns_cookie: 7 }));
        assert_eq!(hook("10.244.1.11"), ("pod".into(), Hook::Socket { netns_cookie: 8 }));
        // A local endpoint whose network namespace is unknown.
        assert_eq!(hook("10.244.1.12"), ("pod".into(), Hook::Socket { netns_cookie: 0 }));
        assert_eq!(hook("192.0.2.1"), ("external".into(), Hook::Device { ifindex: 2 }));
    }

    #[test]
    fn packets_arrive_at_the_device_on_the_route_to_their_source() {
        let external = |route_device| {
            let node = OriginFacts { route_device, ..node_state() };
            origin(&node, PacketProtocol::Udp, "192.0.2.1", Some("external")).unwrap()
        };
        assert_eq!(external(Some(3)).why, "--in external; arrives at eth1, the device on the route to it");
        // The device on the route has no program: another device is assumed.
        assert_eq!(external(Some(4)).hook, Hook::Device { ifindex: 2 });
        let nowhere = OriginFacts { devices: vec![], ..node_state() };
        assert!(matches!(
            origin(&nowhere, PacketProtocol::Udp, "192.0.2.1", None),
            Err(OriginError::NoRoute(_))
        ));
    }

    #[test]
    fn a_device_can_be_named() {
        let node = node_state();
        let named = |name| origin(&node, PacketProtocol::Tcp, "10.244.1.11", Some(name));
        assert_eq!(named("eth1").unwrap().hook, Hook::Device { ifindex: 3 });
        assert!(named("veth1").unwrap().why.contains("has no program attached"));
        assert!(named("eth9").unwrap_err().to_string().contains("no device eth9"));
    }

    #[test]
    fn packets_of_a_pod_without_sockets_in_this_kernel_arrive_at_its_device() {
        let node = OriginFacts { route_device: Some(3), ..node_state() };
        let machine = origin(&node, PacketProtocol::Tcp, "10.244.1.12", None).unwrap();
        assert_eq!((machine.from.as_str(), machine.hook), ("pod", Hook::Device { ifindex: 3 }));
        let pod = origin(&node, PacketProtocol::Tcp, "10.244.1.11", None).unwrap();
        assert_eq!(pod.hook, Hook::Socket { netns_cookie: 8 });
    }

    #[test]
    fn pings_and_pods_whose_sockets_are_not_served_arrive_at_a_device() {
        let mut node = node_state();
        let ping = origin(&node, PacketProtocol::Icmp, "10.244.1.11", None).unwrap();
        assert_eq!((ping.from.as_str(), ping.hook), ("pod", Hook::Device { ifindex: 2 }));
        node.socket_hooks = SocketHooks::Host;
        node.route_device = Some(3);
        let pod = origin(&node, PacketProtocol::Tcp, "10.244.1.11", None).unwrap();
        assert_eq!((pod.from.as_str(), pod.hook), ("pod", Hook::Device { ifindex: 3 }));
        let process = origin(&node, PacketProtocol::Tcp, "10.10.0.11", None).unwrap();
        assert_eq!(process.hook, Hook::Socket { netns_cookie: 7 });
        let association = origin(&node, PacketProtocol::Sctp, "10.10.0.11", None);
        assert_eq!(association, Err(OriginError::SocketsNotServed("sctp")));
        node.socket_hooks = SocketHooks::Off;
        assert_eq!(
            origin(&node, PacketProtocol::Tcp, "10.10.0.11", None),
            Err(OriginError::SocketsNotServed("tcp"))
        );
    }
}
