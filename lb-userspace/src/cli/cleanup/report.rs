//! The report of a cleanup.

use std::{fmt, io};

use super::error::CleanupError;

/// Writes one line for each item, and counts items and failures.
pub struct CleanupReport<'a, W> {
    out: &'a mut W,
    dry_run: bool,
    total: usize,
    failed: Vec<String>,
}

impl<'a, W: io::Write> CleanupReport<'a, W> {
    pub fn new(dry_run: bool, out: &'a mut W) -> Self {
        Self { out, dry_run, total: 0, failed: Vec::new() }
    }

    /// Writes the outcome of the removal of one item.
    pub fn log_removal(&mut self, item: impl fmt::Display, result: &Result<(), impl fmt::Display>) {
        self.total += 1;
        match result {
            Ok(()) if self.dry_run => self.line(format_args!("would remove {item}")),
            Ok(()) => self.line(format_args!("removed {item}")),
            Err(error) => {
                self.line(format_args!("not removed {item}: {error}"));
                self.failed.push(format!("{item}: {error}"));
            }
        }
    }

    pub fn note(&mut self, note: &str) {
        self.line(format_args!("note: {note}"));
    }

    fn line(&mut self, line: fmt::Arguments) {
        // The reader of the output may be gone. The removal goes on.
        let _ = writeln!(self.out, "{line}");
    }

    /// Returns an error if an item could not be removed.
    pub fn finish(mut self) -> Result<(), CleanupError> {
        if self.total == 0 {
            self.line(format_args!("nothing to remove"));
        }
        match self.failed.first() {
            None => Ok(()),
            Some(first) => Err(CleanupError::Incomplete {
                failed: self.failed.len(),
                total: self.total,
                first: first.clone(),
            }),
        }
    }
}
