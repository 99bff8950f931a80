//! The agent: one main loop that applies API events, changes of the host and the passing of time
//! to the data path.
//!
//! ```text
//! source ─ events ─► Reconciler (planner, engine) ─► service maps
//! node ─ devices, addresses, namespaces ─► HostReconciler ─► attachments, host maps
//! clock ─► retries, requests to sweep    all three ─► log, /healthz
//! ```
//!
//! * `run`: starts everything in order, then runs the `main_loop`.
//! * `source`: the API server or a folder of manifests, as a channel of events.
//! * `reconciler`: service maps. `host_reconciler`: maps about this host, and attachments.
//! * `api_address`: reports an API server that is reached through a Service.
//! * `coalesce`: limits how often one Service is written.
//! * `desired_host`: pure functions that compute the desired host maps. `host_tables`: writes them.
//! * `drift`: reports what another program has changed in the kernel, which the reconcilers repair.
//! * `full_maps`: the nearly full maps that were reported.
//! * `reload`: applies changes of the configuration file.
//! * `sweep`: the thread that reads the flow table and ends connections.
//! * `stale_sockets`: closes sockets that are connected to removed endpoints.
//! * [`once`]: writes everything once, without a loop, for `lb explain --manifests`.
//!
//! **Invariant:** the data path stays as it is when this process ends, for whatever reason.

mod api_address;
mod coalesce;
mod connection_ages;
mod desired_host;
mod drain_limits;
mod drift;
mod error;
mod full_maps;
mod growth;
mod host_reconciler;
mod host_tables;
mod lock;
pub mod logging;
mod main_loop;
pub mod once;
mod options;
mod reconciler;
mod reload;
mod run;
mod source;
mod stale_sockets;
pub mod stop;
mod sweep;

pub use error::AgentError;
pub use lock::{LockError, NodeLock};
pub use options::load_options;
pub use reload::ReadAgain;
pub use run::run;
