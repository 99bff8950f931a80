//! Reports the figures as Markdown, as JSON and as plots.

use std::fmt::Write as _;
use std::fs;
use std::path::Path;

use anyhow::{Context as _, Result};
use lb_model::Algorithm;
use lb_testbed::documents::replace_between;
use lb_testbed::measure::{cpu, kernel, load_averages, median};
use lb_testbed::plot::{DotPlot, LinePlot, Series};
use lb_testbed::spread::Spread;
use serde::Serialize;

use crate::balance::{self, Balance, LOOKS, Sampled};
use crate::cost::{self, Cost};
use crate::spread::{DH_ADDRESSES, Spreads};

/// [`Report::write_into`] replaces the text between these two lines of `algorithms.md`.
const BEGIN: &str = "<!-- begin: cargo xtask bench algorithms --write-docs -->";
const END: &str = "<!-- end: cargo xtask bench algorithms -->";

/// Beyond this deviation, a dot of the plot is a ring at the end of its axis.
const REACH: f64 = 0.1;

/// All figures, in the format of the JSON file.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Report {
    kernel: String,
    cpu: String,
    cpus: usize,
    /// The load averages of the machine at the start.
    load: String,
    pub connections: u32,
    pub each: usize,
    pub costs: Vec<Cost>,
    pub spreads: Vec<Spreads>,
    pub balances: Vec<Balance>,
    pub models: Vec<Sampled>,
}

impl Report {
    /// Call this before the process is pinned to a CPU.
    pub fn new(connections: u32, each: usize) -> Result<Self> {
        Ok(Self {
            kernel: kernel(),
            cpu: cpu()?,
            cpus: std::thread::available_parallelism()?.get(),
            load: load_averages()?,
            connections,
            each,
            costs: Vec::new(),
            spreads: Vec::new(),
            balances: Vec::new(),
            models: Vec::new(),
        })
    }

    /// Returns the tables.
    pub fn tables(&self) -> String {
        let Self { kernel, cpu, cpus, load, .. } = self;
        let machine = format!("Linux {kernel}, {cpu}, {cpus} CPUs, load averages {load} at the start.\n");
        [machine, self.cost(), self.spread(), self.balance()].join("\n")
    }

    /// Writes the tables into `algorithms.md` of a folder, and the plots beside it.
    pub fn write_into(&self, folder: &Path) -> Result<()> {
        let link = |file, text| format!("\n![{text}]({file})\n");
        let text = self.tables()
            + &link("algorithms-spread.svg", "Connections of each endpoint, divided by those wanted")
            + &link("algorithms-balance.svg", "Balance by the number of endpoints that are compared");
        replace_between(&folder.join("algorithms.md"), BEGIN, END, &text)?;
        for (file, svg) in
            [("algorithms-spread.svg", self.spread_plot()), ("algorithms-balance.svg", self.balance_plot())]
        {
            let path = folder.join(file);
            fs::write(&path, svg).with_context(|| path.display().to_string())?;
        }
        Ok(())
    }

    fn cost(&self) -> String {
        let rounds = self.costs.first().map_or(0, |cost| cost.rounds.len());
        let mut text = format!(
            "The first packet of a TCP connection with XDP, endpoints elsewhere: its time divided by that \
             with\n`random`, and the difference. Medians of {rounds} rounds; the row `random` has \
             nanoseconds.\n\n"
        );
        let sizes = cost::SIZES;
        let mut columns: Vec<(String, &str, usize, bool)> = Vec::new();
        for family in ["IPv4", "IPv6"] {
            columns.extend(sizes.map(|size| (format!("{family}, {size} endpoints"), family, size, true)));
        }
        columns.push(("IPv4, open connection".to_owned(), "IPv4", 100, false));
        let _ = writeln!(
            text,
            "| name | {} |",
            columns.iter().map(|(name, ..)| name.as_str()).collect::<Vec<_>>().join(" | ")
        );
        text += &format!("|---|{}\n", "--:|".repeat(columns.len()));
        for algorithm in Algorithm::ALL {
            let cells = columns.iter().map(|(_, family, size, opens)| {
                let figure = |name| self.cost_of(name, family, *size, *opens);
                match figure(algorithm.name()).zip(figure(Algorithm::Random.name())) {
                    Some((own, _)) if algorithm == Algorithm::Random => {
                        format!("{:.0} ns", median(own.rounds.clone()))
                    }
                    Some((own, base)) => relative(own, base),
                    None => "–".to_owned(),
                }
            });
            let _ = writeln!(text, "| `{algorithm}` | {} |", cells.collect::<Vec<_>>().join(" | "));
        }
        text
    }

