//! The agent.

mod lock;
mod reconciler;

pub use lock::{LockError, NodeLock};

pub use reconciler::{Outcome, Reconciler};
