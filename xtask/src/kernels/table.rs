//! Tables of the guests' reports, and the comparison with the limits.

use std::{collections::BTreeMap, fs, path::PathBuf};

use anyhow::{Context as _, Result, bail};
use serde::Deserialize;

use super::{
    arch::Arch,
    debian::NEWEST,
    outcome::{Outcome, Outcomes, outcomes},
    vm::Run,
};
use crate::{tally::Tally, workspace};

/// The step that prints which programs load.
pub const LISTING: &str = "programs";
/// The file with the limits of the programs.
const LIMITS: &str = "xtask/src/kernels/limits.txt";
/// The document that contains the tables, between marks. Each architecture has its own.
const DOCUMENT: &str = "docs/kernels.md";
const END: &str = "<!-- end -->\n";

/// Returns the mark before the tables of an architecture.
fn begin(arch: Arch) -> &'static str {
    match arch {
        Arch::X86_64 => "<!-- written by `cargo xtask test kernels --write` -->\n",
        Arch::Aarch64 => "<!-- written by `cargo xtask test kernels --arch aarch64 --write` -->\n",
    }
}

/// The output of `lb-testbed programs`.
#[derive(Clone, Debug, Default, Deserialize)]
pub struct ProgramListing {
    /// How tc programs are attached.
    pub tc: String,
    pub xdp: String,
    /// Verified instructions by program. `None` if the kernel does not count them (before 5.16).
    pub loaded: BTreeMap<String, Option<u32>>,
    /// The reason of each refused program.
    pub refused: BTreeMap<String, String>,
    /// Features that the kernel lacks.
    pub missing: Vec<String>,
}

/// The results of one kernel.
#[derive(Clone, Debug)]
pub struct Row {
    pub release: String,
    pub series: String,
    programs: Option<ProgramListing>,
    /// Results of the test programs by step, in order.
    tests: Vec<(String, Tally)>,
    /// How many cases were not run, by reason.
    skipped: BTreeMap<String, u64>,
    pub seconds: f64,
    /// Whether every planned case was run.
    pub complete: bool,
    /// The kernel interprets programs, and may refuse those that it would have to compile.
    pub interprets: bool,
}

/// The end of the kernel's reason for a program that it would have to compile.
const NEEDS_COMPILER: &str = "in non-JITed programs";

impl Row {
    pub fn new(release: &str, series: &str) -> Self {
        Self {
            release: release.to_owned(),
            series: series.to_owned(),
            programs: None,
            tests: Vec::new(),
            skipped: BTreeMap::new(),
            seconds: 0.0,
            complete: true,
            interprets: false,
        }
    }

    /// Returns the results of one machine.
    pub fn read(release: &str, series: &str, run: &Run) -> Self {
        let mut row = Self::new(release, series);
        row.complete = run.trouble.is_none();
        row.seconds = run.seconds();
        for ended in &run.steps {
            if ended.step == LISTING {
                row.add_programs(&ended.output);
                continue;
            }
            let tally = row.add_cases(&ended.step, &outcomes(&ended.output));
            // A step that ran no case shows nothing.
            if (ended.code != Some(0) || tally.passed == 0) && tally.failed == 0 {
                tally.failed = 1;
            }
        }
        row
    }

    /// Adds the output of the step [`LISTING`].
    pub fn add_programs(&mut self, output: &str) {
        self.programs = output.lines().find_map(|line| serde_json::from_str(line).ok());
    }

    /// Adds a column with the results of cases.
    pub fn add_cases(&mut self, title: &str, outcomes: &Outcomes) -> &mut Tally {
        let mut tally = Tally::default();
        for outcome in outcomes.values() {
            match outcome {
                Outcome::Passed => tally.count(true),
                Outcome::Failed => tally.count(false),
                Outcome::NotRun(reason) => *self.skipped.entry(reason.clone()).or_default() += 1,
            }
        }
        self.tests.push((title.to_owned(), tally));
        let (_, tally) = self.tests.last_mut().expect("it was added above");
        tally
    }

