//! Programs that record their decisions, for `lb explain`. They are the same programs as the
//! attached ones, loaded a second time on the same maps. They write only the map `RECORD`, which is
//! private.

use std::io;

use lb_common::layout::{Record, Settings};

use crate::apply::map_name::MapName;
use crate::datapath::Datapath;
use crate::hooks;
use crate::links::{AttachError, Links};
use crate::pins::Pins;
use crate::programs::{CALL_RECORDER, LoadError, LoadOptions, PACKET_RECORDER, Programs};
use crate::settings;
use crate::sys::TestRun;
use crate::table::Table;

/// The hook at which a recorded packet is seen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Occasion {
    /// The packet arrives at a device.
    Arrival { ifindex: u32 },
    /// A process in this network namespace calls `connect` with the destination of the packet.
    Call { netns_cookie: u64 },
}

/// The result of a run.
#[derive(Debug, Clone)]
pub struct Recorded {
    /// The name of the program.
    pub program: &'static str,
    pub record: Record,
    pub run: TestRun,
}

impl Datapath {
    /// Loads the recorder on the maps that an agent has pinned. No agent needs to run. Creates,
    /// pins and changes nothing.
    pub fn load_recorder(pins: &Pins) -> Result<Self, LoadError> {
        let settings = settings::read_pinned(pins)
            .map_err(|source| LoadError::Map { map: "SETTINGS".into(), source })?
            .ok_or_else(|| LoadError::NoMaps(pins.root().to_owned()))?;
        let options = settings::load_options(&settings);
        Self::new(Programs::load_recorder(&options, Some(pins))?, None, options.sizes)
    }

    /// Loads the recorder on private maps.
    pub fn load_private_recorder(options: &LoadOptions) -> Result<Self, LoadError> {
        let datapath = Self::new(Programs::load_recorder(options, None)?, None, options.sizes)?;
        datapath.publish(options)?;
        Ok(datapath)
    }

    /// Returns the settings with which the agent has loaded its programs.
    pub fn settings(&self) -> io::Result<Settings> {
        settings::table(&self.maps)?.get(&0)?.ok_or_else(|| io::ErrorKind::NotFound.into())
    }

    /// Runs the recorder on a packet with an Ethernet header.
    pub fn record(&self, occasion: Occasion, packet: &[u8]) -> io::Result<Recorded> {
        // A call has no device. 1 is the index of the loopback device, which every namespace has.
        const LOOPBACK: u32 = 1;
        let (program, ifindex, netns_cookie) = match occasion {
            Occasion::Arrival { ifindex } => (PACKET_RECORDER, ifindex, 0),
            Occasion::Call { netns_cookie } => (CALL_RECORDER, LOOPBACK, netns_cookie),
        };
        let table: Table<u32, Record> = self.maps.table(MapName::RECORD)?;
        table.put(&0, &Record { netns_cookie, ..Record::default() })?;
        let run = self.test_run(program, packet, &skb_context(ifindex), 1)?;
        let record = table.get(&0)?.ok_or(io::ErrorKind::NotFound)?;
        Ok(Recorded { program, record, run })
    }
}

/// Returns the indices of the devices to which an agent has attached programs.
pub fn attached_devices(pins: &Pins) -> Result<Vec<u32>, AttachError> {
    Links::new(pins.links()).attached_devices()
}

/// Returns whether an agent has attached socket programs.
pub fn serves_sockets(pins: &Pins) -> bool {
    pins.links().join(hooks::CONNECT).exists()
}

/// The start of `struct __sk_buff`, up to `ifindex`. Only `ifindex` is set.
fn skb_context(ifindex: u32) -> Vec<u8> {
    const IFINDEX: usize = 40;
    let mut context = vec![0; IFINDEX];
    context.extend(ifindex.to_ne_bytes());
    context
}
