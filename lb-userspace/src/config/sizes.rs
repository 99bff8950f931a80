//! The flags for the sizes of the BPF maps.

use lb_datapath::{MapSizes, mebibytes};

/// The capacity of each map, in entries. If there is one map for each IP family, both have this
/// size.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::Args)]
pub struct SizeFlags {
    /// Capacity for Service addresses and Service ports. A Service has one address for each port,
    /// IP family and kind (ClusterIP, NodePort, …)
    #[arg(
        long,
        env = "SLUICE_MAX_SERVICES",
        value_name = "N",
        default_value_t = 65_536,
        value_parser = size(),
        help_heading = "Map sizes"
    )]
    pub max_services: u32,

    /// Capacity for slots: one for each endpoint, for each Service port, traffic policy and IP
    /// family
    ///
    /// Reserve twice as many: while endpoints change, old and new slots exist together.
    #[arg(
        long,
        env = "SLUICE_MAX_SLOTS",
        value_name = "N",
        default_value_t = 1_048_576,
        value_parser = size(),
        help_heading = "Map sizes"
    )]
    pub max_slots: u32,

    /// Capacity for endpoints of Service ports
    #[arg(
        long,
        env = "SLUICE_MAX_BACKENDS",
        value_name = "N",
        default_value_t = 262_144,
        value_parser = size(),
        help_heading = "Map sizes"
    )]
    pub max_backends: u32,

    /// Capacity for connections that are translated packet by packet
    #[arg(
        long,
        env = "SLUICE_MAX_FLOWS",
        value_name = "N",
        default_value_t = 131_072,
        value_parser = size(),
        help_heading = "Map sizes"
    )]
    pub max_flows: u32,

    /// Capacity for fragmented datagrams that have not arrived completely
    #[arg(
        long,
        env = "SLUICE_MAX_FRAGMENTS",
        value_name = "N",
        default_value_t = 8_192,
        value_parser = size(),
        help_heading = "Map sizes"
    )]
    pub max_fragments: u32,

    /// Capacity for Service addresses that unconnected UDP sockets use, two entries for each
    #[arg(
        long,
        env = "SLUICE_MAX_SOCKET_PEERS",
        value_name = "N",
        default_value_t = 65_536,
        value_parser = size(),
        help_heading = "Map sizes"
    )]
    pub max_socket_peers: u32,

    /// Capacity for networks in the loadBalancerSourceRanges of all Service ports
    ///
    /// While they change, old and new networks exist together.
    #[arg(
        long,
        env = "SLUICE_MAX_SOURCE_RANGES",
        value_name = "N",
        default_value_t = 65_536,
        value_parser = size(),
        help_heading = "Map sizes"
    )]
    pub max_source_ranges: u32,

    /// Capacity for clients of Service ports with session affinity, for both IP families together
    ///
    /// If the map is full, the least recently used clients are removed.
    #[arg(
        long,
        env = "SLUICE_MAX_AFFINITY",
        value_name = "N",
        default_value_t = 65_536,
        value_parser = size(),
        help_heading = "Map sizes"
    )]
    pub max_affinity: u32,
}

/// Accepts 16 to 16 million entries. 16 million flows need about 2 GiB of memory.
fn size() -> clap::builder::RangedI64ValueParser<u32> {
    clap::value_parser!(u32).range(16..=16_777_216)
}

impl SizeFlags {
    /// Returns the sizes for the data path.
    pub fn map_sizes(&self) -> MapSizes {
        let &Self {
            max_services,
            max_slots,
            max_backends,
            max_flows,
            max_fragments,
            max_socket_peers,
            max_source_ranges,
            max_affinity,
        } = self;
        MapSizes {
            max_services,
            max_slots,
            max_backends,
            max_flows,
            max_fragments,
            max_socket_peers,
            max_source_ranges,
            max_affinity,
        }
    }

    /// Adds the memory use at the default size to the help of each flag.
    pub fn with_memory_in_help(agent: clap::Command) -> clap::Command {
        agent.mut_args(|arg| {
            let cost = MapSizes::ENTRY_BYTES.into_iter().find(|(id, _)| arg.get_id() == id);
            let default =
                arg.get_default_values().first().and_then(|value| value.to_str()?.parse::<usize>().ok());
            let (Some((_, bytes)), Some(entries)) = (cost, default) else { return arg };
            let help = arg.get_help().map(ToString::to_string).unwrap_or_default();
            arg.help(format!("{help} ({bytes} bytes each, {} MiB)", mebibytes(entries * bytes)))
        })
    }
}
