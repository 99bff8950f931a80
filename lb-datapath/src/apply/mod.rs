//! Writes the desired Service ports of the planner to the service maps.
//!
//! [`Engine`] owns the service maps (through the [`tables::Tables`] trait). It assigns ids and
//! slots, and writes only what changed. The order of the writes ensures that no packet sees half of
//! a change:
//!
//! 1. Backends.
//! 2. Slots, always in a range that no service entry refers to.
//! 3. Source ranges.
//! 4. The name of the Service port.
//! 5. For each address, its flags and then its service entry.
//!
//! Then the engine removes what is no longer desired:
//!
//! 6. Service entries.
//! 7. Flags of addresses.
//! 8. Source ranges.
//! 9. Backends.
//! 10. The name of the Service port.
//!
//! Released ids and slots are reused only when nothing can refer to them:
//!
//! | released | may still be in use by | reused after |
//! |---|---|---|
//! | a range of slots | running programs | the grace period |
//! | a backend id, a service id | running programs, flows | the grace period and a later sweep |
//!
//! [`Engine::audit`] compares the maps with the records, for changes of other programs.
//!
//! **Invariant:** the records of the engine match the maps, also after a failed write. Every
//! operation starts from these records, so a failed operation can simply be repeated.

mod adopt;
mod audit;
mod demand;
mod engine;
pub(crate) mod entry;
mod error;
mod ids;
mod installed;
pub(crate) mod map_name;
mod marks;
#[cfg(any(test, feature = "test-util"))]
pub mod memory;
mod slots;
pub mod tables;
#[cfg(test)]
mod tests;

pub use audit::Audit;
pub use demand::Demand;
pub use engine::{Engine, ReferencedIds};
pub use entry::max_age_of;
pub use error::ApplyError;
pub use map_name::MapUsage;
