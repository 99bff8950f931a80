//! The figures, and their ratios to those of a connection to the pod itself.

use std::fmt::Write as _;
use std::path::Path;

use anyhow::Result;
use lb_testbed::Family;
use lb_testbed::control_plane::ServiceProxy;
use lb_testbed::documents::replace_between;
use lb_testbed::measure::{cpu, kernel, load_averages, median, median_and_range};
use serde::Serialize;

const BEGIN: &str = "<!-- begin: cargo xtask bench connect --write-docs -->";
const END: &str = "<!-- end: cargo xtask bench connect -->";

/// What is measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Figure {
    SameNode,
    OtherNode,
    /// To the pod itself, while the proxy runs.
    PastServices,
}

impl Figure {
    /// Returns the name of the Service.
    pub fn service(self) -> &'static str {
        match self {
            Self::SameNode => "near",
            Self::OtherNode | Self::PastServices => "far",
        }
    }

    fn name(self) -> &'static str {
        match self {
            Self::SameNode => "a Service, endpoint on the same node",
            Self::OtherNode => "a Service, endpoint on another node",
            Self::PastServices => "the address of a pod on another node",
        }
    }

    /// Returns the figure that a connection without a proxy has, and the smallest ratio of its CPU
    /// time to this one.
    fn baseline(self) -> (Self, f64) {
        match self {
            Self::SameNode | Self::OtherNode => (self, 0.97),
            Self::PastServices => (Self::OtherNode, 0.99),
        }
    }
}

/// Returns all figures.
pub fn figures() -> impl Iterator<Item = (Figure, Family)> {
    [Figure::SameNode, Figure::OtherNode, Figure::PastServices]
        .into_iter()
        .flat_map(|figure| Family::BOTH.map(|family| (figure, family)))
}

/// Returns the name of a subject.
pub fn name(subject: Option<ServiceProxy>) -> String {
    subject.map_or_else(|| "no proxy".to_owned(), |proxy| proxy.to_string())
}

/// Both in microseconds.
#[derive(Debug, Clone, Copy, Serialize)]
pub struct Sample {
    /// CPU time of client and server.
    pub cpu: f64,
    /// Median from `connect` to the end of the connection.
    pub latency: f64,
}

#[derive(Debug, Serialize)]
struct Entry {
    figure: Figure,
    family: String,
    subject: String,
    #[serde(flatten)]
    sample: Sample,
}

#[derive(Debug, Serialize)]
pub struct Report {
    kernel: String,
    cpu: String,
    load_at_start: String,
    entries: Vec<Entry>,
}

impl Report {
    pub fn new() -> Result<Self> {
        Ok(Self { kernel: kernel(), cpu: cpu()?, load_at_start: load_averages()?, entries: Vec::new() })
    }

    pub fn add(&mut self, figure: Figure, family: Family, subject: Option<ServiceProxy>, sample: Sample) {
        let (family, subject) = (family.to_string(), name(subject));
        self.entries.push(Entry { figure, family, subject, sample });
    }

    fn samples(&self, figure: Figure, family: Family, subject: &str) -> Vec<Sample> {
        let family = family.to_string();
        let is_wanted =
            |entry: &&Entry| entry.figure == figure && entry.family == family && entry.subject == subject;
        self.entries.iter().filter(is_wanted).map(|entry| entry.sample).collect()
    }

    pub fn table(&self) -> String {
        let mut text =
            format!("Linux {}, {}. Load at the start: {}.\n\n", self.kernel, self.cpu, self.load_at_start);
        text.push_str(
            "Medians of the rounds, with the smallest and largest figure. The ratio is the CPU time \
             without\na proxy, divided by that of the proxy.\n\n",
        );
        text.push_str("| a connection to | proxy | CPU, µs | latency, µs | ratio | target | verdict |\n");
        text.push_str("|---|---|--:|--:|--:|--:|---|\n");
        let mut subjects: Vec<&str> = Vec::new();
        for entry in &self.entries {
            if !subjects.contains(&entry.subject.as_str()) {
                subjects.push(&entry.subject);
            }
        }
        for (figure, family) in figures() {
            let (baseline, target) = figure.baseline();
            let direct = self.samples(baseline, family, &name(None));
            let direct = median(direct.iter().map(|sample| sample.cpu).collect());
            for subject in &subjects {
                let samples = self.samples(figure, family, subject);
                if samples.is_empty() {
                    continue;
                }
                let times: Vec<f64> = samples.iter().map(|sample| sample.cpu).collect();
                let time = median(times.clone());
                let times = median_and_range(times, 1);
                let latency = median(samples.iter().map(|sample| sample.latency).collect());
                let ratio = direct / time;
                let (target, verdict) = match *subject == ServiceProxy::Sluice.to_string() {
                    true if ratio >= target => (target.to_string(), "met"),
                    true => (target.to_string(), "missed"),
                    false => ("–".to_owned(), "–"),
                };
                let _ = writeln!(
                    text,
                    "| {}, {family} | {subject} | {times} | {latency:.1} | \
                     {ratio:.2} | {target} | {verdict} |",
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
