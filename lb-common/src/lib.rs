//! Code that the kernel programs and the agent share.
//!
//! * [`layout`]: keys and values of the BPF maps, an interface that `docs/maps.md` documents.
//! * [`event`]: the layouts of the maps for `lb monitor`.
//! * [`family`]: IPv4 and IPv6 behind one trait, so that the pipeline is written once.
//! * [`age`]: the time when a socket was connected, in two bytes.
//! * [`hash`]: the slot of a client.
//! * [`health`]: when an endpoint is left out, and when it is tried again.
//! * [`load`]: the open connections of endpoints, and their comparison.
//! * [`plain`]: the types that are copied byte by byte.
//! * [`reason`]: the reasons that the programs count, and the errors of refused calls.
//! * [`checksum`]: ones' complement arithmetic (RFC 1071, RFC 1624).
//! * [`connection`]: the phases of a connection, its time-outs, and which connections give way.
//! * [`crc32c`]: the checksum of an SCTP packet whose ports change (RFC 9260).
//! * [`filter`]: the bits by which most packets are recognized that are not for Sluice.
//! * [`handover`]: the phases of a conversion of the maps.
//! * [`sctp`]: SCTP chunks as TCP flags (RFC 9260).
//! * [`threshold`]: when an endpoint has too many connections to get new ones.
//! * [`traffic`]: what `cargo xtask bench forward` sends and counts.
//! * [`wire`]: header constants and offsets.
//!
//! Nothing here does I/O, allocates, or can panic. The same code is compiled for the kernel and
//! tested on the host.
#![no_std]
#![deny(unsafe_code)]

pub mod age;
pub mod checksum;
pub mod connection;
pub mod crc32c;
pub mod event;
pub mod family;
pub mod filter;
pub mod handover;
pub mod hash;
pub mod health;
pub mod layout;
pub mod load;
#[cfg(feature = "other-layout")]
pub mod other_layout;
#[expect(
    unsafe_code,
    reason = "the trait that other crates trust when they copy bytes; its macro proves each implementation"
)]
pub mod plain;
#[expect(unsafe_code, reason = "implementations that the macro proves")]
mod plain_layouts;
pub mod reason;
pub mod sctp;
pub mod threshold;
#[expect(unsafe_code, reason = "implementations that the macro proves")]
pub mod traffic;
pub mod wire;

/// One second in nanoseconds.
pub const SECOND: u64 = 1_000_000_000;