    /// Returns the sum of all tests on this kernel. A kernel that loads no program counts as
    /// failed, and so do tests that were not completed.
    pub fn tally(&self) -> Tally {
        let mut sum = Tally::default();
        for (_, tally) in &self.tests {
            sum = sum + tally.clone();
        }
        match &self.programs {
            Some(programs) => {
                sum.passed += programs.loaded.len() as u64;
                let is_expected = |reason: &&String| self.interprets && reason.contains(NEEDS_COMPILER);
                sum.failed += programs.refused.values().filter(|reason| !is_expected(reason)).count() as u64;
            }
            None => sum.failed += 1,
        }
        if !self.complete {
            sum.failed += 1;
        }
        sum
    }
}

/// Returns a line for each feature that the newest kernel lacks, and for each case that was not run
/// there. It must have every feature: otherwise a probe is wrong, and cases are skipped everywhere.
pub fn shortfalls(rows: &[Row]) -> Vec<String> {
    let newest = rows.iter().filter(|row| row.series == NEWEST);
    newest
        .flat_map(|row| {
            let missing = row.programs.iter().flat_map(|programs| &programs.missing);
            let missing = missing.map(|missing| format!("the newest kernel has {missing}"));
            let skipped = row.skipped.iter();
            missing.chain(
                skipped.map(|(reason, cases)| format!("{cases} cases not run on the newest: {reason}")),
            )
        })
        .collect()
}

/// Limits of verified instructions, by program and by series.
pub type Limits = BTreeMap<String, BTreeMap<String, u32>>;

pub fn limits() -> Result<Limits> {
    let path = workspace::root().join(LIMITS);
    let text = fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
    parse_limits(&text).with_context(|| format!("in {}", path.display()))
}

/// Parses the limits. The first line names the series. Each other line has a program and its
/// limits. `#` begins a comment.
fn parse_limits(text: &str) -> Result<Limits> {
    let mut lines = text.lines().filter(|line| !line.starts_with('#') && !line.trim().is_empty());
    let series: Vec<_> = lines.next().context("it is empty")?.split_whitespace().skip(1).collect();
    let mut limits = Limits::new();
    for line in lines {
        let mut words = line.split_whitespace();
        let program = words.next().context("a line without a program")?;
        let numbers = words.map(str::parse).collect::<Result<Vec<u32>, _>>();
        let numbers = numbers.with_context(|| format!("the limits of {program}"))?;
        if numbers.len() != series.len() {
            bail!("{program} has {} limits, and there are {} kernels", numbers.len(), series.len());
        }
        let of_series = series.iter().map(ToString::to_string).zip(numbers).collect();
        limits.insert(program.to_owned(), of_series);
    }
    Ok(limits)
}

/// Returns one line for each program that needs more verified instructions than its limit.
pub fn excesses(rows: &[Row], limits: &Limits) -> Vec<String> {
    let mut excesses = Vec::new();
    for row in rows {
        let loaded = row.programs.iter().flat_map(|programs| &programs.loaded);
        for (program, verified) in loaded {
            let Some(verified) = verified else { continue };
            let of_program = limits.get(program).map(|of_series| of_series.get(&row.series));
            match of_program {
                // A series without limits is tested on demand only.
                Some(None) => {}
                Some(Some(limit)) if verified <= limit => {}
                Some(Some(limit)) => excesses.push(format!(
                    "{program} needs {verified} verified instructions on {}: more than its limit of {limit} ({LIMITS})",
                    row.release
                )),
                None => excesses.push(format!("{program} has no limit in {LIMITS}")),
            }
        }
    }
    excesses.sort();
    excesses.dedup();
    excesses
}

