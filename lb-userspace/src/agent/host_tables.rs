//! The part of the data path that depends on this host: attachments, and the maps of devices,
//! addresses, networks and network namespaces.

use std::collections::BTreeMap;
use std::io;
use std::net::IpAddr;

use ipnet::IpNet;
use lb_common::layout::{Device, KnownAddress, LinkAddress, NamespaceAddrs};
use lb_datapath::apply::tables::TableError;
use lb_datapath::{AttachError, Attached, Datapath, Drift, TargetDevice};

use crate::node::devices::{DeviceChoice, Hooks};

/// Writes attachments and host maps. The tests implement it in memory.
pub trait HostTables {
    type Error: std::error::Error;

    /// Attaches to a device, or replaces what is attached to it.
    fn attach(&mut self, choice: &DeviceChoice) -> Result<Attached, Self::Error>;
    /// Detaches from a device. It is no error if the device does not exist any more.
    fn detach(&mut self, ifindex: u32) -> Result<(), Self::Error>;
    /// Compares the programs of a device with those that `attach` has attached. `xdp` is whether it
    /// has attached XDP.
    fn check(&self, choice: &DeviceChoice, xdp: bool) -> Result<Vec<Drift>, Self::Error>;
    /// Returns the entries of the host maps.
    fn entries(&self) -> Result<HostEntries, Self::Error>;
    // The methods below write an entry, or remove it if the value is `None`.
    fn set_device(&mut self, ifindex: u32, device: Option<&Device>) -> Result<(), Self::Error>;
    fn set_link(&mut self, ifindex: u32, link: Option<&LinkAddress>) -> Result<(), Self::Error>;
    fn set_address(&mut self, address: IpAddr, value: Option<&KnownAddress>) -> Result<(), Self::Error>;
    fn set_network(&mut self, network: IpNet, flags: Option<u32>) -> Result<(), Self::Error>;
    fn set_namespace(&mut self, cookie: u64, addresses: Option<&NamespaceAddrs>) -> Result<(), Self::Error>;
}

/// The entries of the host maps.
#[derive(Debug, Clone, Default)]
pub struct HostEntries {
    pub devices: BTreeMap<u32, Device>,
    pub links: BTreeMap<u32, LinkAddress>,
    pub addresses: BTreeMap<IpAddr, KnownAddress>,
    pub networks: BTreeMap<IpNet, u32>,
    pub namespaces: BTreeMap<u64, NamespaceAddrs>,
}

#[derive(Debug, thiserror::Error)]
pub enum HostError {
    #[error(transparent)]
    Attach(#[from] AttachError),
    #[error("cannot list the programs of {device}: {source}")]
    Check { device: String, source: io::Error },
    #[error(transparent)]
    Map(#[from] TableError),
}

fn target(choice: &DeviceChoice, xdp: bool) -> TargetDevice<'_> {
    TargetDevice { ifindex: choice.index, name: &choice.name, xdp, layer3: !choice.ethernet }
}

impl HostTables for Datapath {
    type Error = HostError;

    fn attach(&mut self, choice: &DeviceChoice) -> Result<Attached, HostError> {
        Ok(self.attach_device(target(choice, choice.hooks == Hooks::XdpAndTc))?)
    }

    fn detach(&mut self, ifindex: u32) -> Result<(), HostError> {
        Ok(self.detach_device(ifindex)?)
    }

    fn check(&self, choice: &DeviceChoice, xdp: bool) -> Result<Vec<Drift>, HostError> {
        let failed = |source| HostError::Check { device: choice.name.clone(), source };
        self.check_device(target(choice, xdp)).map_err(failed)
    }

    fn entries(&self) -> Result<HostEntries, HostError> {
        let host = self.host();
        Ok(HostEntries {
            devices: host.devices()?.into_iter().collect(),
            links: host.links()?.into_iter().collect(),
            addresses: host.addresses()?.into_iter().collect(),
            networks: host.networks()?.into_iter().collect(),
            namespaces: host.namespaces()?.into_iter().collect(),
        })
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
