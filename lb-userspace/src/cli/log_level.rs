//! `lb log-level`: changes the log level of the agent of this node while it runs.

use clap::Args;

use crate::config::LogFilter;
use crate::log_control::{self, LogLevelError};

#[derive(Debug, Args)]
pub struct LogLevelArgs {
    /// Level (off, error, warn, info, debug, trace), also per module, like `info,lb_plan=debug`
    #[arg(value_name = "LEVEL")]
    pub level: LogFilter,
}

impl LogLevelArgs {
    /// Changes the level, and returns the text to print.
    pub fn run(&self) -> Result<String, LogLevelError> {
        log_control::send(self.level.text())?;
        Ok(format!(
            "The log level of the agent is {} until it restarts or its configuration file changes the \
             level.\n",
            self.level.text()
        ))
    }
}
