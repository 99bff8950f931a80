//! Requests that another Ingress takes over.

use regex::bytes::Regex;

use super::backend::Backend;

/// Facts of a request other than its host and path.
pub trait RequestFacts {
    /// Returns the first value of a header. `name` is in lower case.
    fn header(&self, name: &str) -> Option<&str>;

    /// Returns the value of a cookie.
    fn cookie(&self, name: &str) -> Option<&str>;

    /// Returns a random number below `bound`, which is not 0.
    fn random(&self, bound: u32) -> u32;
}

/// A canary: a second Ingress with the host and path of a route, and the requests that it gets.
/// The header decides first, then the cookie, then the weight, as in ingress-nginx.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Canary {
    pub ingress: lb_model::ObjectName,
    /// Empty if the Service does not exist: the route keeps its requests.
    pub backends: Box<[Backend]>,
    pub header: Option<HeaderCondition>,
    /// The value `always` selects the canary, `never` the route.
    pub cookie: Option<Box<str>>,
    pub weight: u32,
    /// The sum of the weights of the canary and the route. Not 0.
    pub weight_total: u32,
}

/// A header that selects the canary.
#[derive(Debug, Clone)]
pub enum HeaderCondition {
    /// The value `always` selects the canary, `never` the route.
    AlwaysOrNever(Box<str>),
    /// This value selects the canary.
    Value(Box<str>, Box<str>),
    /// A value with a match of the expression selects the canary.
    Pattern(Box<str>, Regex),
}

impl Canary {
    /// Returns whether the canary gets the request.
    pub(super) fn takes(&self, facts: &dyn RequestFacts) -> bool {
        if self.backends.is_empty() {
            return false;
        }
        let by_header = self.header.as_ref().and_then(|condition| condition.decide(facts));
        let by_cookie = || always_or_never(facts.cookie(self.cookie.as_deref()?)?);
        by_header
            .or_else(by_cookie)
            .unwrap_or_else(|| self.weight > 0 && facts.random(self.weight_total) < self.weight)
    }
}

impl HeaderCondition {
    /// Returns the name of the header in lower case.
    pub fn name(&self) -> &str {
        match self {
            Self::AlwaysOrNever(name) | Self::Value(name, _) | Self::Pattern(name, _) => name,
        }
    }

    /// Returns `None` if the header leaves the decision to the cookie and the weight.
    fn decide(&self, facts: &dyn RequestFacts) -> Option<bool> {
        let value = facts.header(self.name())?;
        match self {
            Self::AlwaysOrNever(_) => always_or_never(value),
            Self::Value(_, expected) => (value == &**expected).then_some(true),
            Self::Pattern(_, regex) => regex.is_match(value.as_bytes()).then_some(true),
        }
    }
}

fn always_or_never(value: &str) -> Option<bool> {
    match value {
        "always" => Some(true),
        "never" => Some(false),
        _ => None,
    }
}

impl PartialEq for HeaderCondition {
    fn eq(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::AlwaysOrNever(a), Self::AlwaysOrNever(b)) => a == b,
            (Self::Value(a, value_a), Self::Value(b, value_b)) => (a, value_a) == (b, value_b),
            (Self::Pattern(a, regex_a), Self::Pattern(b, regex_b)) => {
                (a, regex_a.as_str()) == (b, regex_b.as_str())
            }
            _ => false,
        }
    }
}

impl Eq for HeaderCondition {}
