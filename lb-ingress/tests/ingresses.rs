//! Ingresses and the routes they become, as data: `cases/ingress/*.txt`.
//!
//! A case begins with `=== ` and its name. Objects in a short form follow, then `=>` and the routes
//! and problems. After `then`, the objects of a second step replace those of the first. A step is
//! translated twice, as a change and after a fresh start, and both results must be equal.
//!
//! `requests` has the hosts and paths of requests. Instead of the routes, the result then has the
//! Service that each request gets.
//!
//! `SLUICE_BLESS=1` writes the actual results into the files.

mod short_form;

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::path::Path;

use lb_ingress::ingress::{Settings, Translator, Update};
use lb_ingress::routes::policy::Policy;
use lb_ingress::routes::{HostRoutes, NormalPath, RequestFacts, Route, RouteTable, request_host};
use lb_model::Severity;
use lb_objects::{ObjectSelection, manifests};
use serde_json::json;

use crate::short_form::{Step, expand};

#[test]
fn cases() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/cases/ingress");
    let bless = std::env::var_os("SLUICE_BLESS").is_some();
    let (mut failures, mut count) = (String::new(), 0);
    for entry in fs::read_dir(&folder).unwrap() {
        let path = entry.unwrap().path();
        let text = fs::read_to_string(&path).unwrap();
        let mut blessed = String::new();
        for case in text.split("=== ").skip(1) {
            let (name, steps) = case.split_once('\n').unwrap();
            let actual = run(steps);
            count += 1;
            if actual.trim_end() != steps.trim_end() {
                let file = path.file_name().unwrap().to_string_lossy();
                write!(failures, "\n{file}: {name}\n{}", difference(steps, &actual)).unwrap();
            }
            write!(blessed, "=== {name}\n{}\n\n", actual.trim_end()).unwrap();
        }
        if bless {
            fs::write(&path, blessed.trim_end().to_owned() + "\n").unwrap();
        }
    }
    assert!(count > 20, "only {count} cases were found");
    assert!(bless || failures.is_empty(), "{failures}\n(`-` expected, `+` actual)");
}

/// Runs the steps of a case. Returns them with the actual results.
fn run(steps: &str) -> String {
    let folder = tempfile::tempdir().unwrap();
    let selection = ObjectSelection::of_ingresses("here");
    let mut source = manifests::ManifestFolder::new(folder.path().to_owned(), selection.clone());
    let mut live: Option<Live> = None;
    let mut written = String::new();
    for (number, step) in steps.split("\nthen\n").enumerate() {
        let input = step.split("\n=>").next().unwrap().trim_end();
        let Step { objects, requests, without_class, default_backend } = expand(input);
        let objects = json!({"apiVersion": "v1", "kind": "List", "items": objects});
        let mut settings = Settings::default();
        settings.classes.without_class = without_class;
        settings.default_backend = default_backend.map(|service| service.parse().unwrap());
        fs::write(folder.path().join("objects.json"), objects.to_string()).unwrap();
        let live = live.get_or_insert_with(|| Live::new(settings.clone()));
        let hosts = live.apply(|translator| translator.update(source.scan().unwrap()));
        let mut fresh = Live::new(settings);
        let events = manifests::load(folder.path(), selection.clone()).unwrap();
        fresh.apply(|translator| translator.update(events));
        assert_eq!(live.text(), fresh.text(), "after a fresh start, {input}");
        let hosts = if hosts.is_empty() { "no host".to_owned() } else { hosts.join(", ") };
        let changed = if number == 0 { String::new() } else { format!("changed: {hosts}\n") };
        let then = if number == 0 { "" } else { "then\n" };
        let result = if requests.is_empty() { changed + &live.text() } else { live.answers(&requests) };
        write!(written, "{then}{input}\n=>\n{result}").unwrap();
    }
    written
}

/// A translator, and the table that results from its updates.
struct Live {
    translator: Translator,
    table: RouteTable,
}

impl Live {
    fn new(settings: Settings) -> Self {
        Self { translator: Translator::new(settings), table: RouteTable::default() }
    }

    /// Returns the hosts that changed.
    fn apply(&mut self, update: impl FnOnce(&mut Translator) -> Update) -> Vec<String> {
        let Update { hosts, default, complete, .. } = update(&mut self.translator);
        assert!(complete);
        let names = hosts.iter().map(|(host, _)| host.to_string()).collect();
        self.table = self.table.with(hosts, default);
        names
    }

