//! A statement about an Ingress.

use lb_model::{Problem, ProblemKind, Severity};

/// A statement about an Ingress.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Finding {
    pub kind: FindingKind,
    /// The field, such as `metadata.annotations[…]`.
    pub field: Box<str>,
    pub reason: Box<str>,
    pub remedy: Box<str>,
}

/// What a finding means for a move.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum FindingKind {
    /// Something that works with ingress-nginx is missing.
    Breaks,
    /// Some requests are answered in another way.
    Differs,
    /// Faulty with both controllers, such as a Service that does not exist.
    Fault,
    /// Nothing changes for requests.
    Note,
}

impl FindingKind {
    /// Returns the word for tables.
    pub fn word(self) -> &'static str {
        match self {
            Self::Breaks => "breaks",
            Self::Differs => "differs",
            Self::Fault => "fault",
            Self::Note => "note",
        }
    }

    fn of(problem: &Problem) -> Self {
        match problem.kind {
            _ if problem.severity == Severity::Note => Self::Note,
            ProblemKind::NoService
            | ProblemKind::NoObject
            | ProblemKind::Missing
            | ProblemKind::RouteTaken
            | ProblemKind::WrongType
            | ProblemKind::OutOfRange => Self::Fault,
            _ => Self::Breaks,
        }
    }
}

impl From<&Problem> for Finding {
    fn from(problem: &Problem) -> Self {
        Self {
            kind: FindingKind::of(problem),
            field: problem.field.clone(),
            reason: problem.reason.clone(),
            remedy: problem.remedy.clone(),
        }
    }
}
