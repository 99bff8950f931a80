//! Ingress objects become routes.
//!
//! **Invariant:** a change of an object builds only the hosts that it names.
//! **Invariant:** an Ingress that is invalid in part is served in all other parts, and each invalid
//! part is reported with object, field, reason and remedy.

mod class;
mod compile;
mod few;
mod host;
mod objects;
mod problems;
mod translator;

pub use class::ClassRules;
pub(crate) use class::class_of;
pub use few::Few;
pub use objects::{DefaultBackend, NamedSecrets, Objects};
pub use problems::OpenProblems;
pub use translator::{NEEDED, Settings, Translator, Update};
