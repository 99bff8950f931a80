//! The metrics of this process, with the names that Prometheus client libraries use. Dashboards of
//! kube-proxy show them.

use std::fmt;

use procfs::process::{LimitValue, Process};
use procfs::{ProcResult, page_size, ticks_per_second};
use prometheus_client::collector::Collector;
use prometheus_client::encoding::DescriptorEncoder;

use super::writer::MetricWriter;

/// Reads `/proc/self` for each request.
#[derive(Debug)]
pub struct ProcessMetrics;

/// The values at one moment.
#[derive(Debug)]
struct ProcessValues {
    cpu_seconds: f64,
    open_fds: u64,
    /// `None` if there is no limit.
    max_fds: Option<u64>,
    resident_bytes: u64,
    virtual_bytes: u64,
    /// `None` if there is no limit.
    max_virtual_bytes: Option<u64>,
    /// Unix time.
    start_seconds: f64,
}

impl ProcessValues {
    fn read() -> ProcResult<Self> {
        let process = Process::myself()?;
        let (stat, limits) = (process.stat()?, process.limits()?);
        let ticks = ticks_per_second() as f64;
        let boot_seconds = procfs::boot_time_secs()? as f64;
        Ok(Self {
            cpu_seconds: (stat.utime + stat.stime) as f64 / ticks,
            open_fds: process.fd_count()? as u64,
            max_fds: limit(limits.max_open_files.soft_limit),
            resident_bytes: stat.rss * page_size(),
            virtual_bytes: stat.vsize,
            max_virtual_bytes: limit(limits.max_address_space.soft_limit),
            start_seconds: boot_seconds + stat.starttime as f64 / ticks,
        })
    }
}

fn limit(value: LimitValue) -> Option<u64> {
    match value {
        LimitValue::Value(value) => Some(value),
        LimitValue::Unlimited => None,
    }
}

impl Collector for ProcessMetrics {
    fn encode(&self, encoder: DescriptorEncoder) -> fmt::Result {
        match ProcessValues::read() {
            Ok(values) => values.encode(&mut MetricWriter(encoder)),
            Err(error) => {
                tracing::warn!("cannot read the metrics of this process: {error}");
                Ok(())
            }
        }
    }
}

impl ProcessValues {
    fn encode(&self, writer: &mut MetricWriter) -> fmt::Result {
        let help = "User and system CPU time in seconds";
        writer.counter("process_cpu_seconds", help, self.cpu_seconds)?;
        writer.gauge("process_open_fds", "Open file descriptors", self.open_fds)?;
        if let Some(max_fds) = self.max_fds {
            writer.gauge("process_max_fds", "Maximum open file descriptors", max_fds)?;
        }
        let help = "Resident memory in bytes";
        writer.gauge("process_resident_memory_bytes", help, self.resident_bytes)?;
        let help = "Virtual memory in bytes";
        writer.gauge("process_virtual_memory_bytes", help, self.virtual_bytes)?;
        if let Some(max_bytes) = self.max_virtual_bytes {
            let help = "Maximum virtual memory in bytes";
            writer.gauge("process_virtual_memory_max_bytes", help, max_bytes)?;
        }
        let help = "Start time of the process in seconds since the Unix epoch";
        writer.gauge("process_start_time_seconds", help, self.start_seconds)
    }
}

#[cfg(test)]
mod tests {
    use std::time::SystemTime;

    use prometheus_client::encoding::text::encode;
    use prometheus_client::registry::Registry;

    use super::*;
    use crate::testing::assert_golden;

    #[test]
    fn the_names_are_those_of_prometheus_clients() {
        #[derive(Debug)]
        struct Example;
        impl Collector for Example {
            fn encode(&self, encoder: DescriptorEncoder) -> fmt::Result {
                let values = ProcessValues {
                    cpu_seconds: 1.25,
                    open_fds: 30,
                    max_fds: Some(1024),
                    resident_bytes: 20 << 20,
                    virtual_bytes: 1 << 30,
                    max_virtual_bytes: Some(1 << 40),
                    start_seconds: 1_700_000_000.5,
                };
                values.encode(&mut MetricWriter(encoder))
            }
        }
        let mut registry = Registry::default();
        registry.register_collector(Box::new(Example));
        let mut text = String::new();
        encode(&mut text, &registry).unwrap();
        assert_golden("process-metrics.txt", &text);
    }

    #[test]
    fn the_values_of_this_process_are_plausible() {
        let values = ProcessValues::read().unwrap();
        assert!(values.open_fds > 2 && values.max_fds.is_none_or(|max| max >= values.open_fds), "{values:?}");
        assert!(values.resident_bytes > 1 << 20, "{values:?}");
        assert!(values.virtual_bytes >= values.resident_bytes, "{values:?}");
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap().as_secs_f64();
        assert!(values.start_seconds <= now + 1.0 && values.start_seconds > now - 3600.0, "{values:?}");
    }
}
