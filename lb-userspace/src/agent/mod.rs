//! The agent.

mod lock;

pub use lock::{LockError, NodeLock};
