//! Output of the demo: numbered headings, aligned tables, and colours on a terminal only.

use std::env;
use std::io::{IsTerminal, stdout};
use std::time::Instant;

use anyhow::{Result, bail};

/// Meaning of a text; on a terminal its colour.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Tone {
    Plain,
    Good,
    Bad,
}

/// A cell of a table.
pub struct Cell {
    text: String,
    tone: Tone,
}

impl Cell {
    pub fn new(text: impl Into<String>, tone: Tone) -> Self {
        Self { text: text.into(), tone }
    }

    /// "ok", or the problem.
    pub fn verdict(problem: Option<&str>) -> Self {
        match problem {
            None => Self::new("ok", Tone::Good),
            Some(problem) => Self::new(problem, Tone::Bad),
        }
    }
}

impl<T: Into<String>> From<T> for Cell {
    fn from(text: T) -> Self {
        Self::new(text, Tone::Plain)
    }
}

pub struct Screen {
    colour: bool,
    start: Instant,
    section: u32,
}

const INDENT: &str = "   ";

impl Screen {
    pub fn new() -> Self {
        // https://no-color.org
        let colour = stdout().is_terminal() && env::var_os("NO_COLOR").is_none();
        Self { colour, start: Instant::now(), section: 0 }
    }

    /// Returns the seconds since the start.
    pub fn seconds(&self) -> f32 {
        self.start.elapsed().as_secs_f32()
    }

    pub fn heading(&mut self, text: &str) {
        self.section += 1;
        println!("\n{}", self.bold(&format!("{}  {text}", self.section)));
    }

    pub fn line(&self, text: &str) {
        println!("{INDENT}{text}");
    }

    pub fn toned(&self, text: &str, tone: Tone) {
        println!("{INDENT}{}", self.paint(text, tone));
    }

    /// Prints the first `limit` lines of a program's output.
    pub fn excerpt(&self, output: &str, limit: usize) {
        let lines: Vec<_> = output.trim_end().lines().collect();
        for line in lines.iter().take(limit) {
            println!("{INDENT}{line}");
        }
        if lines.len() > limit {
            println!("{INDENT}… {} more lines", lines.len() - limit);
        }
    }

    pub fn table(&self, headers: &[&str], rows: &[Vec<Cell>]) {
        let width = |column: usize| {
            let cells = rows.iter().filter_map(|row| row.get(column)).map(|cell| cell.text.chars().count());
            cells.chain([headers[column].len()]).max().unwrap_or(0)
        };
        let widths: Vec<_> = (0..headers.len()).map(width).collect();
        let header: Vec<_> =
            headers.iter().zip(&widths).map(|(text, width)| format!("{text:width$}")).collect();
        println!("{INDENT}{}", self.dim(header.join("  ").trim_end()));
        for row in rows {
            let cells = row.iter().zip(&widths).map(|(cell, width)| {
                let padding = width - cell.text.chars().count();
                format!("{}{:padding$}", self.paint(&cell.text, cell.tone), "")
            });
            println!("{INDENT}{}", cells.collect::<Vec<_>>().join("  ").trim_end());
        }
    }

    fn paint(&self, text: &str, tone: Tone) -> String {
        match tone {
            Tone::Plain => text.to_owned(),
            Tone::Good => self.escape("32", text),
            Tone::Bad => self.escape("31", text),
        }
    }

    fn bold(&self, text: &str) -> String {
        self.escape("1", text)
    }

    fn dim(&self, text: &str) -> String {
        self.escape("2", text)
    }

    fn escape(&self, code: &str, text: &str) -> String {
        if self.colour { format!("\x1b[{code}m{text}\x1b[0m") } else { text.to_owned() }
    }
}

/// Counts the checks of a demo, and collects what they find.
#[derive(Default)]
pub struct Checks {
    count: u32,
    problems: Vec<String>,
}

impl Checks {
    /// Counts a check, with the problem that it found.
    pub fn check(&mut self, problem: Option<String>) {
        self.count += 1;
        self.problems.extend(problem);
    }

    /// Prints the result. If there are problems, prints also the logs, and returns an error.
    pub fn finish(&self, screen: &Screen, logs: impl FnOnce()) -> Result<()> {
        println!();
        let (seconds, failed) = (screen.seconds(), self.problems.len());
        if failed == 0 {
            screen.toned(&format!("{} checks, all right, in {seconds:.1} s", self.count), Tone::Good);
            return Ok(());
        }
        screen.toned(&format!("{failed} of {} checks failed, in {seconds:.1} s", self.count), Tone::Bad);
        self.problems.iter().for_each(|problem| screen.line(problem));
        logs();
        bail!("the demo found {failed} problems");
    }
}
