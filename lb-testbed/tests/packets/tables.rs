//! Entries that the agent writes to the kernel's maps are read back unchanged.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr};

use anyhow::{Context, Result, ensure};
use ipnet::{IpNet, Ipv4Net};
use lb_common::layout::{KnownAddress, address_flags, network_flags};
use lb_datapath::Datapath;
use lb_datapath::apply::tables::{TableError, Tables};
use lb_testbed::programs::{Limits, load_options};

/// More entries than one batch of a read (4096).
const RANGES: u32 = 5000;

pub fn run() -> Result<()> {
    let mut options = load_options(&Limits::default());
    options.sizes.max_source_ranges = RANGES;
    let datapath = Datapath::load_private(&options).context("cannot load the programs")?;
    source_ranges(&datapath).context("source ranges")?;
    networks(&datapath).context("networks")?;
    addresses(&datapath).context("addresses")
}

fn source_ranges(datapath: &Datapath) -> Result<()> {
    let mut tables = datapath.tables()?;
    let v6 = ["fd00::/16", "fd00::1/128", "::/0"].map(|text| text.parse::<IpNet>());
    let mut written = BTreeSet::new();
    for network in v6 {
        written.insert((7, network?));
    }
    // Nested networks of services whose ids differ in one byte or in several.
    for number in 0..RANGES {
        let length = 32 - (number % 3) as u8 * 4;
        let network = Ipv4Net::new(Ipv4Addr::from(0x0a00_0000 + number * 256), length)?;
        written.insert((number % 1000, network.into()));
    }
    for &(service_id, network) in &written {
        tables.put_source_range(service_id, network)?;
    }
    ensure!(written.len() == RANGES as usize + 3);
    ensure!(
        tables.source_ranges()?.into_iter().collect::<BTreeSet<_>>() == written,
        "not all ranges are read back"
    );

    let one_more = tables.put_source_range(1_000_000, "192.0.2.0/24".parse()?);
    ensure!(
        matches!(one_more, Err(TableError::Full { option: "max-map-memory", .. })),
        "unexpected result of a write to a full map: {one_more:?}"
    );
    let (gone, kept): (Vec<_>, Vec<_>) = written.into_iter().partition(|(id, _)| *id != 7);
    for (service_id, network) in gone {
        tables.remove_source_range(service_id, network)?;
        tables.remove_source_range(service_id, network).context("remove a missing range")?;
    }
    let left = tables.source_ranges()?;
    ensure!(
        left.len() == kept.len() && kept.iter().all(|entry| left.contains(entry)),
        "unexpected remaining ranges: {left:?}"
    );
    Ok(())
}

fn networks(datapath: &Datapath) -> Result<()> {
    let read = || anyhow::Ok(datapath.host().networks()?.into_iter().collect::<BTreeSet<(IpNet, u32)>>());
    ensure!(read()?.is_empty());
    let [wide, narrow, v6] = ["10.0.0.0/8", "10.96.0.0/12", "fd00::/56"].map(str::parse::<IpNet>);
    let (wide, narrow, v6) = (wide?, narrow?, v6?);
    let both = network_flags::PODS | network_flags::SERVICES;
    datapath.host().set_network(wide, Some(network_flags::PODS))?;
    datapath.host().set_network(narrow, Some(both))?;
    datapath.host().set_network(v6, Some(network_flags::SERVICES))?;
    ensure!(
        read()?
            == BTreeSet::from([(wide, network_flags::PODS), (narrow, both), (v6, network_flags::SERVICES)])
    );
    datapath.host().set_network(wide, Some(network_flags::SERVICES))?;
    datapath.host().set_network(narrow, None)?;
    datapath.host().set_network(v6, None)?;
    ensure!(read()? == BTreeSet::from([(wide, network_flags::SERVICES)]));
    Ok(())
}

/// An address has flags of the node and flags of Services. Changing one kind keeps the other.
fn addresses(datapath: &Datapath) -> Result<()> {
    let mut tables = datapath.tables()?;
    for ip in ["192.0.2.1", "2001:db8::1"] {
        let ip: IpAddr = ip.parse()?;
        let entry = KnownAddress { ifindex: 3, flags: address_flags::NODE | address_flags::NODE_PORTS };
        let marked = |tables: &dyn Tables| anyhow::Ok(tables.marked_addresses()?);
        datapath.host().set_address(ip, Some(&entry))?;
        ensure!(marked(&tables)?.is_empty(), "an address of only the node counts as one of a Service");
        tables.mark_address(ip, address_flags::SERVICE)?;
        ensure!(
            datapath.host().addresses()? == [(ip, entry)]
                && marked(&tables)? == [(ip, address_flags::SERVICE)]
        );
        datapath.host().set_address(ip, None)?;
        ensure!(
            datapath.host().addresses()?.is_empty(),
            "an address of only a Service counts as one of the node"
        );
        ensure!(marked(&tables)? == [(ip, address_flags::SERVICE)]);
        datapath.host().set_address(ip, Some(&entry))?;
        tables.mark_address(ip, 0)?;
        ensure!(datapath.host().addresses()? == [(ip, entry)] && marked(&tables)?.is_empty());
        datapath.host().set_address(ip, None)?;
    }
    Ok(())
}
