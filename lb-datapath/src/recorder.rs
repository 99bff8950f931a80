//! Programs that record what they decide instead of acting, for `lb explain`: the attached ones
//! loaded once more, on the same maps. They write nothing but `RECORD`, which is their own.

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

/// What a recorded packet stands for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Occasion {
    /// It arrives by a device.
    Arrival { ifindex: u32 },
    /// A socket of this network namespace calls `connect` with its destination.
    Call { netns_cookie: u64 },
}

/// What a run decided.
#[derive(Debug, Clone)]
pub struct Recorded {
    /// The program that ran.
    pub program: &'static str,
    pub record: Record,
    pub run: TestRun,
}

impl Datapath {
    /// Loads the recorder on the maps that an agent has pinned, as they are; no agent needs to run.
    /// Nothing is pinned, made or changed.
    pub fn load_recorder(pins: &Pins) -> Result<Self, LoadError> {
        let settings = settings::read_pinned(pins)
            .map_err(|source| LoadError::Map { map: "SETTINGS".into(), source })?
            .ok_or_else(|| LoadError::NoMaps(pins.root().to_owned()))?;
        Self::new(Programs::load_recorder(&settings::load_options(&settings), Some(pins))?, None)
    }

    /// Loads the recorder on maps of its own.
    pub fn load_private_recorder(options: &LoadOptions) -> Result<Self, LoadError> {
        let datapath = Self::new(Programs::load_recorder(options, None)?, None)?;
        datapath.publish(options)?;
        Ok(datapath)
    }

    /// How the agent has loaded its programs.
    pub fn settings(&self) -> io::Result<Settings> {
        settings::table(&self.maps)?.get(&0)?.ok_or_else(|| io::ErrorKind::NotFound.into())
    }

    /// Runs a recorder on a packet with an Ethernet header.
    pub fn record(&self, occasion: Occasion, packet: &[u8]) -> io::Result<Recorded> {
        // A call arrives by no device; every namespace has the loopback device, whose index this
        // is.
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

/// Interface indices that the programs of an agent are attached to.
pub fn attached_devices(pins: &Pins) -> Result<Vec<u32>, AttachError> {
    Links::new(pins.links()).attached_devices()
}

/// Whether an agent has attached socket programs.
pub fn serves_sockets(pins: &Pins) -> bool {
    let [(_, _, first), ..] = hooks::CGROUP;
    pins.links().join(first).exists()
}

/// `struct __sk_buff` up to its `ifindex`, which alone is set.
fn skb_context(ifindex: u32) -> Vec<u8> {
    const IFINDEX: usize = 40;
    let mut context = vec![0; IFINDEX];
    context.extend(ifindex.to_ne_bytes());
    context
}