    /// Returns one line for each request.
    fn answers(&self, requests: &[String]) -> String {
        let answer = |request: &String| {
            let (host, path) = request.split_once('/').unwrap();
            let path = format!("/{path}");
            let (Some(host), Ok(path)) = (request_host(host), NormalPath::new(&path)) else {
                return format!("{request} = 400\n");
            };
            let backend = self.table.find(&host, &path, &NoFacts).map(|found| found.backend);
            match backend {
                None => format!("{request} = 404\n"),
                Some(None) => format!("{request} = 503\n"),
                Some(Some(backend)) => format!("{request} = {}\n", backend.service.name()),
            }
        };
        requests.iter().map(answer).collect()
    }

    fn text(&self) -> String {
        let mut text = String::new();
        let hosts: BTreeMap<_, _> = self.table.hosts().collect();
        for (host, routes) in hosts {
            writeln!(text, "{host}{}", settings(routes)).unwrap();
            let mut lines: Vec<_> = routes.routes().map(|route| format!("  {}", line(route))).collect();
            lines.sort();
            for line in lines {
                writeln!(text, "{line}").unwrap();
            }
        }
        if let Some(route) = self.table.default_route() {
            writeln!(text, "default: {}", line(route)).unwrap();
        }
        for secret in self.translator.named_secrets() {
            writeln!(text, "needs Secret {secret}").unwrap();
        }
        let mut problems: Vec<_> = self.translator.problems().iter().cloned().collect();
        problems.sort();
        for mut problem in problems {
            problem.location = None;
            let sign = if problem.severity == Severity::Error { "!" } else { "?" };
            writeln!(text, "{sign} {}: {problem}", problem.kind).unwrap();
        }
        if text.is_empty() { "nothing\n".to_owned() } else { text }
    }
}

fn settings(host: &HostRoutes) -> String {
    let settings = &host.settings;
    let mut text = String::new();
    if let Some(secret) = &settings.tls {
        write!(text, " tls {secret}").unwrap();
    }
    if settings.default_certificate {
        text.push_str(" default certificate");
    }
    if let Some(passthrough) = &settings.passthrough {
        write!(text, " passthrough {}", passthrough.backend).unwrap();
    }
    if let Some(certificates) = &settings.client_certificates {
        write!(text, " {certificates:?}").unwrap();
    }
    if let Some(host) = &settings.redirect_to {
        write!(text, " redirect to {host}").unwrap();
    }
    text
}

fn line(route: &Route) -> String {
    let place = match route.origin.path {
        Some(_) => route.matcher.to_string(),
        None => "else".to_owned(),
    };
    let backends = |backends: &[lb_ingress::routes::Backend]| {
        let names: Vec<_> = backends.iter().map(|backend| backend.target.to_string()).collect();
        if names.is_empty() { "503".to_owned() } else { names.join(" ") }
    };
    let mut text = format!("{place} → {} ({})", backends(&route.backends), route.origin.ingress.name());
    if let Some(canary) = &route.canary {
        let condition = (&canary.header, &canary.cookie, canary.weight, canary.weight_total);
        write!(text, " canary {} ({}) {condition:?}", backends(&canary.backends), canary.ingress.name())
            .unwrap();
    }
    text + &policy(&route.policy)
}

/// The families that are not the default.
fn policy(policy: &Policy) -> String {
    let default = Policy::default();
    let mut text = String::new();
    macro_rules! family {
        ($($field:ident),*) => {
            $(if policy.$field != default.$field {
                write!(text, "\n      {}: {:?}", stringify!($field), policy.$field).unwrap();
            })*
        };
    }
    family!(redirect, rewrite, timeouts, body, cors, sources, auth, affinity, limits, rate, upstream);
    family!(errors, headers, responses, answer, refused);
    text
}

/// Returns the lines that differ.
fn difference(expected: &str, actual: &str) -> String {
    let (expected, actual): (Vec<_>, Vec<_>) =
        (expected.trim_end().lines().collect(), actual.trim_end().lines().collect());
    let same = expected.iter().zip(&actual).take_while(|(old, new)| old == new).count();
    let lines = |sign: char, lines: &[&str]| {
        lines.iter().skip(same).map(|line| format!("{sign} {line}\n")).collect::<String>()
    };
    lines('-', &expected) + &lines('+', &actual)
}

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
