//! The figures, and the table with a verdict for each.

use std::fmt::Write as _;
use std::path::Path;

use anyhow::Result;
use lb_testbed::documents::replace_between;
use lb_testbed::measure::{cpu, kernel, load_averages, median, percentile};
use serde::Serialize;

use crate::bed::Size;
use crate::changes::{Change, Phase};

const BEGIN: &str = "<!-- begin: cargo xtask bench agent --write-docs -->";
const END: &str = "<!-- end: cargo xtask bench agent -->";

/// All figures, in the format of the JSON file.
#[derive(Debug, Serialize)]
pub struct Report {
    kernel: String,
    cpu: String,
    /// The load averages of the machine at the start.
    load: String,
    pub sizes: Vec<Figures>,
}

/// The figures of one size.
#[derive(Debug, Serialize)]
pub struct Figures {
    pub size: Size,
    pub starts: Vec<Start>,
    pub memory: Memory,
    /// CPU time without changes, in percent of one CPU.
    pub idle: f64,
    pub phases: Vec<Phase>,
}

/// Seconds of one start, from nothing to the complete initial sync.
#[derive(Debug, Clone, Copy, Serialize)]
pub struct Start {
    pub seconds: f64,
    /// CPU time of the agent.
    pub cpu: f64,
    /// The part in which the kernel programs are loaded.
    pub load: f64,
}

/// MiB of the agent after its start.
#[derive(Debug, Clone, Copy, Serialize)]
pub struct Memory {
    pub resident: f64,
    pub peak: f64,
    /// The part that is no file and no map.
    pub anonymous: f64,
}

/// A row of the table.
struct Row {
    name: String,
    figures: Vec<Figure>,
    target: Option<f64>,
}

/// The value that is compared with the target, and the smallest and largest one if there are more.
#[derive(Clone, Copy)]
struct Figure {
    value: f64,
    range: Option<(f64, f64)>,
}

impl Report {
    pub fn new() -> Result<Self> {
        Ok(Self { kernel: kernel(), cpu: cpu()?, load: load_averages()?, sizes: Vec::new() })
    }

    pub fn table(&self) -> String {
        let mut text =
            format!("Linux {}, {}, load averages {} at the start.\n\n| |", self.kernel, self.cpu, self.load);
        for figures in &self.sizes {
            let _ = write!(text, " {} |", figures.size);
        }
        text += " target | figure / target | verdict |\n|---|";
        text += &"--:|".repeat(self.sizes.len());
        text += "--:|--:|---|\n";
        for row in self.rows() {
            let _ = writeln!(text, "{}", row.line());
        }
        text
    }

    fn rows(&self) -> Vec<Row> {
        let starts = |of: fn(&Start) -> f64| {
            self.each(move |figures| Figure::median(figures.starts.iter().map(of).collect()))
        };
        let memory = |of: fn(&Memory) -> f64| self.each(move |figures| Figure::one(of(&figures.memory)));
        let mut rows = vec![
            Row::new("start until ready, s", starts(|start| start.seconds), None),
            Row::new("of these, loading the kernel programs, s", starts(|start| start.load), None),
            Row::new("CPU time of the agent for a start, s", starts(|start| start.cpu), Some(2.0)),
            Row::new("resident memory, MiB", memory(|memory| memory.resident), Some(60.0)),
            Row::new("resident memory at its peak, MiB", memory(|memory| memory.peak), None),
            Row::new("anonymous memory, MiB", memory(|memory| memory.anonymous), None),
            Row::new(
                "CPU without changes, % of one CPU",
                self.each(|figures| Figure::one(figures.idle)),
                Some(0.1),
            ),
        ];
        let phases = self.sizes.first().map_or(0, |figures| figures.phases.len());
        for phase in 0..phases {
            rows.extend(self.rows_of_phase(phase));
        }
        rows
    }

    fn rows_of_phase(&self, phase: usize) -> Vec<Row> {
        let name = self.sizes[0].phases[phase].describe();
        let updates = |percent| {
            self.each(move |figures| Figure::one(percentile(figures.phases[phase].updates.clone(), percent)))
        };
        let changes = |percent, of: fn(&Change) -> f64| {
            self.each(move |figures| {
                let times = figures.phases[phase].changes.iter().map(of).collect();
                Figure::one(percentile(times, percent))
            })
        };
        let mut rows = Vec::new();
        if self.sizes[0].phases[phase].load.churn > 0 {
            let churn = self.each(|figures| Figure::one(figures.phases[phase].churn));
            rows.push(Row::new(format!("{name}: their changes a second"), churn, None));
        }
        if self.sizes[0].phases[phase].load.flows > 0 {
            let flows = self.each(|figures| Figure::one(figures.phases[phase].flows));
            rows.push(Row::new(format!("{name}: connections"), flows, None));
        }
        rows.extend([
            Row::new(format!("{name}: event to map, p50, ms"), updates(50.0), None),
            Row::new("the same, p99, ms", updates(99.0), Some(1.0)),
            Row::new(
                "event at another watch to map, p50, ms",
                changes(50.0, |change| change.since_event),
                None,
            ),
            Row::new("the same, p99, ms", changes(99.0, |change| change.since_event), None),
            Row::new(
                "API server's answer to map, p50, ms",
                changes(50.0, |change| change.since_answer),
                None,
            ),
            Row::new("the same, p99, ms", changes(99.0, |change| change.since_answer), None),
            Row::new("request to map, p50, ms", changes(50.0, |change| change.since_request), None),
            Row::new("the same, p99, ms", changes(99.0, |change| change.since_request), None),
        ]);
        rows
    }

    fn each(&self, of: impl Fn(&Figures) -> Figure) -> Vec<Figure> {
        self.sizes.iter().map(of).collect()
    }

    /// Replaces the text between the marks of a document with the table.
    pub fn write_into(&self, path: &Path) -> Result<()> {
        replace_between(path, BEGIN, END, &self.table())
    }
}

impl Row {
    fn new(name: impl Into<String>, figures: Vec<Figure>, target: Option<f64>) -> Self {
        Self { name: name.into(), figures, target }
    }

    fn line(&self) -> String {
        let mut text = format!("| {} |", self.name);
        for figure in &self.figures {
            let _ = write!(text, " {} |", figure.cell());
        }
        let (target, ratios, verdict) = match self.target {
            None => ("–".to_owned(), "–".to_owned(), "–".to_owned()),
            Some(target) => {
                let ratio = |figure: &Figure| format!("{:.2}", figure.value / target);
                let ratios = self.figures.iter().map(ratio).collect::<Vec<_>>().join(", ");
                let met = |figure: &Figure| if figure.value <= target { "met" } else { "missed" };
                (target.to_string(), ratios, self.figures.iter().map(met).collect::<Vec<_>>().join(", "))
            }
        };
        let _ = write!(text, " {target} | {ratios} | {verdict} |");
        text
    }
}

impl Figure {
    fn one(value: f64) -> Self {
        Self { value, range: None }
    }

    fn median(values: Vec<f64>) -> Self {
        let range = (percentile(values.clone(), 0.0), percentile(values.clone(), 100.0));
        Self { value: median(values), range: Some(range) }
    }

    fn cell(self) -> String {
        match self.range {
            Some((least, most)) => format!("{} [{}–{}]", number(self.value), number(least), number(most)),
            None => number(self.value),
        }
    }
}

/// Large numbers need no fractions.
fn number(value: f64) -> String {
    if value.abs() >= 1000.0 { format!("{value:.0}") } else { format!("{value:.2}") }
}
