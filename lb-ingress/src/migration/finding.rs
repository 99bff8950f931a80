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

/// The meaning of a finding for a move.
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
            ProblemKind::Ignored => Self::Differs,
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

#[cfg(test)]
mod tests {
    use lb_model::{ObjectName, Problems};

    use super::*;
    use crate::annotations;

    #[test]
    fn what_annotations_mean_for_a_move() {
        for (name, value, expected) in [
            ("proxy-buffering", "on", Some(FindingKind::Differs)),
            ("proxy-buffering", "off", None),
            ("auth-tls-secret", "authority", None),
            ("proxy-ssl-secret", "client", None),
            ("proxy-ssl-verify", "on", Some(FindingKind::Breaks)),
            ("satisfy", "any", None),
            ("mirror-target", "https://a.example", Some(FindingKind::Breaks)),
            ("enable-access-log", "false", Some(FindingKind::Note)),
            ("proxy-body-size", "8m", None),
        ] {
            let mut problems = Problems::of("Ingress", ObjectName::new("default", "web"));
            let annotation = (format!("nginx.ingress.kubernetes.io/{name}").into(), value.into());
            annotations::read(&[annotation], "default", &mut problems);
            let kinds: Vec<_> = problems.into_vec().iter().map(FindingKind::of).collect();
            assert_eq!(kinds, expected.into_iter().collect::<Vec<_>>(), "{name}");
        }
    }
}
