//! Set-up of the machine: finds the programs and components that a task needs and the machine
//! lacks, and installs them before anything is built.
//!
//! Programs come from Debian packages and need apt and root. Components of a Rust toolchain come
//! from rustup. Elsewhere the list of what is missing is the error.

mod debian;
mod rust;

use anyhow::{Result, bail};
use lb_build::progress::report;

use crate::task;

pub use self::debian::Program;
pub use self::rust::Component;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Need {
    Program(Program),
    Component(Component),
}

#[derive(Clone, Copy, Debug, Default, clap::Args)]
pub struct InstallOptions {
    /// Install nothing: if this machine lacks anything, print the list and stop
    #[arg(long)]
    pub no_install: bool,
}

/// Installs the missing programs and components of `needs`.
pub fn provide(needs: &[Need], options: InstallOptions) -> Result<()> {
    let mut programs: Vec<Program> = Vec::new();
    let mut components: Vec<Component> = Vec::new();
    for need in needs {
        match *need {
            Need::Program(program) if !programs.contains(&program) && !program.is_installed() => {
                programs.push(program);
            }
            Need::Component(component) if !components.contains(&component) && !component.is_installed() => {
                components.push(component);
            }
            _ => {}
        }
    }
    if programs.is_empty() && components.is_empty() {
        return Ok(());
    }
    let list = list(&programs, &components);
    if options.no_install {
        bail!("this machine lacks:\n{list}remedy: install these, or run the command without --no-install");
    }
    if let Some(reason) = debian::cannot_install(&programs).or_else(|| rust::cannot_install(&components)) {
        bail!("this machine lacks:\n{list}They cannot be installed automatically: {reason}");
    }
    report(
        task::SETUP,
        &format!("this machine lacks:\n{list}Installing these (--no-install stops here instead)."),
    );
    debian::install(&programs)?;
    rust::install(&components)
}

/// Returns one line for each missing program and component: its name, how it is installed, and its
/// purpose.
fn list(programs: &[Program], components: &[Component]) -> String {
    let mut text = String::new();
    for program in programs {
        let packages = program.packages().join(" ");
        let line = format!("{:<13} Debian: {packages:<15} {}", program.name(), program.purpose());
        text.push_str(&format!("  {line}\n"));
    }
    for component in components {
        text.push_str(&format!("  {:<13} {}\n", component.name(), component.install_command()));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::{Component, Program, list};

    #[test]
    fn the_list_names_packages_and_commands() {
        let text = list(&[Program::Ipset, Program::Compiler], &[Component::Rustfmt]);
        let lines: Vec<_> = text.lines().collect();
        assert_eq!(
            lines,
            [
                "  ipset         Debian: ipset           sets of kube-proxy, for the tests of their removal",
                "  cc            Debian: gcc libc6-dev   links Rust programs, compiles the C code of crates",
                "  rustfmt       rustup component add rustfmt",
            ]
        );
    }
}
