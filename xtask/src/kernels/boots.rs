//! Cases in several boots: one boot for all cases of a program takes hours under emulation.
//!
//! The first boot of a kernel lists the programs that load, and the cases. Each later boot runs as
//! many cases as take some minutes. A case whose machine ends or hangs is run again first in the
//! next boot, and fails if it does so there. The outputs of all boots are kept: `--resume`
//! continues a run that was stopped.

use std::{
    collections::HashSet,
    fs,
    hash::{DefaultHasher, Hash as _, Hasher as _},
    path::{Path, PathBuf},
    time::Instant,
};

use anyhow::{Context as _, Result};
use lb_build::progress::report;

use super::{
    guest::Step,
    outcome::{Outcome, Outcomes, outcomes},
    table::{LISTING, Row},
    vm::{self, Guest, Run},
};
use crate::task;

/// The variable with the path of a file that has the names of the cases that a program runs.
const CASES: &str = "SLUICE_CASES";

/// Cases of one test program.
#[derive(Clone, Debug)]
pub struct Group {
    /// The step that runs the program. Its name is the title in the table.
    pub step: Step,
    /// The most cases of one boot.
    pub cases: usize,
}

impl Group {
    /// Returns the step that prints the names of the cases.
    fn list(&self) -> Step {
        let mut step = Step { name: format!("list of {}", self.step.name), ..self.step.clone() };
        step.arguments.push("--list".to_owned());
        step
    }

    /// Returns the step that runs the cases in a file.
    fn slice(&self, file: &Path) -> Step {
        let mut step = self.step.clone();
        step.environment.push((CASES.to_owned(), file.display().to_string()));
        step
    }
}

/// Returns the names in the list of a test program.
fn names(list: &str) -> Vec<String> {
    list.lines().filter_map(|line| line.strip_suffix(": test")).map(str::to_owned).collect()
}

/// The boots of a kernel, each with a folder.
struct Boots {
    folder: PathBuf,
    earlier: Vec<Run>,
    count: usize,
}

impl Boots {
    /// Opens the folder of the boots. Boots of other programs, or of a kernel with other options,
    /// are removed, and without `resume` all are.
    fn open(folder: PathBuf, fingerprint: &str, resume: bool) -> Result<Self> {
        let mark = folder.join("fingerprint");
        let mut boots = Self { folder, earlier: Vec::new(), count: 0 };
        if resume && fs::read_to_string(&mark).is_ok_and(|mark| mark == fingerprint) {
            while boots.next().is_dir() {
                // A run that was stopped early may have left no results.
                boots.earlier.extend(vm::read(&boots.next()).ok().map(|(run, _)| run));
                boots.count += 1;
            }
            return Ok(boots);
        }
        if resume {
            report(task::KERNELS, "there is nothing to resume: programs, kernel or options changed");
        }
        let _ = fs::remove_dir_all(&boots.folder);
        fs::create_dir_all(&boots.folder)
            .with_context(|| format!("cannot create {}", boots.folder.display()))?;
        fs::write(&mark, fingerprint)?;
        Ok(boots)
    }

    /// Returns the folder of the next boot.
    fn next(&self) -> PathBuf {
        self.folder.join((self.count + 1).to_string())
    }

    fn run(&mut self, guest: &Guest<'_>, steps: &[Step]) -> Result<Run> {
        let folder = self.next();
        self.count += 1;
        guest.boot(&folder, steps)
    }
}

/// Returns a text that is another one if the programs in this folder, the kernel, or the options of
/// the guest change.
fn fingerprint(guest: &Guest<'_>, programs: &Path) -> Result<String> {
    let mut hasher = DefaultHasher::new();
    let mut paths = fs::read_dir(programs)?
        .map(|entry| entry.map(|entry| entry.path()))
        .collect::<Result<Vec<_>, _>>()?;
    paths.sort();
    for path in paths {
        fs::read(&path)?.hash(&mut hasher);
    }
    let task = &guest.task;
    Ok(format!("{} {:?} {:?} {:x}", task.release, task.lockdown, task.without, hasher.finish()))
}

/// The limits of a run.
pub struct Extent {
    /// Cases that passed or were not run in an earlier run are not run again.
    pub resume: bool,
    /// No boot starts after this time.
    pub end: Option<Instant>,
}

