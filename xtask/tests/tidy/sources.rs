//! Rules for Rust sources and crates.

use crate::{assert_none, text_files};

/// Text that sources must not contain, and the remedy. Each text is written in two halves, so that
/// this file does not contain it.
const BANNED: [([&str; 2], &str); 6] = [
    (["tod", "o!("], "implement it or leave it out"),
    (["unimple", "mented!("], "implement it or leave it out"),
    (["db", "g!("], "use tracing"),
    (["#[al", "low("], "#[expect(lint, reason = \"…\")]: the compiler reports when it is obsolete"),
    (["#![al", "low("], "#![expect(lint, reason = \"…\")]: the compiler reports when it is obsolete"),
    (["#[ign", "ore"], "run the test or remove it"),
];

#[test]
fn sources_contain_no_banned_text() {
    let mut problems = Vec::new();
    for file in text_files().iter().filter(|file| file.has_extension("rs")) {
        for (number, line) in file.text.lines().enumerate() {
            for (halves, instead) in BANNED {
                let banned = halves.concat();
                if line.contains(&banned) {
                    problems.push(format!("{}:{}: {banned}: {instead}", file.path.display(), number + 1));
                }
            }
        }
    }
    assert_none("banned in sources", &problems);
}

#[test]
fn every_crate_names_its_licence_and_takes_the_lints_of_the_workspace() {
    let mut problems = Vec::new();
    let manifests = text_files().into_iter().filter(|file| file.path.ends_with("Cargo.toml"));
    for file in manifests.filter(|file| file.text.contains("[package]")) {
        let path = file.path.display();
        let dual = file.path.starts_with("lb-common") || file.path.starts_with("lb-ebpf");
        // The kernel offers some helpers to GPL programs only, so the crates of these programs have
        // both licences.
        let licence =
            if dual { "license = \"Apache-2.0 OR GPL-2.0-only\"" } else { "license.workspace = true" };
        if !file.text.contains(licence) {
            problems.push(format!("{path}: lacks `{licence}`"));
        }
        if !file.text.contains("[lints]\nworkspace = true") {
            problems.push(format!("{path}: lacks `[lints] workspace = true`"));
        }
    }
    assert_none("crates", &problems);
}
