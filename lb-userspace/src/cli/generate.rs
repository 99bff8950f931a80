//! `lb completions` and `lb man`: texts that are generated from the definition of the command line.

use std::io;

use clap::Args;
use clap_complete::Shell;

/// Arguments of `lb completions`.
#[derive(Debug, Args)]
pub struct CompletionsArgs {
    #[arg(value_enum)]
    shell: Shell,
}

/// Arguments of `lb man`.
#[derive(Debug, Args)]
pub struct ManArgs {
    /// A command of `lb`, for example `agent` or `get services`. The default is `lb` itself
    command: Vec<String>,
}

#[derive(Debug, thiserror::Error)]
#[error("there is no command `lb {0}`: `lb help` lists the commands")]
pub struct NoSuchCommand(String);

impl CompletionsArgs {
    /// Returns the script for the shell. `lb` is the definition of the command line.
    pub fn script(&self, mut lb: clap::Command) -> String {
        let mut script = Vec::new();
        clap_complete::generate(self.shell, &mut lb, "lb", &mut script);
        String::from_utf8_lossy(&script).into_owned()
    }
}

impl ManArgs {
    /// Returns the definition of the command. `lb` is the definition of the command line.
    pub fn find(&self, mut lb: clap::Command) -> Result<clap::Command, NoSuchCommand> {
        // Gives the subcommands their full names: lb-get-services.
        lb.build();
        self.command.iter().try_fold(lb, |command, name| {
            command.find_subcommand(name).cloned().ok_or_else(|| NoSuchCommand(self.command.join(" ")))
        })
    }
}

/// Returns the manual page of a command in the format of man(7).
pub fn man_page(command: clap::Command) -> io::Result<String> {
    let mut page = Vec::new();
    clap_mangen::Man::new(command).render(&mut page)?;
    Ok(String::from_utf8_lossy(&page).into_owned())
}
