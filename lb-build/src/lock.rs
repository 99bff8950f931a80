//! Locks a folder for one build at a time. The kernel releases the lock when its process ends, in
//! whatever way.

use std::{
    fs::{File, TryLockError},
    path::Path,
};

use crate::{constants::TASK, error::BuildError, progress::report};

/// Takes the lock, which is held until the file is dropped. Waits while another process holds it,
/// and reports the wait.
pub(crate) fn exclusive(path: &Path, what: &str) -> Result<File, BuildError> {
    let file = File::options()
        .create(true)
        .truncate(false)
        .write(true)
        .open(path)
        .map_err(|source| BuildError::file("open the lock", path, source))?;
    match file.try_lock() {
        Ok(()) => return Ok(file),
        Err(TryLockError::WouldBlock) => {
            report(TASK, &format!("waiting for another process to finish {what} ({})", path.display()));
        }
        Err(TryLockError::Error(source)) => return Err(BuildError::file("lock", path, source)),
    }
    file.lock().map_err(|source| BuildError::file("lock", path, source))?;
    Ok(file)
}
