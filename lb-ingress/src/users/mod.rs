//! Users and passwords of HTTP Basic authentication: from Secrets to the decision about a request.
//!
//! **Invariant:** no password and no hash appears in a log, an error or a `Debug` text.

mod password;
mod secret;
mod store;

pub use secret::{UsersFault, users_fault};
pub use store::{UserStore, Verdict};