    fn cost_of(&self, algorithm: &str, family: &str, endpoints: usize, opens: bool) -> Option<&Cost> {
        self.costs.iter().find(|cost| {
            cost.algorithm == algorithm
                && cost.family == family
                && cost.endpoints == endpoints
                && cost.opens == opens
        })
    }

    fn spread(&self) -> String {
        let mut text = format!(
            "{} connections of different clients, which stay open, over 10 endpoints: the busiest \
             endpoint\ndivided by its share, and chi-squared per degree of freedom. `dh`: a Service with \
             {DH_ADDRESSES} addresses. The\nlast column has the connections to the other endpoints that \
             another one gets when one leaves.\n\n",
            self.connections
        );
        text += "| name | equal weights | χ² | weights 1 to 4 | χ² | change their endpoint |\n";
        text += "|---|--:|--:|--:|--:|--:|\n";
        for Spreads { algorithm, equal, unequal, moved } in &self.spreads {
            let cells = |spread: &Spread| format!("{:.3} | {:.2}", spread.busiest(), spread.chi_squared());
            let moved = moved.map_or("–".to_owned(), |share| format!("{:.1} %", share * 100.0));
            let _ = writeln!(text, "| `{algorithm}` | {} | {} | {moved} |", cells(equal), cells(unequal));
        }
        text
    }

    fn balance(&self) -> String {
        let mut text = format!(
            "Connections that end at random and are replaced, {} open for each endpoint in the mean: the \
             number\nof connections that the busiest endpoint has above its share, in the mean over the \
             time. In\nbrackets: the same with all endpoints compared.\n\n",
            self.each
        );
        let sizes = balance::SIZES.map(|size| format!("{size} endpoints"));
        let _ = writeln!(text, "| name | weights | {} |\n|---|---|{}", sizes.join(" | "), "--:|".repeat(3));
        for row in self.balances.chunks(balance::SIZES.len()) {
            let cells = row
                .iter()
                .map(|Balance { measured, exact, .. }| format!("{:.2} ({:.2})", measured.mean, exact.mean));
            let weights = if row[0].has_weights { "1 to 4" } else { "equal" };
            let cells = cells.collect::<Vec<_>>().join(" | ");
            let _ = writeln!(text, "| `{}` | {weights} | {cells} |", row[0].algorithm);
        }
        text
    }

    fn spread_plot(&self) -> String {
        let rows = self
            .spreads
            .iter()
            .map(|spreads| (spreads.algorithm, vec![spreads.equal.ratios(), spreads.unequal.ratios()]));
        let title = format!("{} connections over 10 endpoints: seen / wanted", self.connections);
        let panels = vec!["equal weights", "weights 1 to 4"];
        DotPlot { title: &title, panels, rows: rows.collect(), reach: REACH }.svg()
    }

    fn balance_plot(&self) -> String {
        let names = ["100 endpoints", "1,000 endpoints"];
        let lines = [100, 1000].into_iter().zip(names).map(|(endpoints, name)| {
            let own = self.models.iter().filter(|model| model.endpoints == endpoints);
            let measured = |algorithm, looks| {
                let of_row = |balance: &&Balance| {
                    balance.algorithm == algorithm && !balance.has_weights && balance.endpoints == endpoints
                };
                let place = LOOKS.iter().position(|known| *known == Some(looks))?;
                Some((place, self.balances.iter().find(of_row)?.measured.mean))
            };
            let marks = [measured("twos", 2), measured("lc", 16)];
            Series {
                name,
                values: own.map(|model| model.above.mean).collect(),
                marks: marks.into_iter().flatten().collect(),
            }
        });
        let places = LOOKS.map(|looks| looks.map_or("all".to_owned(), |looks| looks.to_string()));
        LinePlot {
            title: "Connections of the busiest endpoint above the mean; dots: measured",
            x_title: "endpoints that are compared for a new connection",
            places: places.into(),
            lines: lines.collect(),
        }
        .svg()
    }
}

/// Returns the median of the ratios to a cost of the same rounds, and that of the differences.
fn relative(own: &Cost, base: &Cost) -> String {
    let pairs = || own.rounds.iter().zip(&base.rounds);
    let ratio = median(pairs().map(|(own, base)| own / base).collect());
    let difference = median(pairs().map(|(own, base)| own - base).collect());
    format!("{ratio:.2} ({difference:+.0})")
}
