//! Decides to which devices programs are attached, and states the reasons.
//!
//! `auto` attaches to every device on which packets for this node arrive, so that a program sees
//! each packet once:
//!
//! | device | attached |
//! |---|---|
//! | loopback | never: socket programs serve local processes |
//! | device that is down | when it comes up (fallback tunnels such as `tunl0` never do) |
//! | NIC (no kind) | yes |
//! | port of a bond, team, failover or accelerated NIC | no, its master is |
//! | port of a bridge | no, the bridge is: a port also receives frames for other hosts |
//! | port of Open vSwitch | yes: the switch has no device that receives all packets |
//! | bond, team | yes |
//! | VLAN, MACsec above a device that leads to other nodes | yes: programs there ignore its frames |
//! | macvlan, ipvlan above a device of this namespace | no: its frames pass that device first |
//! | any of these above a device of another namespace | yes: it is the NIC of this namespace |
//! | bridge with a NIC, bond, VLAN or tunnel as a port | yes: packets for the host arrive there |
//! | other bridge (`docker0`, `cni0`, `virbr0`) | no: it connects pods and containers |
//! | vxlan, geneve, ipip, ip6tnl, sit, gre, wireguard, xfrm, tun | yes: tunnels of overlay CNIs |
//! | tap | no: it connects a virtual machine |
//! | veth, netkit | see below |
//! | dummy, ifb, VRF and others | no: no packets arrive there from outside |
//!
//! **veth.** In kind, k3d and minikube the NIC of a node is a veth. Three facts distinguish it from
//! the host side of a pod: its other end is in another network namespace; it is no port of a
//! bridge; and either the default route leads there, or it has a global address *with a subnet*.
//! The host side of a pod has no global address (Calico, Cilium, AWS VPC, Azure) or one without a
//! subnet, `/32` or `/128` (kindnet, kubenet, the ptp plugin). A host route leads to the pod. While
//! the NIC is down, there is no default route, and these facts still exclude the veths of pods.
//!
//! **Devices of pods** are attached to only by name (`--pod-interfaces`), with tc: for virtual
//! machines and sandboxes whose sockets do not belong to this kernel. Packets that arrive there
//! come from a pod of this node. Replies to it get the Service's address back when they leave
//! there. On a bridge these devices are its ports: packets between two pods of the bridge do not
//! pass the bridge device.
//!
//! **XDP** is used in mode `auto` only with drivers that support it natively and deliver complete
//! checksums, see `xdp`.

mod choice;
mod glob;
mod hooks;
mod options;
mod rules;
#[cfg(test)]
mod tests;
mod xdp;

pub use choice::{Behind, DeviceChoice, choose_devices};
pub use hooks::Hooks;
pub use options::{AttachMode, DeviceOptions, DevicePatterns, PodInterfaces};
