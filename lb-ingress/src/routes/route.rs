//! A route: the conditions for a request, its policy and its backends.

use std::borrow::Cow;
use std::sync::Arc;

use lb_model::ObjectName;

use super::backend::{Backend, BackendRef};
use super::canary::Canary;
use super::matcher::PathMatcher;
use super::path::NormalPath;
use super::policy::Policy;

/// A rule of an Ingress, ready for requests.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Route {
    pub origin: Origin,
    pub matcher: PathMatcher,
    /// Shared by the routes of an Ingress.
    pub policy: Arc<Policy>,
    /// Empty if the Ingress names no Service that exists: the answer is 503.
    pub backends: Box<[Backend]>,
    /// Another Ingress (annotation `canary`) that takes over some requests.
    pub canary: Option<Box<Canary>>,
}

/// The place where a route was written.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Origin {
    /// The Service, for the default backend of the settings.
    pub ingress: ObjectName,
    /// Number of the rule and of its path, counted from 0. `None` for `spec.defaultBackend`.
    pub path: Option<(u16, u16)>,
}

impl Route {
    /// Returns the backends that requests may reach: those of the route, of its canary and of its
    /// errors. Some are returned more than once.
    pub fn all_backends(&self) -> impl Iterator<Item = &BackendRef> {
        let of_canary = self.canary.iter().flat_map(|canary| &canary.backends);
        let all = self.backends.iter().chain(of_canary).map(|backend| &backend.target);
        all.chain(&self.policy.errors.backend)
    }

    /// Returns the path that the backend receives.
    pub fn path_for_backend<'a>(&self, path: &'a NormalPath<'_>) -> Cow<'a, str> {
        match &self.policy.rewrite.target {
            Some(target) => self.matcher.rewrite(path, target).into(),
            None => Cow::Borrowed(path),
        }
    }
}

impl Origin {
    /// Returns the field of the Ingress, such as `spec.rules[0].http.paths[1]`.
    pub fn field(&self) -> Cow<'static, str> {
        match self.path {
            Some((rule, path)) => format!("spec.rules[{rule}].http.paths[{path}]").into(),
            None => "spec.defaultBackend".into(),
        }
    }
}
