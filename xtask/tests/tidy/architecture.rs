//! The imports of the sources are those of the tables at the beginning of `docs/ARCHITECTURE.md`,
//! and no file imports in a circle.
//!
//! Paths are read from the tokens of the sources: `use` declarations, and any path that begins with
//! `crate`, `super`, `self`, a child module or a crate of this workspace. Test code
//! (`#[cfg(test)]`, `tests.rs`, `tests/`) is left out: it may import what it needs.

mod graph;
mod modules;
mod paths;
mod tables;

use std::collections::BTreeSet;

use crate::{assert_none, root};
use modules::{Crate, workspace_crates};
use tables::{CrateRule, Tables};

/// External crates that the table names. Only the crates whose rows name one of these may depend on
/// it.
const WATCHED: [&str; 6] = ["aya", "aya-ebpf", "clap", "k8s-openapi", "kube", "tokio"];

fn tables() -> Tables {
    let document =
        std::fs::read_to_string(root().join("docs/ARCHITECTURE.md")).expect("docs/ARCHITECTURE.md");
    Tables::parse(&document)
}

#[test]
fn crates_depend_on_what_the_table_allows() {
    let tables = tables();
    let crates = workspace_crates();
    let mut problems = Vec::new();
    for Crate { name, dependencies, .. } in &crates {
        let Some(CrateRule { crates: allowed, others, .. }) = tables.crate_rule(name) else {
            problems.push(format!("{name}: has no row in the table of crates"));
            continue;
        };
        let ours: BTreeSet<_> = dependencies
            .iter()
            .filter(|dependency| crates.iter().any(|c| c.name == **dependency))
            .cloned()
            .collect();
        let watched: BTreeSet<_> = dependencies
            .iter()
            .filter(|dependency| WATCHED.contains(&dependency.as_str()))
            .cloned()
            .collect();
        for (what, found, allowed) in [("crates", ours, allowed), ("others", watched, others)] {
            if found != *allowed {
                problems.push(format!("{name}: {what}: Cargo.toml has {found:?}, the table {allowed:?}"));
            }
        }
    }
    assert_none("dependencies of crates", &problems);
}

#[test]
fn folders_import_what_the_table_allows() {
    let tables = tables();
    let mut problems = Vec::new();
    for package in workspace_crates() {
        let Some(rules) = tables.folder_rules(&package.name) else { continue };
        let mut used = rules.iter().map(|(folder, _)| (folder.clone(), BTreeSet::new())).collect::<Vec<_>>();
        for (from, to, file) in package.imports() {
            let (from, to) = (folder_of(&package, &from), folder_of(&package, &to));
            if from == to || from.is_empty() {
                // The root of a crate declares its folders and re-exports their public items.
                continue;
            }
            match rules.iter().find(|(folder, _)| *folder == from) {
                None => problems.push(format!("{}: folder `{from}` has no row in the table", package.name)),
                Some((_, allowed)) if !allowed.contains(&to) => {
                    problems.push(format!("{file}: `{from}` may not import `{to}`"));
                }
                Some(_) => used.iter_mut().filter(|(folder, _)| *folder == from).for_each(|(_, found)| {
                    found.insert(to.clone());
                }),
            }
        }
        for ((folder, allowed), (_, found)) in rules.iter().zip(used) {
            for unused in allowed.difference(&found) {
                problems.push(format!(
                    "{}: `{folder}` is allowed to import `{unused}` and does not",
                    package.name
                ));
            }
        }
    }
    problems.sort();
    problems.dedup();
    assert_none("imports between folders", &problems);
}

/// Returns the folder in `src` that contains a module. Files beside `lib.rs` are in the folder
/// `src`.
fn folder_of(package: &Crate, module: &[String]) -> String {
    match module.first() {
        Some(first) if package.has_folder(first) => first.clone(),
        Some(_) => "src".to_owned(),
        None => String::new(),
    }
}

#[test]
fn no_file_imports_in_a_circle() {
    let mut problems = Vec::new();
    for package in workspace_crates() {
        for circle in graph::circles(&package.imports()) {
            problems.push(format!("{}: {circle}", package.name));
        }
    }
    assert_none("circles of imports", &problems);
}
