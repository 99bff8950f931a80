//! The log: text lines or JSON objects on standard error.

use std::io::{IsTerminal, stderr};
use std::time::Duration;

use lb_datapath::DatapathLog;
use tracing_subscriber::fmt;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;

use crate::config::{LogFilter, LogFormat};

/// Sets up the log of this process. A second call changes nothing.
pub fn start(filter: &LogFilter, format: LogFormat) {
    let registry = tracing_subscriber::registry().with(filter.to_env_filter());
    let result = match format {
        LogFormat::Text => registry
            .with(fmt::layer().with_writer(stderr).with_ansi(stderr().is_terminal()).with_target(false))
            .try_init(),
        LogFormat::Json => {
            registry.with(fmt::layer().json().flatten_event(true).with_writer(stderr)).try_init()
        }
    };
    if result.is_err() {
        tracing::debug!("the log is set up already");
    }
}

/// Pause between two readings of the kernel programs' log, which is a ring buffer.
const DATAPATH_LOG_PERIOD: Duration = Duration::from_millis(50);

/// Copies the log of the kernel programs to the agent's log until the runtime ends.
pub fn follow_datapath(mut log: DatapathLog) {
    tokio::spawn(async move {
        let mut period = tokio::time::interval(DATAPATH_LOG_PERIOD);
        loop {
            period.tick().await;
            log.flush();
        }
    });
}
