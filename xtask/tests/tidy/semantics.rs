//! `docs/semantics.md`: every rule names test cases that exist.

use std::collections::{BTreeMap, BTreeSet};

use crate::{TextFile, assert_none, root, text_files};

const DOCUMENT: &str = "docs/semantics.md";

#[test]
fn every_rule_names_cases_that_exist() {
    let path = root().join(DOCUMENT);
    let document = std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{DOCUMENT}: {error}"));
    let files = text_files();
    let known = known_cases(&files);
    let document = with_whole_items(&document);
    let rules = rules(&document);
    assert!(rules.len() > 20, "the rules of {DOCUMENT} were not found");
    let mut problems = Vec::new();
    for (rule, cases) in rules {
        if cases.is_empty() {
            problems.push(format!("{rule}: it names no case"));
        }
        for (kind, name) in cases {
            match known.get(kind) {
                None => problems.push(format!("{rule}: `{kind}` is not a kind of case")),
                Some(names) if !names.contains(name) => {
                    problems.push(format!("{rule}: there is no {kind} case `{name}`"));
                }
                Some(_) => {}
            }
        }
    }
    assert_none("rules and their cases", &problems);
}

/// Puts each item of a list on one line: a long name continues on indented lines.
fn with_whole_items(document: &str) -> String {
    document.replace("\n  ", " ")
}

/// Returns each `### rule`, with the kind and name of each `` - kind: `name` `` below it.
fn rules(document: &str) -> Vec<(&str, Vec<(&str, &str)>)> {
    document
        .split("\n### ")
        .skip(1)
        .filter_map(|section| {
            let section = section.split("\n## ").next()?;
            let (rule, body) = section.split_once('\n')?;
            Some((rule, body.lines().filter_map(case).collect()))
        })
        .collect()
}

fn case(line: &str) -> Option<(&str, &str)> {
    let (kind, name) = line.strip_prefix("- ")?.split_once(": `")?;
    Some((kind, name.strip_suffix('`')?))
}

/// Returns the names of all cases, by kind.
fn known_cases(files: &[TextFile]) -> BTreeMap<&'static str, BTreeSet<&str>> {
    let mut known: BTreeMap<_, BTreeSet<_>> = BTreeMap::new();
    for file in files {
        let (kind, names): (_, Vec<&str>) = match file.path.to_str() {
            Some(path) if path.starts_with("lb-plan/tests/cases/") => {
                ("plan", file.text.lines().filter_map(|line| line.strip_prefix("=== ")).collect())
            }
            Some(path) if path.starts_with("lb-testbed/tests/packets/cases/") => {
                ("packet", file.text.lines().filter_map(|line| line.strip_prefix("case: ")).collect())
            }
            Some("lb-testbed/tests/e2e/cases/mod.rs") => {
                ("e2e", called_with_name(&file.text, &["each(", "once("]))
            }
            Some("lb-testbed/tests/cluster/cases.rs" | "lb-testbed/tests/cluster/takeover.rs") => {
                let table = file.text.split("CASES: ").nth(1).and_then(|rest| rest.split("];").next());
                ("cluster", called_with_name(table.unwrap_or_default(), &["("]))
            }
            Some(path) if path.ends_with(".rs") => ("unit", test_functions(&file.text)),
            _ => continue,
        };
        known.entry(kind).or_default().extend(names);
    }
    known
}

/// Returns the first argument of each call, which is a string.
fn called_with_name<'a>(source: &'a str, calls: &[&str]) -> Vec<&'a str> {
    let after = calls.iter().flat_map(|call| source.split(call).skip(1));
    after.filter_map(|rest| rest.trim_start().strip_prefix('"')?.split('"').next()).collect()
}

/// Returns the functions with `#[test]` or `#[tokio::test]`.
fn test_functions(source: &str) -> Vec<&str> {
    let after = source.split("test]\n").skip(1);
    after.filter_map(|rest| rest.split_once("fn ")?.1.split('(').next()).collect()
}

#[test]
fn rules_and_cases_are_found() {
    let document = "# Rules\n\n## A\n\n### One\nText - no: `case`.\n\n- plan: `a: b`\n- unit: `c`\n\n## B\n- plan: `not of one`\n\n### Two\n";
    assert_eq!(with_whole_items("- plan: `a\n  b`\n- unit: `c`"), "- plan: `a b`\n- unit: `c`");
    assert_eq!(rules(document), [("One", vec![("plan", "a: b"), ("unit", "c")]), ("Two", vec![])]);
    assert_eq!(
        called_with_name("each(\"a\", x), once(\n  \"b\", y), each(name, z)", &["each(", "once("]),
        ["a", "b"]
    );
    assert_eq!(test_functions("#[test]\nfn a() {}\nfn b() {}\n#[tokio::test]\nasync fn c() {}"), ["a", "c"]);
}
