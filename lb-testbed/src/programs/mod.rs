//! Runs the kernel programs with `BPF_PROG_TEST_RUN`, for the packet cases and the benchmark.

mod listing;
mod subject;
pub mod world;

pub use listing::{Listing, features};
pub use subject::{
    Action, AddressKind, Endpoint, Flow, Hook, Limits, Networks, Run, ServiceEntry, Subject, load_options,
};
