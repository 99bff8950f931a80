//! Which route a request gets, as data: `cases/matching.txt`.
//!
//! A case begins with `=== ` and its name. `HOST TYPE PATH -> BACKEND` adds a route; `*` is no
//! host, and `default -> BACKEND` the default backend of the table or, after a host, that of the
//! host. `HOST PATH = BACKEND` is a request as a client sends it, and the backend it gets: 404 if
//! none, 400 if the request is refused.

use std::collections::BTreeMap;
use std::sync::Arc;

use lb_ingress::routes::{
    Backend, BackendRef, HostPattern, HostRoutes, HostSettings, NormalPath, Origin, PathMatcher, Policy,
    RequestFacts, Route, RouteTable, request_host,
};
use lb_model::ObjectName;

struct NoFacts;

impl RequestFacts for NoFacts {
    fn header(&self, _: &str) -> Option<&str> {
        None
    }

    fn cookie(&self, _: &str) -> Option<&str> {
        None
    }

    fn random(&self, _: u32) -> u32 {
        0
    }
}

fn route(matcher: PathMatcher, backend: &str) -> Arc<Route> {
    Arc::new(Route {
        origin: Origin { ingress: ObjectName::new("default", "web"), path: None },
        matcher,
        policy: Arc::new(Policy::default()),
        backends: [Backend {
            target: BackendRef { service: ObjectName::new("default", backend), port: "".into() },
            weight: 1,
        }]
        .into(),
        canary: None,
    })
}

/// The routes of a host, and its default backend.
type OfHost = (Vec<Arc<Route>>, Option<Arc<Route>>);

#[derive(Default)]
struct Rules {
    hosts: BTreeMap<HostPattern, OfHost>,
    default: Option<Arc<Route>>,
}

impl Rules {
    fn add(&mut self, rule: &str, backend: &str) {
        let words: Vec<_> = rule.split_whitespace().collect();
        let host = |text| HostPattern::parse(text).unwrap();
        match words[..] {
            ["default"] => self.default = Some(route(PathMatcher::prefix("/"), backend)),
            [name, "default"] => {
                self.hosts.entry(host(name)).or_default().1 = Some(route(PathMatcher::prefix("/"), backend));
            }
            [name, kind, path] => {
                let matcher = match kind {
                    "Exact" => PathMatcher::exact(path),
                    "Prefix" => PathMatcher::prefix(path),
                    "Regex" => PathMatcher::regex(path).unwrap(),
                    _ => panic!("no type of path: {kind}"),
                };
                self.hosts.entry(host(name)).or_default().0.push(route(matcher, backend));
            }
            _ => panic!("no rule: {rule}"),
        }
    }

    fn table(&self) -> RouteTable {
        let hosts = self.hosts.iter().map(|(host, (routes, default))| {
            let routes = HostRoutes::new(HostSettings::default(), routes.iter().cloned(), default.clone());
            (host.clone(), Some(Arc::new(routes)))
        });
        RouteTable::default().with(hosts, self.default.clone())
    }
}

fn find(table: &RouteTable, host: &str, path: &str) -> String {
    let (Some(host), Ok(path)) = (request_host(host), NormalPath::new(path)) else { return "400".to_owned() };
    match table.find(&host, &path, &NoFacts) {
        Some(found) => found.backend.expect("every route has a backend").service.name().to_owned(),
        None => "404".to_owned(),
    }
}

#[test]
fn cases() {
    let text = include_str!("cases/matching.txt");
    let mut failures = Vec::new();
    let mut count = 0;
    for case in text.split("=== ").skip(1) {
        let (name, body) = case.split_once('\n').unwrap();
        let mut rules = Rules::default();
        let lines = body.lines().filter(|line| !line.is_empty() && !line.starts_with('#'));
        for line in lines {
            if let Some((rule, backend)) = line.split_once(" -> ") {
                rules.add(rule, backend);
                continue;
            }
            let (request, expected) = line.rsplit_once(" = ").unwrap_or_else(|| panic!("{line}"));
            let (host, path) = request.split_once(' ').unwrap();
            let actual = find(&rules.table(), host, path);
            count += 1;
            if actual != expected {
                failures.push(format!("{name}: {line}, but found {actual}"));
            }
        }
    }
    assert!(count > 50, "only {count} requests were read");
    assert!(failures.is_empty(), "\n{}", failures.join("\n"));
}

#[test]
fn a_change_of_one_host_keeps_the_others() {
    let mut rules = Rules::default();
    rules.add("a.example Prefix /", "a");
    rules.add("b.example Prefix /", "b");
    let before = rules.table();
    let host = |table: &RouteTable, name| table.host(name).cloned().unwrap();
    let new = HostRoutes::new(HostSettings::default(), [route(PathMatcher::prefix("/"), "new")], None);
    let pattern = HostPattern::parse("a.example").unwrap();
    let after = before.with([(pattern.clone(), Some(Arc::new(new)))], None);
    assert_eq!(find(&before, "a.example", "/"), "a", "a request keeps its table");
    assert_eq!(find(&after, "a.example", "/"), "new");
    assert!(Arc::ptr_eq(&host(&before, "b.example"), &host(&after, "b.example")));
    let removed = after.with([(pattern, None)], None);
    assert_eq!(find(&removed, "a.example", "/"), "404");
    assert_eq!(find(&removed, "b.example", "/"), "b");
}
