//! What is being done, while it is done, on standard error.

use std::time::Instant;

pub(crate) fn say(text: &str) {
    eprintln!("build-ebpf: {text}");
}

/// Runs `work` and says how long it took if that was more than a second.
pub(crate) fn timed<T, E>(done: &str, work: impl FnOnce() -> Result<T, E>) -> Result<T, E> {
    let start = Instant::now();
    let result = work()?;
    let seconds = start.elapsed().as_secs();
    if seconds >= 1 {
        say(&format!("{done} in {seconds} s"));
    }
    Ok(result)
}
