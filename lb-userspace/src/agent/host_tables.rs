//! The part of the data path that depends on this host: attachments, and the maps of devices,
//! addresses, networks and network namespaces.

use std::io;
use std::net::IpAddr;

use ipnet::IpNet;
use lb_common::layout::{Device, KnownAddress, NamespaceAddrs};
use lb_datapath::{AttachError, Attached, Datapath};

use crate::node::devices::{DeviceChoice, Hooks};

/// Writes attachments and host maps. The tests implement it in memory.
pub trait HostTables {
    type Error: std::error::Error;

    /// Attaches to a device, or replaces what is attached to it.
    fn attach(&mut self, choice: &DeviceChoice) -> Result<Attached, Self::Error>;
    /// Detaches from a device. It is no error if the device does not exist any more.
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

#[derive(Debug, thiserror::Error)]
pub enum HostError {
    #[error(transparent)]
    Attach(#[from] AttachError),
    #[error(transparent)]
    Map(#[from] io::Error),
}

impl HostTables for Datapath {
    type Error = HostError;

    fn attach(&mut self, choice: &DeviceChoice) -> Result<Attached, HostError> {
        let xdp = choice.hooks == Hooks::XdpAndTc;
        Ok(self.attach_device(choice.index, &choice.name, xdp, !choice.ethernet)?)
    }

    fn detach(&mut self, ifindex: u32) -> Result<(), HostError> {
        Ok(self.detach_device(ifindex)?)
    }

    fn put_device(&mut self, ifindex: u32, device: &Device) -> Result<(), HostError> {
        Ok(Datapath::put_device(self, ifindex, device)?)
    }

    fn remove_device(&mut self, ifindex: u32) -> Result<(), HostError> {
        Ok(Datapath::remove_device(self, ifindex)?)
    }

    fn put_address(&mut self, address: IpAddr, value: &KnownAddress) -> Result<(), HostError> {
        Ok(self.put_node_address(address, value)?)
    }

    fn remove_address(&mut self, address: IpAddr) -> Result<(), HostError> {
        Ok(self.remove_node_address(address)?)
    }

    fn put_namespace(&mut self, cookie: u64, addresses: &NamespaceAddrs) -> Result<(), HostError> {
        Ok(Datapath::put_namespace(self, cookie, addresses)?)
    }

    fn remove_namespace(&mut self, cookie: u64) -> Result<(), HostError> {
        Ok(Datapath::remove_namespace(self, cookie)?)
    }

    fn put_network(&mut self, network: IpNet, flags: u32) -> Result<(), HostError> {
        Ok(Datapath::put_network(self, network, flags)?)
    }

    fn remove_network(&mut self, network: IpNet) -> Result<(), HostError> {
        Ok(Datapath::remove_network(self, network)?)
    }
}
