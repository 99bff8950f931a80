//! The figures, and the table with a verdict for each.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::Path;

use anyhow::Result;
use lb_testbed::documents::replace_between;
use serde::Serialize;

use crate::load::{CASES, Case, Sample};
use crate::scale::Scale;
use crate::subjects::{SUBJECTS, Subject};

const BEGIN: &str = "<!-- begin: cargo xtask bench ingress --write-docs -->";
const END: &str = "<!-- end: cargo xtask bench ingress -->";

#[derive(Debug, Default, Serialize)]
pub struct Report {
    samples: BTreeMap<&'static str, BTreeMap<Subject, Vec<Sample>>>,
    pub scale: Option<Scale>,
}

impl Report {
    pub fn add(&mut self, case: &Case, subject: Subject, sample: Sample) {
        self.samples.entry(case.name).or_default().entry(subject).or_default().push(sample);
    }

    /// Returns the median, smallest and largest figure of a case.
    fn figures(
        &self,
        case: &Case,
        subject: Subject,
        of: impl Fn(&Sample) -> Option<f64>,
    ) -> Option<[f64; 3]> {
        let samples = self.samples.get(case.name)?.get(&subject)?;
        let mut values: Vec<f64> = samples.iter().filter_map(of).collect();
        values.sort_by(f64::total_cmp);
        Some([*values.get(values.len() / 2)?, *values.first()?, *values.last()?])
    }

    pub fn table(&self) -> String {
        let mut text = String::new();
        let kernel = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
        let _ = writeln!(
            text,
            "Linux {}, one CPU for each proxy. Medians of the rounds, with the smallest and largest\nfigure in \
             brackets.\n",
            kernel.trim()
        );
        text.push_str(
            "| load | proxy | CPU, µs a request | p50 ms | p99 ms | to nginx | target | verdict |\n",
        );
        text.push_str("|---|---|--:|--:|--:|--:|--:|---|\n");
        for case in &CASES {
            let nginx = self.figures(case, Subject::Nginx, |sample| Some(sample.cpu));
            for subject in SUBJECTS {
                let Some(cpu) = self.figures(case, subject, |sample| Some(sample.cpu)) else { continue };
                let latency = |of: fn(&Sample) -> Option<f64>| {
                    self.figures(case, subject, of)
                        .map_or("–".to_owned(), |[median, ..]| format!("{median:.2}"))
                };
                let ratio = nginx.map_or(0.0, |nginx| nginx[0] / cpu[0]);
                let ours = matches!(subject, Subject::Sluice | Subject::SluiceNoLog);
                let (target, verdict) = match ours {
                    true if ratio >= case.target => (case.target.to_string(), "met"),
                    true => (case.target.to_string(), "missed"),
                    false => ("–".to_owned(), "–"),
                };
                let _ = writeln!(
                    text,
                    "| {} | {} | {:.1} [{:.1}–{:.1}] | {} | {} | {ratio:.2} | {target} | {verdict} |",
                    case.name,
                    subject.name(),
                    cpu[0],
                    cpu[1],
                    cpu[2],
                    latency(|sample| sample.p50),
                    latency(|sample| sample.p99),
                );
            }
        }
        if let Some(scale) = &self.scale {
            let _ = writeln!(
                text,
                "\n| {} Ingresses × 3 endpoints, from manifests | figure | target | verdict |",
                scale.ingresses
            );
            text.push_str("|---|--:|--:|---|\n");
            for (name, figure, target) in [
                ("start until ready, s", scale.start, 2.0),
                ("resident memory, MiB", scale.memory, 60.0),
                ("change of a file to its effect, p50, ms", scale.p50, 20.0),
                ("the same, p99, ms", scale.p99, 50.0),
                ("CPU time of a change, ms", scale.cpu, 1.0),
            ] {
                let verdict = if figure <= target { "met" } else { "missed" };
                let _ = writeln!(text, "| {name} | {figure:.1} | {target} | {verdict} |");
            }
        }
        text
    }

    /// Replaces the text between the marks of a document with the table.
    pub fn write_into(&self, path: &Path) -> Result<()> {
        replace_between(path, BEGIN, END, &self.table())
    }
}
