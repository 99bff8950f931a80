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
    ///
    /// The annotation comes before the field, as in ingress-nginx.
    pub(super) fn serve(
        &self,
        ingress: &Ingress,
        classes: &BTreeMap<Box<str>, Arc<IngressClass>>,
        problems: &mut Problems,
    ) -> bool {
        let annotation = ingress.annotations.iter().find(|(name, _)| &**name == ANNOTATION);
        if let Some((_, class)) = annotation.filter(|(_, class)| !class.is_empty()) {
            return self.names.contains(class) || classes.get(class).is_some_and(|class| self.is_own(class));
        }
        if let Some(name) = ingress.class.as_ref().filter(|name| !name.is_empty()) {
            return match classes.get(name) {
                Some(class) => self.is_own(class),
                None if self.names.contains(name) => true,
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