/// Returns the tables in Markdown.
pub fn render(rows: &[Row]) -> String {
    let mut text = String::new();
    let mut steps: Vec<&str> = Vec::new();
    for (step, _) in rows.iter().flat_map(|row| &row.tests) {
        if !steps.contains(&step.as_str()) {
            steps.push(step);
        }
    }
    let titles = ["kernel", "programs loaded", "tc", "XDP"].into_iter().chain(steps.iter().copied());
    let titles: Vec<_> = titles.chain(["seconds"]).map(str::to_owned).collect();
    let mut lines = vec![titles];
    for row in rows {
        let mut line =
            vec![format!("{}{}", row.release, if row.complete { "" } else { " (did not complete)" })];
        match &row.programs {
            Some(programs) => {
                let (loaded, refused) = (programs.loaded.len(), programs.refused.len());
                line.push(format!("{loaded} of {}", loaded + refused));
                line.extend([programs.tc.clone(), programs.xdp.clone()]);
            }
            None => line.extend(["none", "–", "–"].map(str::to_owned)),
        }
        for step in &steps {
            let tally = row.tests.iter().find(|(name, _)| name == step).map(|(_, tally)| tally);
            line.push(tally.map_or("–".to_owned(), |tally| {
                format!("{} of {}", tally.passed, tally.passed + tally.failed)
            }));
        }
        line.push(format!("{:.0}", row.seconds));
        lines.push(line);
    }
    text.push_str(&table(&lines));
    text.push_str("\nInstructions that the verifier looks at:\n\n");
    text.push_str(&table(&verified(rows)));
    for row in rows {
        let Some(programs) = &row.programs else { continue };
        if !programs.missing.is_empty() || !programs.refused.is_empty() || !row.skipped.is_empty() {
            text.push_str(&format!("\nLinux {}:\n\n", row.release));
        }
        for missing in &programs.missing {
            text.push_str(&item(missing));
        }
        for (program, reason) in &programs.refused {
            text.push_str(&item(&format!("{program} is refused: {reason}")));
        }
        for (reason, cases) in &row.skipped {
            let cases = if *cases == 1 { "1 case is".to_owned() } else { format!("{cases} cases are") };
            text.push_str(&item(&format!("{cases} not run: {reason}")));
        }
    }
    text
}

/// Returns an item of a list in lines of at most 100 columns.
fn item(text: &str) -> String {
    let mut lines = vec![String::from("-")];
    for word in text.split_whitespace() {
        match lines.last_mut() {
            Some(line) if line.len() + 1 + word.len() <= 100 => {
                line.push(' ');
                line.push_str(word);
            }
            _ => lines.push(format!("  {word}")),
        }
    }
    lines.join("\n") + "\n"
}

/// Returns a table with a line for each program and a column for each kernel.
fn verified(rows: &[Row]) -> Vec<Vec<String>> {
    let programs = |row: &Row| row.programs.clone().unwrap_or_default();
    let titles = rows.iter().map(|row| row.release.clone());
    let mut lines = vec![std::iter::once("program".to_owned()).chain(titles).collect::<Vec<_>>()];
    let mut names: Vec<String> = rows
        .iter()
        .flat_map(|row| {
            let ProgramListing { loaded, refused, .. } = programs(row);
            loaded.into_keys().chain(refused.into_keys())
        })
        .collect();
    names.sort();
    names.dedup();
    for name in names {
        let cells = rows.iter().map(|row| match programs(row).loaded.get(&name) {
            Some(Some(verified)) => verified.to_string(),
            Some(None) => "loaded".to_owned(),
            None if programs(row).refused.contains_key(&name) => "refused".to_owned(),
            None => "–".to_owned(),
        });
        lines.push(std::iter::once(format!("`{name}`")).chain(cells).collect());
    }
    lines
}

/// Returns a Markdown table. The first line is its head.
fn table(lines: &[Vec<String>]) -> String {
    let mut text = String::new();
    for (number, line) in lines.iter().enumerate() {
        text.push_str(&format!("| {} |\n", line.join(" | ")));
        if number == 0 {
            text.push_str(&format!("|{}\n", "---|".repeat(line.len())));
        }
    }
    text
}

/// Replaces the tables of an architecture in the document.
pub fn write(table: &str, arch: Arch) -> Result<()> {
    let path: PathBuf = workspace::root().join(DOCUMENT);
    let text = fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
    let text = replaced(&text, begin(arch), table)
        .with_context(|| format!("{DOCUMENT} has no marks for the table"))?;
    fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))
}

