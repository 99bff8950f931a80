//! Runs the kernel programs with `BPF_PROG_TEST_RUN`, for the packet cases and the benchmark.

mod listing;
mod segment;
mod subject;
pub mod world;

pub use listing::{ProgramListing, features};
pub use segment::Segment;
pub use subject::{
    Action, AddressKind, BackendEndpoint, Flow, Hook, Limits, Networks, Run, ServiceAddressEntry, Subject,
    load_options,
};
