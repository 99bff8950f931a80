//! The kernel programs run by `BPF_PROG_TEST_RUN`: for the packet cases and for the benchmark.

mod subject;
pub mod world;

pub use subject::{
    Action, Endpoint, Flow, Hook, Kind, Limits, Networks, Run, ServiceEntry, Subject, load_options,
};
