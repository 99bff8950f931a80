use std::{fmt, io};

use super::error::CleanupError;

/// Tells of each thing as it is removed, and counts.
pub struct Report<'a, W> {
    out: &'a mut W,
    dry_run: bool,
    total: usize,
    failed: Vec<String>,
}

impl<'a, W: io::Write> Report<'a, W> {
    pub fn new(dry_run: bool, out: &'a mut W) -> Self {
        Self { out, dry_run, total: 0, failed: Vec::new() }
    }

    pub fn tell(&mut self, thing: impl fmt::Display, result: &Result<(), impl fmt::Display>) {
        self.total += 1;
        match result {
            Ok(()) if self.dry_run => self.line(format_args!("would remove {thing}")),
            Ok(()) => self.line(format_args!("removed {thing}")),
            Err(error) => {
                self.line(format_args!("not removed {thing}: {error}"));
                self.failed.push(format!("{thing}: {error}"));
            }
        }
    }

    pub fn note(&mut self, note: &str) {
        self.line(format_args!("note: {note}"));
    }

    fn line(&mut self, line: fmt::Arguments) {
        // Nobody may be reading: removing goes on.
        let _ = writeln!(self.out, "{line}");
    }

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
