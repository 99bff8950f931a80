//! The result of a part of the tests.

use std::ops::Add;

/// How a test program begins the line about a case that failed at first.
const UNSTABLE: &str = "passed only when it ran again: ";

/// Result of one part.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    pub passed: u64,
    pub failed: u64,
    /// The part did not run.
    skipped: bool,
    /// The reason why the part failed or was skipped, the checks that it left out, or the cases
    /// that failed at first.
    note: Option<String>,
}

impl Tally {
    pub fn failed(note: impl ToString) -> Self {
        Self { failed: 1, note: Some(note.to_string()), ..Self::default() }
    }

    pub fn skipped(reason: impl ToString) -> Self {
        Self { skipped: true, note: Some(reason.to_string()), ..Self::default() }
    }

    /// Turns a skipped part into a failed one.
    pub fn require(self) -> Self {
        if self.skipped { Self { skipped: false, failed: 1, ..self } } else { self }
    }

    pub fn with_note(self, note: impl ToString) -> Self {
        Self { note: Some(note.to_string()), ..self }
    }

    /// Adds one check.
    pub fn count(&mut self, passed: bool) {
        if passed {
            self.passed += 1;
        } else {
            self.failed += 1;
        }
    }

    pub fn has_no_failure(&self) -> bool {
        self.failed == 0
    }

    pub fn is_skipped(&self) -> bool {
        self.skipped
    }

    /// Returns the reason why the part failed or was skipped, the checks that it left out, or the
    /// cases that failed at first.
    pub fn note(&self) -> Option<&str> {
        self.note.as_deref()
    }

    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// Adds the last line of a test program: `test result: ok. 6 passed; 0 failed; 0 ignored; …`.
    /// Notes a case that failed at first. Ignores other lines.
    pub fn read(&mut self, line: &str) {
        if line.starts_with(UNSTABLE) {
            let note = self.note.get_or_insert_default();
            note.push_str(if note.is_empty() { "" } else { "\n" });
            note.push_str(line);
        }
        let Some(result) = line.strip_prefix("test result: ") else { return };
        for item in result.split(['.', ';']) {
            let mut words = item.split_whitespace();
            if let (Some(Ok(count)), Some(what)) = (words.next().map(str::parse::<u64>), words.next()) {
                match what {
                    "passed" => self.passed += count,
                    "failed" => self.failed += count,
                    _ => {}
                }
            }
        }
    }
}

impl Add for Tally {
    type Output = Self;

    fn add(self, other: Self) -> Self {
        Self {
            passed: self.passed + other.passed,
            failed: self.failed + other.failed,
            skipped: self.skipped && other.skipped,
            note: self.note.or(other.note),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::Tally;

    #[test]
    fn the_results_of_several_test_programs_add_up() {
        let mut tally = Tally::default();
        for line in [
            "running 6 tests",
            "test a ... ok",
            "test result: ok. 6 passed; 0 failed; 0 ignored; 0 measured; 2 filtered out; finished in 0.01s",
            "test result: FAILED. 3 passed; 2 failed; 0 ignored; 0 measured; 0 filtered out; finished in 1.51s",
        ] {
            tally.read(line);
        }
        assert_eq!(tally, Tally { passed: 9, failed: 2, ..Tally::default() });
    }

    #[test]
    fn cases_that_failed_at_first_are_noted() {
        let mut tally = Tally::default();
        for line in [
            "passed only when it ran again: tc::a: no answer",
            "test result: ok. 6 passed; 0 failed; 0 ignored; 0 measured; 0 filtered out; finished in 1.51s",
            "passed only when it ran again: xdp::b: refused",
        ] {
            tally.read(line);
        }
        assert!(tally.has_no_failure());
        assert_eq!(
            tally.note(),
            Some(
                "passed only when it ran again: tc::a: no answer\n\
                 passed only when it ran again: xdp::b: refused"
            )
        );
    }

    #[test]
    fn a_skipped_part_fails_only_where_it_is_required() {
        let skipped = Tally::skipped("no Go");
        assert!(skipped.has_no_failure());
        assert_eq!(skipped.require(), Tally::failed("no Go"));
        let passed = Tally { passed: 1, ..Tally::default() };
        assert_eq!(passed.clone().require(), passed);
    }
}
