//! One builder at a time per folder; the kernel frees the lock when its process ends, however it ends.

use std::{
    fs::{File, TryLockError},
    path::Path,
};

use crate::{BuildError, TASK, progress::say};

/// Held until it is dropped. Waits for whoever has it, and says so.
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
            say(TASK, &format!("waiting for another process to finish {what} ({})", path.display()));
        }
        Err(TryLockError::Error(source)) => return Err(BuildError::file("lock", path, source)),
    }
    file.lock().map_err(|source| BuildError::file("lock", path, source))?;
    Ok(file)
}
