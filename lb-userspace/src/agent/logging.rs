//! The log: text lines or JSON objects on standard error.

use std::io::{IsTerminal, stderr};
use std::sync::OnceLock;
use std::time::Duration;

use lb_datapath::DatapathLog;
use tokio::task::JoinHandle;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{EnvFilter, Registry, fmt, reload};

use crate::config::{LogFilter, LogFormat, ValueError};
use crate::log_control;

/// Changes the filter of the log of this process.
static FILTER: OnceLock<reload::Handle<EnvFilter, Registry>> = OnceLock::new();

/// Replaces the filter of the log.
pub fn set_filter(filter: &LogFilter) {
    // The log was not set up by `start`, or another thread panicked while it logged.
    if let Some(Err(error)) = FILTER.get().map(|handle| handle.reload(filter.to_env_filter())) {
        tracing::error!("cannot change the log level: {error}");
    }
}

/// Lets `lb log-level` change the filter until the configuration file changes it again.
pub fn follow_commands() {
    let change = |level: &str| {
        let filter: LogFilter = level.parse().map_err(|error: ValueError| error.to_string())?;
        set_filter(&filter);
        tracing::info!(level, "`lb log-level` changed the log level");
        Ok(())
    };
    if let Err(error) = log_control::listen(change) {
        tracing::warn!("`lb log-level` cannot reach this agent: {error}");
    }
}

/// Sets up the log of this process. A second call changes nothing.
pub fn start(filter: &LogFilter, format: LogFormat) {
    let (filter, handle) = reload::Layer::new(filter.to_env_filter());
    let registry = tracing_subscriber::registry().with(filter);
    let result = match format {
        LogFormat::Text => registry
            .with(fmt::layer().with_writer(stderr).with_ansi(stderr().is_terminal()).with_target(false))
            .try_init(),
        LogFormat::Json => {
            registry.with(fmt::layer().json().flatten_event(true).with_writer(stderr)).try_init()
        }
    };
    match result {
        Ok(()) => drop(FILTER.set(handle)),
        Err(_) => tracing::debug!("the log is set up already"),
    }
}

/// Pause between two readings of the kernel programs' log, which is a ring buffer.
const DATAPATH_LOG_PERIOD: Duration = Duration::from_millis(50);

/// Copies the log of the kernel programs to the agent's log until the task is aborted.
pub fn follow_datapath(mut log: DatapathLog) -> JoinHandle<()> {
    tokio::spawn(async move {
        let mut period = tokio::time::interval(DATAPATH_LOG_PERIOD);
        loop {
            period.tick().await;
            log.flush();
        }
    })
}
