//! Which Ingresses this controller serves.

use std::collections::BTreeMap;
use std::sync::Arc;

use lb_model::{Ingress, IngressClass, ProblemKind, Problems};

/// The annotation that came before `spec.ingressClassName`.
const ANNOTATION: &str = "kubernetes.io/ingress.class";

/// The classes that this controller serves.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClassRules {
    /// Values of `spec.controller` of an IngressClass.
    pub controllers: Vec<Box<str>>,
    /// Names of classes that are served without an IngressClass, and values of the annotation
    /// `kubernetes.io/ingress.class`.
    pub names: Vec<Box<str>>,
    /// Ingresses without a class are served even if no IngressClass is the default one.
    pub without_class: bool,
}

impl Default for ClassRules {
    fn default() -> Self {
        Self {
            controllers: vec!["sluice.dev/ingress".into()],
            names: vec!["sluice".into()],
            without_class: false,
        }
    }
}

impl ClassRules {
    /// Returns whether an Ingress is served here. Reports a class that does not exist.
    pub(super) fn serve(
        &self,
        ingress: &Ingress,
        classes: &BTreeMap<Box<str>, Arc<IngressClass>>,
        problems: &mut Problems,
    ) -> bool {
        let is_own_name = |name: &str| self.names.iter().any(|own| **own == *name);
        if let Some(name) = annotated(ingress) {
            return is_own_name(name) || classes.get(name).is_some_and(|class| self.is_own(class));
        }
        if let Some(name) = class_of(ingress) {
            return match classes.get(name) {
                Some(class) => self.is_own(class),
                None if is_own_name(name) => true,
                None => {
                    problems.error(
                        ProblemKind::NoObject,
                        "spec.ingressClassName",
                        format_args!("the IngressClass {name} does not exist"),
                        "create it, or name another class; no controller serves the Ingress",
                    );
                    false
                }
            };
        }
        let mut defaults = classes.values().filter(|class| class.default).peekable();
        if defaults.peek().is_some() {
            return defaults.any(|class| self.is_own(class));
        }
        self.without_class
    }

    fn is_own(&self, class: &IngressClass) -> bool {
        self.controllers.contains(&class.controller)
    }
}

/// Returns the class of an Ingress. The annotation comes before the field, as in ingress-nginx.
pub(crate) fn class_of(ingress: &Ingress) -> Option<&str> {
    annotated(ingress).or(ingress.class.as_deref()).filter(|class| !class.is_empty())
}

fn annotated(ingress: &Ingress) -> Option<&str> {
    let annotation = ingress.annotations.iter().find(|(name, _)| &**name == ANNOTATION);
    annotation.map(|(_, class)| &**class).filter(|class| !class.is_empty())
}
