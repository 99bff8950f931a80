//! The part of the data path that depends on this host: attachments, and the maps of devices,
//! addresses, networks and network namespaces.

use std::net::IpAddr;

use ipnet::IpNet;
use lb_common::layout::{Device, KnownAddress, LinkAddress, NamespaceAddrs};
use lb_datapath::apply::tables::TableError;
use lb_datapath::{AttachError, Attached, Datapath, TargetDevice};

use crate::node::devices::{DeviceChoice, Hooks};

/// Writes attachments and host maps. The tests implement it in memory.
pub trait HostTables {
    type Error: std::error::Error;

    /// Attaches to a device, or replaces what is attached to it.
    fn attach(&mut self, choice: &DeviceChoice) -> Result<Attached, Self::Error>;
    /// Detaches from a device. It is no error if the device does not exist any more.
    fn detach(&mut self, ifindex: u32) -> Result<(), Self::Error>;
    // The methods below write an entry, or remove it if the value is `None`.
    fn set_device(&mut self, ifindex: u32, device: Option<&Device>) -> Result<(), Self::Error>;
    fn set_link(&mut self, ifindex: u32, link: Option<&LinkAddress>) -> Result<(), Self::Error>;
    fn set_address(&mut self, address: IpAddr, value: Option<&KnownAddress>) -> Result<(), Self::Error>;
    fn set_network(&mut self, network: IpNet, flags: Option<u32>) -> Result<(), Self::Error>;
    fn set_namespace(&mut self, cookie: u64, addresses: Option<&NamespaceAddrs>) -> Result<(), Self::Error>;
}

#[derive(Debug, thiserror::Error)]
pub enum HostError {
    #[error(transparent)]
    Attach(#[from] AttachError),
    #[error(transparent)]
    Map(#[from] TableError),
}

impl HostTables for Datapath {
    type Error = HostError;

    fn attach(&mut self, choice: &DeviceChoice) -> Result<Attached, HostError> {
        let device = TargetDevice {
            ifindex: choice.index,
            name: &choice.name,
            xdp: choice.hooks == Hooks::XdpAndTc,
            layer3: !choice.ethernet,
        };
        Ok(self.attach_device(device)?)
    }

    fn detach(&mut self, ifindex: u32) -> Result<(), HostError> {
        Ok(self.detach_device(ifindex)?)
    }

    fn set_device(&mut self, ifindex: u32, device: Option<&Device>) -> Result<(), HostError> {
        Ok(self.host().set_device(ifindex, device)?)
    }

    fn set_link(&mut self, ifindex: u32, link: Option<&LinkAddress>) -> Result<(), HostError> {
        Ok(self.host().set_link(ifindex, link)?)
    }

    fn set_address(&mut self, address: IpAddr, value: Option<&KnownAddress>) -> Result<(), HostError> {
        Ok(self.host().set_address(address, value)?)
    }

    fn set_network(&mut self, network: IpNet, flags: Option<u32>) -> Result<(), HostError> {
        Ok(self.host().set_network(network, flags)?)
    }

    fn set_namespace(&mut self, cookie: u64, addresses: Option<&NamespaceAddrs>) -> Result<(), HostError> {
        Ok(self.host().set_namespace(cookie, addresses)?)
    }
}
