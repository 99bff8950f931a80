//! Renders map entries as tables, JSON and YAML. All functions here are pure.

mod affinity;
mod backends;
pub mod doctor;
pub mod explain;
#[cfg(test)]
mod fixture;
mod flows;
pub mod http;
mod migration;
pub mod monitor;
mod output;
mod row;
mod service_port;
mod services;
mod table;
pub mod top;
pub mod top_screen;

pub use affinity::{AffinityRow, affinity_rows};
pub use backends::{BackendRow, EndpointFacts, backend_rows};
pub use flows::{FlowRow, flow_rows};
pub use migration::{ReportFormat, render_report};
pub use output::{OutputError, OutputFormat, render};
pub use row::Row;
pub use service_port::{BackendsById, NamedServicePort, Names, ServiceFilter, Slots, SourceRangesById};
pub use services::{ServiceEntries, ServiceRow, service_rows};
pub use table::TextTable;
