//! From wanted services to map entries.
//!
//! [`Engine`] owns the service maps (through the [`tables::Tables`] trait). It decides which ids and which slots an
//! object gets, writes only what changed, and in an order in which a packet never sees half of a change:
//!
//! 1. backends, 2. slots (always a range that nothing refers to), 3. source ranges, 4. the name, 5. for each address its mark
//!    and its entry; then what is no longer wanted: 6. entries, 7. marks of addresses, 8. source ranges, 9. backends,
//!    10. the name.
//!
//! What was withdrawn is reused only when nobody can still refer to it:
//!
//! | what | who may still refer to it | reused after |
//! |---|---|---|
//! | a range of slots | packets that are being handled | the grace period |
//! | a backend id, a service id | those, and flows | the grace period, and then a sweep of the flows without a hit |
//!
//! **Invariant:** the engine's records say what the maps hold, also after a write failed. Every operation starts from
//! the records, so trying again is always right, and is all that recovery needs.

mod adopt;
mod engine;
mod entry;
mod error;
mod ids;
pub(crate) mod map_name;
mod marks;
#[cfg(any(test, feature = "test-util"))]
pub mod memory;
mod slots;
pub mod tables;
#[cfg(test)]
mod tests;

pub use engine::{Engine, MapUsage, NamedByFlows};
pub use error::ApplyError;
