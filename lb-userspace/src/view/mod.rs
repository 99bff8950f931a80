//! What the tools print, as pure functions of what stands in the maps.

mod affinity;
mod backends;
pub mod explain;
#[cfg(test)]
mod fixture;
mod flows;
mod output;
mod row;
mod service_port;
mod services;
mod table;

pub use affinity::{AffinityRow, affinity_rows};
pub use backends::{BackendRow, backend_rows};
pub use flows::{FlowRow, flow_rows};
pub use output::{Output, OutputError, render};
pub use row::Row;
pub use service_port::{Backends, Filter, Names, ServicePort, Slots, SourceRanges};
pub use services::{ServiceRow, service_rows};
pub use table::Table;
