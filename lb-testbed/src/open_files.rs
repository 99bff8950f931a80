//! The limit of open files.

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// Raises the limit of open files of this process to the highest that is allowed.
pub fn raise_limit() {
    let limit = getrlimit(Resource::Nofile);
    // On failure a process that opens too many files reports it.
    let _ = setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, maximum: limit.maximum });
}
