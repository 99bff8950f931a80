//! Reports the figures as Markdown tables and as JSON.

use std::fmt::Write as _;
use std::path::Path as FilePath;

use anyhow::Result;
use lb_datapath::ProgramStatistics;
use lb_testbed::documents::replace_between;
use lb_testbed::measure::{cpu, kernel, median};
use serde::Serialize;

use crate::paths::{Path, Sample};

/// [`Report::write_into`] replaces the text between these two lines of a document.
const BEGIN: &str = "<!-- begin: cargo xtask bench programs --write-docs -->";
const END: &str = "<!-- end: cargo xtask bench programs -->";

/// The figures of all rounds of one path, with a number of Services loaded.
pub struct Figures {
    path: Path,
    services: usize,
    samples: Vec<Sample>,
}

impl Figures {
    pub fn new(path: &Path, services: usize) -> Self {
        Self { path: *path, services, samples: Vec::new() }
    }

    pub fn add(&mut self, sample: Sample) {
        self.samples.push(sample);
    }
}

/// All figures, in the format of the JSON file.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Report {
    kernel: String,
    cpu: String,
    rounds: usize,
    paths: Vec<Line>,
    programs: Vec<Program>,
}

/// Nanoseconds per packet.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Line {
    hook: &'static str,
    case: &'static str,
    family: &'static str,
    protocol: &'static str,
    services: usize,
    /// Median over the rounds.
    median: f64,
    /// Median of the floor program over the rounds.
    floor_median: f64,
    /// Median of the differences between path and floor program, one for each round.
    above_floor: f64,
    above_floor_min: f64,
    above_floor_max: f64,
    /// Target above the floor program. Only XDP has one.
    target: Option<u32>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Program {
    name: String,
    verified_instructions: u32,
    translated_bytes: u32,
    machine_code_bytes: u32,
}

impl Report {
    pub fn new(rounds: usize, figures: Vec<Figures>, statistics: Vec<ProgramStatistics>) -> Result<Self> {
        let programs = statistics.into_iter().map(|program| Program {
            name: program.name,
            verified_instructions: program.verified_instructions,
            translated_bytes: program.translated_bytes,
            machine_code_bytes: program.machine_code_bytes,
        });
        Ok(Self {
            kernel: kernel(),
            cpu: cpu()?,
            rounds,
            paths: figures.into_iter().map(Line::of).collect(),
            programs: programs.collect(),
        })
    }

    /// Returns the figures as Markdown that is also readable in a terminal.
    pub fn table(&self) -> String {
        let mut text = format!(
            "Linux {}, {}.\nMedians of {} rounds, with the smallest and largest figure of a round in brackets.\n",
            self.kernel, self.cpu, self.rounds
        );
        for hook in ["XDP", "tc"] {
            let _ = writeln!(text, "\n{hook}: nanoseconds per packet above the floor program");
            let _ = writeln!(
                text,
                "(The floor program takes {:.0} ns. It is an XDP program, so the figures of tc include the skb.)\n",
                self.floor(hook)
            );
            let _ = writeln!(
                text,
                "| {:<42} | {:<8} | {:>17} | {:>17} | {:>6} |",
                "path", "packet", "1 Service", "100,000 Services", "target"
            );
            let _ = writeln!(
                text,
                "|{}|{}|{}:|{}:|{}:|",
                "-".repeat(44),
                "-".repeat(10),
                "-".repeat(18),
                "-".repeat(18),
                "-".repeat(7)
            );
            let lines: Vec<&Line> = self.paths.iter().filter(|line| line.hook == hook).collect();
            for pair in lines.chunks(2) {
                let [few, many] = pair else { continue };
                let packet = format!("{} {}", few.family, few.protocol);
                let target = few.target.map_or("–".to_owned(), |target| target.to_string());
                let _ = writeln!(
                    text,
                    "| {:<42} | {packet:<8} | {:>17} | {:>17} | {target:>6} |",
                    few.case,
                    few.cell(),
                    many.cell()
                );
            }
        }
        text += "\nSize of the programs\n\n";
        let _ = writeln!(
            text,
            "| {:<18} | {:>21} | {:>15} | {:>18} |",
            "program", "verified instructions", "eBPF bytes", "machine code bytes"
        );
        let _ = writeln!(
            text,
            "|{}|{}:|{}:|{}:|",
            "-".repeat(20),
            "-".repeat(22),
            "-".repeat(16),
            "-".repeat(19)
        );
        for program in &self.programs {
            let _ = writeln!(
                text,
                "| {:<18} | {:>21} | {:>15} | {:>18} |",
                program.name,
                program.verified_instructions,
                program.translated_bytes,
                program.machine_code_bytes
            );
        }
        text
    }

    fn floor(&self, hook: &str) -> f64 {
        median(self.paths.iter().filter(|line| line.hook == hook).map(|line| line.floor_median).collect())
    }

    /// Replaces the text between the marks of a document with the table.
    pub fn write_into(&self, path: &FilePath) -> Result<()> {
        replace_between(path, BEGIN, END, &self.table())
    }
}

impl Line {
    fn of(figures: Figures) -> Self {
        let Figures { path, services, samples } = figures;
        let mut differences: Vec<f64> = samples.iter().map(|sample| sample.path - sample.floor).collect();
        differences.sort_by(f64::total_cmp);
        Self {
            hook: path.hook_name(),
            case: path.work.describe(),
            family: path.family(),
            protocol: path.protocol_name(),
            services,
            median: median(samples.iter().map(|sample| sample.path).collect()),
            floor_median: median(samples.iter().map(|sample| sample.floor).collect()),
            above_floor: median(differences.clone()),
            above_floor_min: differences.first().copied().unwrap_or_default(),
            above_floor_max: differences.last().copied().unwrap_or_default(),
            target: if path.hook_name() == "XDP" { path.work.target(path.v6) } else { None },
        }
    }

    fn cell(&self) -> String {
        format!("{:.0} [{:.0}–{:.0}]", self.above_floor, self.above_floor_min, self.above_floor_max)
    }
}
