//! The data path: [`apply`] decides on map entries. The other modules load the programs, open their
//! maps and attach them. No other crate imports aya.
//!
//! Maps and links are pinned below [`Pins`], so they outlive an agent. The links keep the programs
//! attached. The next agent reuses the maps and replaces the programs in the links without a gap.

mod address;
pub mod apply;
pub mod attachments;
mod btf;
mod call_counter;
mod connection_copy;
mod conversion;
mod datapath;
mod drift;
mod endpoint_table;
mod endpoints;
pub mod events;
mod family_table;
mod features;
mod field_copy;
mod filters;
mod first_filter;
mod first_filter_needs;
pub mod flows;
mod handles;
mod health;
mod hooks;
mod host_maps;
pub mod inspect;
mod known_addresses;
mod links;
mod loads;
pub mod netlink;
mod overloaded;
mod own_maps;
mod pin_repair;
mod pins;
mod port_shortage;
mod programs;
mod raw_map;
mod recorder;
mod refused_program;
mod service_tables;
mod settings;
mod sizes;
mod step;
mod sweeper;
mod sys;
mod table;
mod usage;

pub use self::call_counter::{CallCounter, Calls};
pub use self::conversion::{GrowError, NewGeneration};
pub use self::datapath::Datapath;
pub use self::drift::{Drift, DriftKind};
pub use self::endpoints::{Endpoints, ServedSocket};
pub use self::features::Features;
pub use self::first_filter::Tidied;
pub use self::flows::{AgedFlow, FlowEntry, FlowUsage};
pub use self::health::LeftOutEndpoint;
pub use self::host_maps::HostMaps;
pub use self::inspect::{AffinityClient, AffinityEntry};
pub use self::links::{AttachError, Attached, TargetDevice};
pub use self::loads::{DrainingEndpoints, ServiceLoad};
pub use self::pins::Pins;
pub use self::port_shortage::EndpointShortage;
pub use self::programs::{DatapathLog, LoadError, LoadOptions, ProgramStatistics, TcAttach};
pub use self::recorder::{Occasion, Recorded, attached_devices, serves_sockets};
pub use self::refused_program::RefusedProgram;
pub use self::service_tables::ServiceTables;
pub use self::sizes::{LARGEST_MAP, MapSizes, mebibytes};
pub use self::sweeper::Sweeper;
pub use self::sys::{TestRun, device_index, device_name, monotonic_ns, namespace_cookie};