/// Runs the cases of all groups on a kernel.
pub fn run(
    guest: &Guest<'_>,
    listing: &Step,
    groups: &[Group],
    programs: &Path,
    extent: &Extent,
) -> Result<Row> {
    let release = &guest.task.release;
    let fingerprint = fingerprint(guest, programs)?;
    let mut boots = Boots::open(guest.folder.join("boots"), &fingerprint, extent.resume)?;
    let mut row = Row::new(release, guest.series);
    let lists: Vec<Step> = groups.iter().map(Group::list).collect();
    let has_list =
        |run: &Run| [listing].into_iter().chain(&lists).all(|step| run.output_of(&step.name).is_some());
    let mut earlier = std::mem::take(&mut boots.earlier);
    let first = match earlier.iter().position(has_list) {
        Some(position) => earlier.swap_remove(position),
        None => {
            let steps: Vec<Step> = [listing.clone()].into_iter().chain(lists.iter().cloned()).collect();
            boots.run(guest, &steps)?
        }
    };
    row.add_programs(first.output_of(LISTING).unwrap_or_default());
    row.seconds += first.seconds();
    let mut known = Outcomes::new();
    for run in &earlier {
        known.extend(outcomes(&run.output));
        row.seconds += run.seconds();
    }
    // The cause of a failure may be mended by now.
    known.retain(|_, outcome| *outcome != Outcome::Failed);
    let file = boots.folder.join("cases");
    let mut listed = HashSet::new();
    for (group, list) in groups.iter().zip(&lists) {
        let mut names = names(first.output_of(&list.name).unwrap_or_default());
        // A case may be in several groups.
        names.retain(|name| listed.insert(name.clone()));
        let mut of_group = Outcomes::new();
        for name in &names {
            of_group.extend(known.remove_entry(name));
        }
        loop {
            let left: Vec<&String> = names.iter().filter(|name| !of_group.contains_key(*name)).collect();
            report(task::KERNELS, &progress(release, &group.step.name, names.len(), &of_group));
            let slice = &left[..left.len().min(group.cases)];
            let [first, ..] = slice else { break };
            if extent.end.is_some_and(|end| Instant::now() > end) {
                println!("{}  {} cases are left: `--resume` runs them", guest.series, left.len());
                row.complete = false;
                break;
            }
            fs::write(&file, slice.iter().map(|name| format!("{name}\n")).collect::<String>())?;
            let run = boots.run(guest, &[group.slice(&file)])?;
            row.seconds += run.seconds();
            let mut ended = outcomes(&run.output);
            if ended.is_empty() {
                println!(
                    "{}  {first}: the machine, or the test program, ended before this case did",
                    guest.series
                );
                ended.insert((*first).clone(), Outcome::Failed);
            }
            let code = run.steps.first().and_then(|step| step.code);
            let is_complete = slice.iter().all(|name| ended.contains_key(*name));
            if is_complete && code != Some(0) && !ended.values().any(|outcome| *outcome == Outcome::Failed) {
                println!(
                    "{}  {}: no case failed, but the program returned {code:?}",
                    guest.series, group.step.name
                );
                row.complete = false;
            }
            of_group.extend(ended);
        }
        row.add_cases(&group.step.name, &of_group);
    }
    Ok(row)
}

/// Returns a line about the cases of a group.
fn progress(release: &str, group: &str, all: usize, outcomes: &Outcomes) -> String {
    let count = |counted: fn(&Outcome) -> bool| outcomes.values().filter(|outcome| counted(outcome)).count();
    let passed = count(|outcome| *outcome == Outcome::Passed);
    let failed = count(|outcome| *outcome == Outcome::Failed);
    let not_run = count(|outcome| matches!(outcome, Outcome::NotRun(_)));
    let left = all - outcomes.len().min(all);
    format!("Linux {release}: {group}: {passed} passed, {failed} failed, {not_run} not run here, {left} left")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_read_from_the_list_of_a_program() {
        assert_eq!(
            names("a::b: test\nmtu: too large (IPv4): test\n\n2 tests\n"),
            ["a::b", "mtu: too large (IPv4)"]
        );
    }

    #[test]
    fn boots_of_other_programs_are_not_resumed() {
        let folder = std::env::temp_dir().join(format!("sluice-boots-{}", std::process::id()));
        let opened = |fingerprint, resume| Boots::open(folder.clone(), fingerprint, resume).unwrap();
        let leave = |boots: &Boots| {
            fs::create_dir(boots.next()).unwrap();
            fs::write(boots.next().join("output"), "test a ... ok\n").unwrap();
            fs::write(boots.next().join("reports"), "").unwrap();
        };
        leave(&opened("one", false));
        let resumed = opened("one", true);
        assert_eq!((resumed.count, resumed.earlier.len()), (1, 1));
        assert_eq!(outcomes(&resumed.earlier[0].output).len(), 1);
        assert_eq!(opened("two", true).count, 0);
        leave(&opened("two", true));
        assert_eq!(opened("two", false).count, 0);
        fs::remove_dir_all(folder).unwrap();
    }

    #[test]
    fn a_line_counts_the_cases_of_a_group() {
        let outcomes = Outcomes::from([
            ("a".to_owned(), Outcome::Passed),
            ("b".to_owned(), Outcome::Failed),
            ("c".to_owned(), Outcome::NotRun("no bonds".to_owned())),
        ]);
        assert_eq!(
            progress("6.1", "e2e", 10, &outcomes),
            "Linux 6.1: e2e: 1 passed, 1 failed, 1 not run here, 7 left"
        );
    }
}
