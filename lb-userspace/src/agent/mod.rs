//! The agent.

mod lock;
#[expect(dead_code)]
mod logging;
mod network;
mod reconciler;

pub use lock::{LockError, NodeLock};
pub use network::{Attached, HostTables, Network, Step, Wanted};
pub use reconciler::{Outcome, Reconciler};
