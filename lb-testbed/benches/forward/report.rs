//! The figures, and their ratios to what they are compared with.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::Path;

use anyhow::Result;
use lb_testbed::Family;
use lb_testbed::documents::replace_between;
use lb_testbed::measure::{cpu, kernel, load_averages, median, median_and_range};
use serde::Serialize;

use crate::bed::Subject;

const BEGIN: &str = "<!-- begin: cargo xtask bench forward --write-docs -->";
const END: &str = "<!-- end: cargo xtask bench forward -->";

/// What is measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Figure {
    Requests,
    Replies,
    NewConnections,
}

impl Figure {
    const ALL: [Self; 3] = [Self::Requests, Self::Replies, Self::NewConnections];

    fn name(self) -> &'static str {
        match self {
            Self::Requests => "open connections, requests",
            Self::Replies => "open connections, replies",
            Self::NewConnections => "each packet a new connection",
        }
    }
}

/// The cost of `of`, divided by that of `by`, and the targets: the smallest ratio for open and for
/// new connections.
struct Ratio {
    of: Subject,
    by: Subject,
    open: f64,
    new: f64,
}

const RATIOS: [Ratio; 4] = [
    Ratio { of: Subject::Floor, by: Subject::SluiceXdp, open: 0.85, new: 0.7 },
    Ratio { of: Subject::Routing, by: Subject::SluiceTc, open: 1.0, new: 0.86 },
    Ratio { of: Subject::KubeProxyNftables, by: Subject::SluiceXdp, open: 3.4, new: 7.0 },
    Ratio { of: Subject::KubeProxyIptables, by: Subject::SluiceXdp, open: 4.0, new: 9.0 },
];

#[derive(Debug, Serialize)]
struct Sample {
    figure: Figure,
    family: String,
    subject: Subject,
    nanoseconds: f64,
}

#[derive(Debug, Serialize)]
pub struct Report {
    kernel: String,
    cpu: String,
    load_at_start: String,
    samples: Vec<Sample>,
}

impl Report {
    pub fn new() -> Result<Self> {
        Ok(Self { kernel: kernel(), cpu: cpu()?, load_at_start: load_averages()?, samples: Vec::new() })
    }

    pub fn add(&mut self, figure: Figure, family: Family, subject: Subject, nanoseconds: f64) {
        self.samples.push(Sample { figure, family: family.to_string(), subject, nanoseconds });
    }

    /// Returns the figures of the rounds by subject.
    fn rounds(&self, figure: Figure, family: Family) -> BTreeMap<Subject, Vec<f64>> {
        let mut rounds: BTreeMap<_, Vec<f64>> = BTreeMap::new();
        let family = family.to_string();
        for sample in self.samples.iter().filter(|sample| sample.figure == figure && sample.family == family)
        {
            rounds.entry(sample.subject).or_default().push(sample.nanoseconds);
        }
        rounds
    }

    pub fn table(&self) -> String {
        let subjects = Subject::ALL.into_iter();
        let subjects: Vec<Subject> =
            subjects.filter(|subject| self.samples.iter().any(|sample| sample.subject == *subject)).collect();
        let mut text =
            format!("Linux {}, {}. Load at the start: {}.\n\n", self.kernel, self.cpu, self.load_at_start);
        text.push_str(
            "Nanoseconds of one CPU for a packet; medians, with the smallest and largest figure.\n\n",
        );
        let names: Vec<_> = subjects.iter().map(|subject| subject.name()).collect();
        let _ = writeln!(text, "| packets | {} |", names.join(" | "));
        let _ = writeln!(text, "|---|{}", "--:|".repeat(subjects.len()));
        for (figure, family) in figures() {
            let rounds = self.rounds(figure, family);
            let cells = subjects.iter().map(|subject| {
                rounds.get(subject).map_or("–".to_owned(), |of| median_and_range(of.clone(), 0))
            });
            let _ =
                writeln!(text, "| {}, {family} | {} |", figure.name(), cells.collect::<Vec<_>>().join(" | "));
        }
        text.push_str("\n| ratio of costs | packets | ratio | target | verdict |\n|---|---|--:|--:|---|\n");
        for Ratio { of, by, open, new } in RATIOS {
            for (figure, family) in figures() {
                let rounds = self.rounds(figure, family);
                let (Some(of_rounds), Some(by_rounds)) = (rounds.get(&of), rounds.get(&by)) else { continue };
                let ratio = median(of_rounds.clone()) / median(by_rounds.clone());
                let target = if figure == Figure::NewConnections { new } else { open };
                let verdict = if ratio >= target { "met" } else { "missed" };
                let _ = writeln!(
                    text,
                    "| {} : {} | {}, {family} | {ratio:.2} | {target} | {verdict} |",
                    of.name(),
                    by.name(),
                    figure.name()
                );
            }
        }
        text
    }

    /// Replaces the text between the marks of a document with the table.
    pub fn write_into(&self, path: &Path) -> Result<()> {
        replace_between(path, BEGIN, END, &self.table())
    }
}

fn figures() -> impl Iterator<Item = (Figure, Family)> {
    Figure::ALL.into_iter().flat_map(|figure| Family::BOTH.map(|family| (figure, family)))
}
