//! The flags for the sizes of the BPF maps.

use lb_datapath::{MapSizes, mebibytes};

/// How many entries each map can hold. Where a map exists per family, each of the two gets this size.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::Args)]
pub struct SizeFlags {
    /// Service addresses (a Service has one per port, family and kind), and Service ports by name
    #[arg(
        long,
        env = "SLUICE_MAX_SERVICES",
        value_name = "N",
        default_value_t = 65_536,
        value_parser = size(),
        help_heading = "Map sizes"
    )]
    pub max_services: u32,

    /// Slots: the endpoints of all Service ports, counted once per Service port, policy and family; allow for as many again while they change
    #[arg(
        long,
        env = "SLUICE_MAX_SLOTS",
        value_name = "N",
        default_value_t = 1_048_576,
        value_parser = size(),
        help_heading = "Map sizes"
    )]
    pub max_slots: u32,

    /// Endpoints of all Service ports
    #[arg(
        long,
        env = "SLUICE_MAX_BACKENDS",
        value_name = "N",
        default_value_t = 262_144,
        value_parser = size(),
        help_heading = "Map sizes"
    )]
    pub max_backends: u32,

    /// Connections that are translated packet by packet
    #[arg(
        long,
        env = "SLUICE_MAX_FLOWS",
        value_name = "N",
        default_value_t = 131_072,
        value_parser = size(),
        help_heading = "Map sizes"
    )]
    pub max_flows: u32,

    /// Datagrams whose fragments are under way
    #[arg(
        long,
        env = "SLUICE_MAX_FRAGMENTS",
        value_name = "N",
        default_value_t = 8_192,
        value_parser = size(),
        help_heading = "Map sizes"
    )]
    pub max_fragments: u32,

    /// Service addresses that unconnected UDP sockets talk to, two entries each
    #[arg(
        long,
        env = "SLUICE_MAX_SOCKET_PEERS",
        value_name = "N",
        default_value_t = 65_536,
        value_parser = size(),
        help_heading = "Map sizes"
    )]
    pub max_socket_peers: u32,

    /// Networks in the loadBalancerSourceRanges of all Service ports; while they change, old and new ones are counted
    #[arg(
        long,
        env = "SLUICE_MAX_SOURCE_RANGES",
        value_name = "N",
        default_value_t = 65_536,
        value_parser = size(),
        help_heading = "Map sizes"
    )]
    pub max_source_ranges: u32,

    /// Clients of Service ports with session affinity, both families together; the ones that were silent longest leave
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

/// Hash maps of fewer entries are of no use; 16 million are about 2 GiB of flows.
fn size() -> clap::builder::RangedI64ValueParser<u32> {
    clap::value_parser!(u32).range(16..=16_777_216)
}

impl SizeFlags {
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

    /// Adds what each size costs to its help.
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
