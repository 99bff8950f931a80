//! Results of the parts and the table at the end.

use std::{fmt, ops::Add, time::Duration};

/// Result of one part.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    pub passed: u64,
    pub failed: u64,
    /// The part did not run.
    skipped: bool,
    /// Why the part failed or was skipped, or what it left out, unless the output of its tests
    /// shows that.
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

    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// Adds the last line of a test program: `test result: ok. 6 passed; 0 failed; 0 ignored; …`.
    /// Ignores other lines.
    pub fn read(&mut self, line: &str) {
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

/// Results of all parts. Its text is a table.
#[derive(Default)]
pub struct Report {
    parts: Vec<(String, Tally, Duration)>,
}

impl Report {
    pub fn add(&mut self, part: String, tally: Tally, time: Duration) {
        self.parts.push((part, tally, time));
    }

    pub fn has_failed(&self) -> bool {
        self.parts.iter().any(|(_, tally, _)| !tally.has_no_failure())
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{:<10}{:>8}{:>8}{:>10}", "part", "passed", "failed", "seconds")?;
        for (name, tally, time) in &self.parts {
            if tally.skipped {
                write!(f, "{name:<10}{:>8}{:>8}{:>10}", "-", "-", "skipped")?;
            } else {
                let seconds = time.as_secs_f64();
                write!(f, "{name:<10}{:>8}{:>8}{seconds:>10.1}", tally.passed, tally.failed)?;
            }
            match &tally.note {
                Some(note) => writeln!(f, "  {}", note.replace('\n', "\n    "))?,
                None => writeln!(f)?,
            }
        }
        let sum = |count: fn(&Tally) -> u64| self.parts.iter().map(|(_, tally, _)| count(tally)).sum::<u64>();
        write!(f, "\n{} passed, {} failed", sum(|tally| tally.passed), sum(|tally| tally.failed))?;
        let skipped: Vec<_> =
            self.parts.iter().filter(|(_, tally, _)| tally.skipped).map(|(name, ..)| name.as_str()).collect();
        if !skipped.is_empty() {
            write!(f, ", skipped: {}", skipped.join(" "))?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::{Report, Tally};

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
    fn the_last_line_of_the_report_sums_up_all_parts() {
        let mut report = Report::default();
        let tally = Tally { passed: 9, failed: 2, ..Tally::default() };
        report.add("unit".to_owned(), tally, Duration::from_millis(1500));
        report.add("e2e".to_owned(), Tally::failed("needs root"), Duration::ZERO);
        report.add("cluster".to_owned(), Tally::skipped("no Go\nremedy: install it"), Duration::ZERO);
        assert_eq!(
            report.to_string(),
            "part        passed  failed   seconds\n\
             unit             9       2       1.5\n\
             e2e              0       1       0.0  needs root\n\
             cluster          -       -   skipped  no Go\n    remedy: install it\n\
             \n\
             9 passed, 3 failed, skipped: cluster"
        );
        assert!(report.has_failed());
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
