//! The leftovers of kube-proxy in the kernel.

use super::programs::{NodeCommand, ProgramError};

/// Items that one command removes. It removes all of them or none.
#[derive(Debug, PartialEq, Eq)]
pub struct Removal {
    pub items: Vec<String>,
    pub command: NodeCommand,
}

impl Removal {
    /// A command that removes one item and reads no input.
    pub fn one(item: impl Into<String>, program: &str, arguments: &[&str]) -> Self {
        Self { items: vec![item.into()], command: NodeCommand::new(program, arguments) }
    }
}

/// The leftovers of kube-proxy on this node.
#[derive(Debug, Default)]
pub struct Leftovers {
    /// In an order in which they can be removed: rules before the sets that they use.
    pub removals: Vec<Removal>,
    /// Items that exist, or may exist, and cannot be removed. Each has its reason.
    pub unreachable: Vec<(String, String)>,
    /// Items that stay or were not checked. This is not an error.
    pub notes: Vec<String>,
    /// At least one program was found and run.
    pub any_program_ran: bool,
}

/// The outcome of a command that lists items.
pub enum ListOutcome {
    Text(String),
    Failed,
    NotInstalled,
}

impl Leftovers {
    /// Runs a command that lists items. A failure is added to [`Self::unreachable`].
    pub fn list(&mut self, item: &str, command: &NodeCommand) -> ListOutcome {
        let listing = match command.run() {
            Ok(text) => ListOutcome::Text(text),
            Err(ProgramError::Missing(_)) => return ListOutcome::NotInstalled,
            Err(error) => {
                self.unreachable.push((item.to_owned(), error.to_string()));
                ListOutcome::Failed
            }
        };
        self.any_program_ran = true;
        listing
    }

    /// Returns the number of items that can be removed.
    pub fn count(&self) -> usize {
        self.removals.iter().map(|removal| removal.items.len()).sum()
    }
}
