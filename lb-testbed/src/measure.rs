//! What the benchmarks share: the resources of a process, statistics of figures, and where their
//! report goes.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use clap::Args;
use serde::Serialize;

/// The unit of the times in `/proc` (`USER_HZ`), which is the same on all machines.
const TICKS_PER_SECOND: f64 = 100.0;

/// Where the report of a benchmark goes: the options that xtask passes.
#[derive(Args)]
pub struct Output {
    /// Print JSON in place of tables.
    #[arg(long)]
    print_json: bool,
    /// The file that gets the report as JSON.
    #[arg(long)]
    json: Option<PathBuf>,
    /// The document that gets the tables, or the folder of documents.
    #[arg(long)]
    docs: Option<PathBuf>,
    /// `cargo bench` adds it.
    #[arg(long = "bench", hide = true)]
    _bench: bool,
}

impl Output {
    /// Prints a report with these tables, and writes it to the files that are wanted.
    /// `write_into` gets the path of the documents.
    pub fn write(
        &self,
        report: &impl Serialize,
        tables: &str,
        write_into: impl FnOnce(&Path) -> Result<()>,
    ) -> Result<()> {
        let json = serde_json::to_string_pretty(report)? + "\n";
        print!("{}", if self.print_json { &json } else { tables });
        if let Some(path) = &self.json {
            fs::write(path, &json).with_context(|| path.display().to_string())?;
            eprintln!("wrote {}", path.display());
        }
        if let Some(path) = &self.docs {
            write_into(path)?;
            eprintln!("wrote {}", path.display());
        }
        Ok(())
    }
}

/// Returns the CPU time of a process in user and kernel mode, in seconds.
pub fn cpu_time(pid: u32) -> Result<f64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat"))?;
    // The name of the program may contain spaces. Fields 14 and 15 are the times.
    let (_, fields) = stat.rsplit_once(") ").context("stat has no name")?;
    let fields: Vec<&str> = fields.split(' ').collect();
    let ticks: u64 = fields[11].parse::<u64>()? + fields[12].parse::<u64>()?;
    Ok(ticks as f64 / TICKS_PER_SECOND)
}

/// Returns a field of `/proc/PID/status` that is an amount of memory (`VmRSS`, `VmHWM`, `RssAnon`),
/// in MiB.
pub fn memory(pid: u32, field: &str) -> Result<f64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
    let of_field = |line: &str| line.strip_prefix(field)?.strip_prefix(':').map(str::to_owned);
    let value = status.lines().find_map(of_field).with_context(|| format!("no field {field}"))?;
    let kibibytes = value.trim().strip_suffix(" kB").context("not an amount of memory")?;
    Ok(kibibytes.parse::<f64>()? / 1024.0)
}

/// Returns the release of the kernel.
pub fn kernel() -> String {
    rustix::system::uname().release().to_string_lossy().into_owned()
}

/// Returns the model of the CPU.
pub fn cpu() -> Result<String> {
    let cpuinfo = fs::read_to_string("/proc/cpuinfo")?;
    let model = cpuinfo.lines().find_map(|line| line.strip_prefix("model name")?.split_once(": "));
    Ok(model.map_or("unknown", |(_, name)| name).to_owned())
}

/// Pins the process to the last CPU. Most interrupts go to the first one.
pub fn pin_to_last_cpu() -> Result<()> {
    let allowed = rustix::thread::sched_getaffinity(None).context("sched_getaffinity")?;
    let last =
        (0..rustix::thread::CpuSet::MAX_CPU).rev().find(|cpu| allowed.is_set(*cpu)).context("no CPU")?;
    let mut one = rustix::thread::CpuSet::new();
    one.set(last);
    rustix::thread::sched_setaffinity(None, &one).context("sched_setaffinity")
}

/// Returns the load averages of the machine over 1, 5 and 15 minutes.
pub fn load_averages() -> Result<String> {
    let averages = fs::read_to_string("/proc/loadavg")?;
    Ok(averages.split(' ').take(3).collect::<Vec<_>>().join(" "))
}

pub fn median(values: Vec<f64>) -> f64 {
    percentile(values, 50.0)
}

/// Returns the median as text, with the smallest and the largest value in brackets. `digits` are
/// those after the point.
pub fn median_and_range(values: Vec<f64>, digits: usize) -> String {
    let smallest = values.iter().copied().fold(f64::INFINITY, f64::min);
    let largest = values.iter().copied().fold(0.0, f64::max);
    format!("{:.digits$} [{smallest:.digits$}–{largest:.digits$}]", median(values))
}

/// Returns the smallest value that at least `percent` of the values do not exceed, or 0 without
/// values.
pub fn percentile(mut values: Vec<f64>, percent: f64) -> f64 {
    values.sort_by(f64::total_cmp);
    let rank = (values.len() as f64 * percent / 100.0).ceil() as usize;
    values.get(rank.saturating_sub(1)).copied().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_values_of_the_list() {
        let hundred: Vec<f64> = (1..=100).rev().map(f64::from).collect();
        assert_eq!(percentile(hundred.clone(), 99.0), 99.0);
        assert_eq!(percentile(hundred.clone(), 100.0), 100.0);
        assert_eq!(median(hundred), 50.0);
        assert_eq!(median(vec![3.0, 1.0, 2.0]), 2.0);
        assert_eq!(percentile(vec![7.0], 0.0), 7.0);
        assert_eq!(percentile(Vec::new(), 99.0), 0.0);
    }

    #[test]
    fn a_range_is_in_brackets() {
        assert_eq!(median_and_range(vec![30.0, 10.2, 20.6], 0), "21 [10–30]");
        assert_eq!(median_and_range(vec![2.0], 1), "2.0 [2.0–2.0]");
    }

    #[test]
    fn the_resources_of_this_process_are_read() {
        let pid = std::process::id();
        assert!(memory(pid, "VmHWM").unwrap() >= memory(pid, "RssAnon").unwrap());
        assert!(memory(pid, "Name").is_err());
        assert!(cpu_time(pid).unwrap() >= 0.0);
    }
}
