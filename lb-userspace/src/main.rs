//! `lb`: the agent and the tools around it.

use std::io::Write;
use std::process::ExitCode;

use anyhow::Context;
use lb_userspace::agent::{self, AgentError};
use lb_userspace::cli::generate::man_page;
use lb_userspace::cli::{
    self, CleanupError, Command, ExplainError, Invocation, MonitorError, ReadError, TopError, UsageError,
};
use lb_userspace::config::{AgentArgs, Machine, SettingsError};
use lb_userspace::ingress;

/// Exit code of a command line or configuration file that is not valid. Other failures exit with 1.
const USAGE: u8 = 2;

pub fn main() -> ExitCode {
    let invocation = match cli::parse(std::env::args_os(), &Machine::detect()) {
        Ok(invocation) => invocation,
        Err(UsageError::Settings(SettingsError::Arguments(error))) => {
            // clap returns --help and --version as errors too, with exit code 0.
            // The reader of the output may be gone: a failed write is ignored.
            let _ = error.print();
            return ExitCode::from(u8::try_from(error.exit_code()).unwrap_or(USAGE));
        }
        Err(error) => {
            report(&error.into());
            return ExitCode::from(USAGE);
        }
    };
    match execute(invocation) {
        Ok(code) => code,
        Err(error) => {
            report(&error);
            ExitCode::FAILURE
        }
    }
}

/// Runs a command. Returns the exit code of a command that has completed.
fn execute(invocation: Invocation) -> anyhow::Result<ExitCode> {
    match invocation {
        Invocation::PrintConfig(text) => print(&text)?,
        Invocation::Run(Command::Agent(args)) => {
            runtime()?.block_on(agent::run(*args, Box::new(read_again)))?;
        }
        Invocation::Run(Command::Ingress(args)) => {
            let mut builder = tokio::runtime::Builder::new_multi_thread();
            let runtime = builder.enable_all().build().context("cannot start the event loop")?;
            runtime.block_on(ingress::run(&args))?;
        }
        Invocation::Run(Command::Get(get)) => print(&get.run()?)?,
        Invocation::Run(Command::Doctor(args)) => {
            let diagnosis = runtime()?.block_on(args.run())?;
            print(&diagnosis.text)?;
            if diagnosis.has_error {
                return Ok(ExitCode::FAILURE);
            }
        }
        Invocation::Run(Command::Preflight(args)) => {
            let checked = runtime()?.block_on(args.run())?;
            print(&checked.text)?;
            if checked.breaks {
                return Ok(ExitCode::FAILURE);
            }
        }
        Invocation::Run(Command::Cleanup(args)) => {
            runtime()?.block_on(cli::cleanup::run(&args, &mut std::io::stdout().lock()))?;
        }
        Invocation::Run(Command::Drain(args)) => print(&runtime()?.block_on(args.run())?)?,
        Invocation::Run(Command::Explain(args)) => {
            let (text, problems) = runtime()?.block_on(args.run())?;
            for problem in problems {
                // The reader of standard error may be gone.
                let _ = writeln!(std::io::stderr(), "warning: {problem}");
            }
            print(&text)?;
        }
        Invocation::Run(Command::Monitor(args)) => {
            let summary = runtime()?.block_on(args.run())?;
            // The reader of standard error may be gone.
            let _ = writeln!(std::io::stderr(), "{summary}");
        }
        Invocation::Run(Command::Top(args)) => print(&runtime()?.block_on(args.run())?)?,
        Invocation::Run(Command::Migrate(migrate)) => print(&migrate.run()?)?,
        Invocation::Run(Command::LogLevel(level)) => print(&level.run()?)?,
        Invocation::Run(Command::Completions(args)) => {
            print(&args.script(cli::command(&Machine::detect())))?;
        }
        Invocation::Run(Command::Man(args)) => {
            let command = args.find(cli::command(&Machine::detect()))?;
            print(&man_page(command).context("cannot render the page")?)?;
        }
        Invocation::Run(Command::Version) => print(&cli::version())?,
    }
    Ok(ExitCode::SUCCESS)
}

/// Reads the command line of this agent again, with the files that it names.
fn read_again() -> Result<AgentArgs, String> {
    match cli::parse(std::env::args_os(), &Machine::detect()) {
        Ok(Invocation::Run(Command::Agent(args))) => Ok(*args),
        Ok(_) => Err("the command line is not that of an agent".to_owned()),
        Err(error) => {
            let error = anyhow::Error::from(error);
            Err(error.chain().map(ToString::to_string).collect::<Vec<_>>().join(": "))
        }
    }
}

/// Returns a runtime with one worker beside the main thread. The main thread runs the main loop.
/// The worker reads the sources and answers probes, also while the main thread is busy.
fn runtime() -> anyhow::Result<tokio::runtime::Runtime> {
    let mut builder = tokio::runtime::Builder::new_multi_thread();
    builder.worker_threads(1).enable_all().build().context("cannot start the event loop")
}

fn print(text: &str) -> anyhow::Result<()> {
    match std::io::stdout().lock().write_all(text.as_bytes()) {
        // The reader closed the pipe, as in `lb get flows | head`.
        Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => Ok(()),
        result => result.context("cannot write to standard output"),
    }
}

/// Prints an error with its causes and, if there is one, a hint that names the remedy.
fn report(error: &anyhow::Error) {
    let mut text = error.to_string();
    for cause in error.chain().skip(1).map(ToString::to_string) {
        // Many messages contain the text of their cause.
        if !text.contains(&cause) {
            text = format!("{text}: {cause}");
        }
    }
    let _ = writeln!(std::io::stderr(), "error: {text}");
    if let Some(hint) = error.chain().find_map(hint) {
        let _ = writeln!(std::io::stderr(), "hint: {hint}");
    }
}

fn hint(error: &(dyn std::error::Error + 'static)) -> Option<String> {
    if let Some(error) = error.downcast_ref::<AgentError>() {
        error.hint()
    } else if let Some(error) = error.downcast_ref::<ReadError>() {
        error.hint()
    } else if let Some(error) = error.downcast_ref::<ExplainError>() {
        error.hint()
    } else if let Some(error) = error.downcast_ref::<MonitorError>() {
        error.hint()
    } else if let Some(error) = error.downcast_ref::<TopError>() {
        error.hint()
    } else if let Some(error) = error.downcast_ref::<CleanupError>() {
        error.hint()
    } else {
        None
    }
}
