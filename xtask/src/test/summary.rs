//! The table of results at the end.

use std::{fmt, time::Duration};

use crate::tally::Tally;

/// Results of all parts. Its text is a table.
#[derive(Default)]
pub struct TestSummary {
    parts: Vec<(String, Tally, Duration)>,
}

impl TestSummary {
    pub fn add(&mut self, part: String, tally: Tally, time: Duration) {
        self.parts.push((part, tally, time));
    }

    pub fn has_failed(&self) -> bool {
        self.parts.iter().any(|(_, tally, _)| !tally.has_no_failure())
    }
}

impl fmt::Display for TestSummary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{:<10}{:>8}{:>8}{:>10}", "part", "passed", "failed", "seconds")?;
        for (name, tally, time) in &self.parts {
            if tally.is_skipped() {
                write!(f, "{name:<10}{:>8}{:>8}{:>10}", "-", "-", "skipped")?;
            } else {
                let seconds = time.as_secs_f64();
                write!(f, "{name:<10}{:>8}{:>8}{seconds:>10.1}", tally.passed, tally.failed)?;
            }
            match tally.note() {
                Some(note) => writeln!(f, "  {}", note.replace('\n', "\n    "))?,
                None => writeln!(f)?,
            }
        }
        let sum = |count: fn(&Tally) -> u64| self.parts.iter().map(|(_, tally, _)| count(tally)).sum::<u64>();
        write!(f, "\n{} passed, {} failed", sum(|tally| tally.passed), sum(|tally| tally.failed))?;
        let skipped: Vec<_> = self
            .parts
            .iter()
            .filter(|(_, tally, _)| tally.is_skipped())
            .map(|(name, ..)| name.as_str())
            .collect();
        if !skipped.is_empty() {
            write!(f, ", skipped: {}", skipped.join(" "))?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::{Tally, TestSummary};

    #[test]
    fn the_last_line_of_the_report_sums_up_all_parts() {
        let mut report = TestSummary::default();
        let mut tally = Tally::default();
        tally.passed = 9;
        tally.failed = 2;
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
}
