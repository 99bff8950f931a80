//! The flags for the sizes of the BPF maps.

use clap::error::ErrorKind;
use clap::{Arg, ArgMatches, Command};
use lb_datapath::{LARGEST_MAP, MapSizes, mebibytes};

/// The flags `--max-services` to `--max-affinity`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SizeFlags(pub MapSizes);

/// The flag for one field of [`MapSizes`].
struct SizeFlag {
    /// The name of the field.
    id: &'static str,
    long: &'static str,
    env: &'static str,
    /// The default, in entries.
    default: u32,
    help: &'static str,
    /// The rest of the long help.
    details: Option<&'static str>,
}

const MAX_FLOWS: SizeFlag = SizeFlag {
    id: "max_flows",
    long: "max-flows",
    env: "SLUICE_MAX_FLOWS",
    // This is the default of a machine whose memory is unknown, see `with_max_flows`.
    default: 131_072,
    help: "Capacity for connections that are translated packet by packet",
    details: Some(
        "The default follows the memory of the machine: one connection for each 32 KiB, rounded down \
         to a power of two, from 16384 (512 MiB) to 262144 (8 GiB). It does not follow the memory \
         limit of the agent's cgroup, although Linux 5.11 and later count the maps there: a limit \
         must leave room for them.",
    ),
};

const FLAGS: [SizeFlag; 8] = [
    SizeFlag {
        id: "max_services",
        long: "max-services",
        env: "SLUICE_MAX_SERVICES",
        default: 65_536,
        help: "Capacity for Service addresses and Service ports. A Service has one address for \
               each port, IP family and kind (ClusterIP, NodePort, …)",
        details: None,
    },
    SizeFlag {
        id: "max_slots",
        long: "max-slots",
        env: "SLUICE_MAX_SLOTS",
        default: 1_048_576,
        help: "Capacity for slots: one for each endpoint, for each Service port, traffic policy \
               and IP family",
        details: Some("Reserve twice as many: while endpoints change, old and new slots exist together."),
    },
    SizeFlag {
        id: "max_backends",
        long: "max-backends",
        env: "SLUICE_MAX_BACKENDS",
        default: 262_144,
        help: "Capacity for endpoints of Service ports",
        details: None,
    },
    MAX_FLOWS,
    SizeFlag {
        id: "max_fragments",
        long: "max-fragments",
        env: "SLUICE_MAX_FRAGMENTS",
        default: 8_192,
        help: "Capacity for fragmented datagrams that have not arrived completely",
        details: None,
    },
    SizeFlag {
        id: "max_socket_peers",
        long: "max-socket-peers",
        env: "SLUICE_MAX_SOCKET_PEERS",
        default: 65_536,
        help: "Capacity for Service addresses that unconnected UDP sockets use, two entries for each",
        details: None,
    },
    SizeFlag {
        id: "max_source_ranges",
        long: "max-source-ranges",
        env: "SLUICE_MAX_SOURCE_RANGES",
        default: 65_536,
        help: "Capacity for networks in the loadBalancerSourceRanges of all Service ports",
        details: Some("While they change, old and new networks exist together."),
    },
    SizeFlag {
        id: "max_affinity",
        long: "max-affinity",
        env: "SLUICE_MAX_AFFINITY",
        default: 65_536,
        help: "Capacity for clients of Service ports with session affinity, for both IP families \
               together",
        details: Some("If the map is full, the least recently used clients are removed."),
    },
];

/// Changes the default of the flag `--max-flows` to that of this machine.
pub fn with_max_flows(flag: Arg, default: u32) -> Arg {
    SizeFlag { default, ..MAX_FLOWS }.describe(flag)
}

/// Accepts 16 to 16 million entries. 16 million flows need about 2 GiB of memory.
fn size() -> clap::builder::RangedI64ValueParser<u32> {
    clap::value_parser!(u32).range(16..=LARGEST_MAP.into())
}

impl SizeFlag {
    /// Returns the flag.
    fn arg(&self) -> Arg {
        let arg = Arg::new(self.id)
            .long(self.long)
            .env(self.env)
            .value_name("N")
            .value_parser(size())
            .help_heading("Map sizes");
        self.describe(arg)
    }

    /// Sets default and help. The help contains the memory use at the default size.
    fn describe(&self, arg: Arg) -> Arg {
        let entry = MapSizes::ENTRY_BYTES.into_iter().find(|(id, _)| *id == self.id);
        let bytes = entry.map_or(0, |(_, bytes)| bytes);
        let memory = mebibytes(self.default as usize * bytes);
        let help = format!("{} ({bytes} bytes each, {memory} MiB)", self.help);
        let arg = arg.default_value(self.default.to_string()).help(help.clone());
        match self.details {
            Some(details) => arg.long_help(format!("{help}\n\n{details}")),
            None => arg,
        }
    }
}

impl clap::Args for SizeFlags {
    fn augment_args(command: Command) -> Command {
        command.args(FLAGS.iter().map(SizeFlag::arg))
    }

    fn augment_args_for_update(command: Command) -> Command {
        Self::augment_args(command)
    }
}

impl clap::FromArgMatches for SizeFlags {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Self, clap::Error> {
        let missing = || clap::Error::new(ErrorKind::MissingRequiredArgument);
        let size = |id| matches.get_one::<u32>(id).copied().ok_or_else(missing);
        Ok(Self(MapSizes {
            max_services: size("max_services")?,
            max_slots: size("max_slots")?,
            max_backends: size("max_backends")?,
            max_flows: size("max_flows")?,
            max_fragments: size("max_fragments")?,
            max_socket_peers: size("max_socket_peers")?,
            max_source_ranges: size("max_source_ranges")?,
            max_affinity: size("max_affinity")?,
        }))
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), clap::Error> {
        *self = Self::from_arg_matches(matches)?;
        Ok(())
    }
}
