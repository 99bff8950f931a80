//! The kernel programs run by `BPF_PROG_TEST_RUN`: for the packet cases and for the benchmark.

pub mod world;
