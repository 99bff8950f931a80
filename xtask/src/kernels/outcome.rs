//! The results of cases, read from the output of a test program.

use std::collections::BTreeMap;

/// The result of a case.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    Passed,
    Failed,
    /// The case was not run, for this reason.
    NotRun(String),
}

impl Outcome {
    fn parse(text: &str) -> Option<Self> {
        match text {
            "ok" => Some(Self::Passed),
            "FAILED" => Some(Self::Failed),
            _ => {
                let reason = text.strip_prefix("ignored (")?.strip_suffix(')')?;
                Some(Self::NotRun(reason.to_owned()))
            }
        }
    }
}

/// Results by the names of the cases.
pub type Outcomes = BTreeMap<String, Outcome>;

/// Returns the results in the output of a test program. Other lines may stand between the name of a
/// case and its result.
pub fn outcomes(output: &str) -> Outcomes {
    let mut outcomes = Outcomes::new();
    let mut running = None;
    for line in output.lines() {
        let mut result = line;
        if let Some((name, rest)) = line.strip_prefix("test ").and_then(|line| line.split_once(" ... ")) {
            running = Some(name.trim_end());
            result = rest;
        }
        if let (Some(name), Some(outcome)) = (running, Outcome::parse(result)) {
            outcomes.insert(name.to_owned(), outcome);
            running = None;
        }
    }
    outcomes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn results_are_read_from_the_output_of_a_program() {
        let output = "running 4 tests\n\
            test tc::routed::a   ... ok\n\
            test b: of two (IPv4, tc) ... a line of another program\n\
            and one more\n\
            FAILED\n\
            test c ... ignored (this kernel has no bonds (CONFIG_BONDING))\n\
            ok\n\
            test d ... ";
        let expected = [
            ("b: of two (IPv4, tc)", Outcome::Failed),
            ("c", Outcome::NotRun("this kernel has no bonds (CONFIG_BONDING)".to_owned())),
            ("tc::routed::a", Outcome::Passed),
        ];
        let expected = expected.map(|(name, outcome)| (name.to_owned(), outcome));
        assert_eq!(outcomes(output), Outcomes::from(expected));
    }
}