fn replaced(text: &str, begin: &str, table: &str) -> Option<String> {
    let (before, rest) = text.split_once(begin)?;
    let (_, after) = rest.split_once(END)?;
    Some(format!("{before}{begin}\n{table}\n{END}{after}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(verified: u32) -> Row {
        let programs = ProgramListing {
            tc: "clsact".to_owned(),
            xdp: "native".to_owned(),
            loaded: BTreeMap::from([("lb_xdp".to_owned(), Some(verified)), ("lb_new".to_owned(), None)]),
            refused: BTreeMap::from([("lb_connected".to_owned(), "unknown func".to_owned())]),
            missing: vec!["no tcx".to_owned()],
        };
        let mut smoke = Tally::default();
        smoke.read("test result: FAILED. 20 passed; 1 failed; 0 ignored; 0 measured; 9 filtered out");
        Row {
            release: "6.1.0-56-cloud-amd64".to_owned(),
            series: "6.1".to_owned(),
            programs: Some(programs),
            tests: vec![("smoke".to_owned(), smoke)],
            skipped: BTreeMap::from([("this kernel has no bonds".to_owned(), 2)]),
            seconds: 61.4,
            complete: true,
            interprets: false,
        }
    }

    #[test]
    fn the_tables_have_a_line_for_each_kernel_and_each_program() {
        assert_eq!(
            render(&[row(54_230)]),
            "| kernel | programs loaded | tc | XDP | smoke | seconds |\n\
             |---|---|---|---|---|---|\n\
             | 6.1.0-56-cloud-amd64 | 2 of 3 | clsact | native | 20 of 21 | 61 |\n\
             \nInstructions that the verifier looks at:\n\n\
             | program | 6.1.0-56-cloud-amd64 |\n\
             |---|---|\n\
             | `lb_connected` | refused |\n\
             | `lb_new` | loaded |\n\
             | `lb_xdp` | 54230 |\n\
             \nLinux 6.1.0-56-cloud-amd64:\n\n\
             - no tcx\n\
             - lb_connected is refused: unknown func\n\
             - 2 cases are not run: this kernel has no bonds\n"
        );
    }

    #[test]
    fn only_a_kernel_without_the_compiler_may_refuse_programs() {
        let mut row = row(1);
        let reason = "tail_calls are not allowed in non-JITed programs with bpf-to-bpf calls";
        row.programs.as_mut().unwrap().refused.insert("lb_tc_egress".to_owned(), reason.to_owned());
        let failed = row.tally().failed;
        row.interprets = true;
        assert_eq!(row.tally().failed, failed - 1);
    }

    #[test]
    fn the_newest_kernel_lacks_nothing() {
        let newest = Row { series: "newest".to_owned(), ..row(1) };
        assert_eq!(
            shortfalls(&[row(1), newest]),
            ["the newest kernel has no tcx", "2 cases not run on the newest: this kernel has no bonds"]
        );
    }

    #[test]
    fn a_program_that_grows_past_its_limit_is_named() {
        let limits = parse_limits("# limits\nprogram 6.1 newest\nlb_xdp 60000 90000\nlb_new 1 1\n").unwrap();
        assert_eq!(excesses(&[row(60_000)], &limits), [""; 0]);
        let excess = excesses(&[row(60_001)], &limits);
        assert_eq!(excess.len(), 1);
        assert!(excess[0].starts_with("lb_xdp needs 60001 verified instructions on 6.1.0-56"), "{excess:?}");
        assert!(parse_limits("program 6.1 newest\nlb_xdp 60000\n").is_err());
    }

    #[test]
    fn the_table_goes_between_the_marks() {
        let [first, second] = [Arch::X86_64, Arch::Aarch64].map(begin);
        let text = |of_second: &str| format!("{first}old\n{END}between\n{second}{of_second}{END}after\n");
        assert_eq!(replaced(&text("old\n"), second, "new\n").unwrap(), text("\nnew\n\n"));
        assert_eq!(replaced("no marks", first, "new"), None);
    }
}
