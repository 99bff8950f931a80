//! What kube-proxy left in the kernel.

use super::programs::{Call, ProgramError};

/// Things that one call removes together, or not at all.
#[derive(Debug, PartialEq, Eq)]
pub struct Removal {
    pub what: Vec<String>,
    pub call: Call,
}

impl Removal {
    /// A call that removes one thing and reads no input.
    pub fn one(what: impl Into<String>, program: &str, arguments: &[&str]) -> Self {
        Self { what: vec![what.into()], call: Call::new(program, arguments) }
    }
}

/// What kube-proxy left here.
#[derive(Debug, Default)]
pub struct Leftovers {
    /// In an order in which they can be removed: rules before the sets they name.
    pub removals: Vec<Removal>,
    /// What is here, or may be, and cannot be removed, with the reason.
    pub unreachable: Vec<(String, String)>,
    /// What stays, or was not looked at, with good reason.
    pub notes: Vec<String>,
    /// Some program could be asked.
    pub asked: bool,
}

pub enum Answer {
    Text(String),
    Failed,
    NotInstalled,
}

impl Leftovers {
    /// What a program says about the kernel. That it could not say it is noted already.
    pub fn ask(&mut self, what: &str, call: &Call) -> Answer {
        let answer = match call.run() {
            Ok(text) => Answer::Text(text),
            Err(ProgramError::Missing(_)) => return Answer::NotInstalled,
            Err(error) => {
                self.unreachable.push((what.to_owned(), error.to_string()));
                Answer::Failed
            }
        };
        self.asked = true;
        answer
    }

    pub fn things(&self) -> usize {
        self.removals.iter().map(|removal| removal.what.len()).sum()
    }
}
