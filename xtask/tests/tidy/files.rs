//! Rules for all files.

use crate::{TextFile, assert_none, text_files};

/// A longer file has more than one concern.
const MAX_LINES: usize = 900;

/// Longest line of text in comments and documents.
const MAX_COLUMNS: usize = 100;

#[test]
fn shell_scripts_are_in_ci_only() {
    let is_script =
        |file: &TextFile| file.has_extension("sh") || file.text.lines().next().is_some_and(is_shell_line);
    let problems: Vec<_> = text_files()
        .iter()
        .filter(|file| is_script(file) && !file.path.starts_with(".ci"))
        .map(|file| file.path.display().to_string())
        .collect();
    assert_none("shell scripts outside of .ci; write a task of xtask instead", &problems);
}

fn is_shell_line(line: &str) -> bool {
    line.starts_with("#!") && !line.starts_with("#![") && line.ends_with("sh")
}

#[test]
fn no_trailing_white_space_and_a_newline_at_the_end() {
    let mut problems = Vec::new();
    for file in text_files().iter().filter(|file| !is_verbatim(file)) {
        for (number, line) in file.text.lines().enumerate() {
            if line.ends_with([' ', '\t', '\r']) {
                problems.push(format!("{}:{}: white space at the end", file.path.display(), number + 1));
            }
        }
        if !file.text.is_empty() && (!file.text.ends_with('\n') || file.text.ends_with("\n\n")) {
            problems.push(format!("{}: does not end with exactly one newline", file.path.display()));
        }
    }
    assert_none("trailing white space", &problems);
}

/// Returns true for texts of other authors, and for output of programs.
fn is_verbatim(file: &TextFile) -> bool {
    file.path.to_string_lossy().starts_with("LICENSE") || file.path.iter().any(|part| part == "golden")
}

#[test]
fn source_files_are_short() {
    let problems: Vec<_> = text_files()
        .iter()
        .filter(|file| file.has_extension("rs") && file.text.lines().count() > MAX_LINES)
        .map(|file| format!("{}: {} lines", file.path.display(), file.text.lines().count()))
        .collect();
    assert_none(&format!("no source file has more than {MAX_LINES} lines"), &problems);
}

#[test]
fn the_first_line_identifies_a_shell_script() {
    assert!(is_shell_line("#!/bin/sh") && is_shell_line("#!/usr/bin/env bash"));
    assert!(!is_shell_line("#![no_std]") && !is_shell_line("#!/usr/bin/env python3"));
}

#[test]
fn comments_and_documents_have_at_most_100_columns() {
    let mut problems = Vec::new();
    for file in text_files().iter().filter(|file| !is_verbatim(file)) {
        let prefix = match file.path.extension().and_then(|extension| extension.to_str()) {
            Some("rs") => "//",
            Some("md") => "",
            _ => continue,
        };
        for number in long_lines(&file.text, prefix) {
            problems.push(format!("{}:{number}", file.path.display()));
        }
    }
    assert_none(&format!("lines of text with more than {MAX_COLUMNS} columns"), &problems);
}

/// Returns the numbers of the lines that begin with `prefix` and are too long. Code blocks and rows
/// of tables do not count, nor does a line that is long because of one word, such as a link.
fn long_lines(text: &str, prefix: &str) -> Vec<usize> {
    let mut in_code = false;
    let mut found = Vec::new();
    for (number, line) in (1..).zip(text.lines()) {
        let Some(content) = line.trim_start().strip_prefix(prefix) else {
            in_code = false;
            continue;
        };
        let content = content.trim_start_matches(['/', '!']).trim_start();
        if content.starts_with("```") {
            in_code = !in_code;
        } else if !in_code && !content.starts_with('|') && line.chars().count() > MAX_COLUMNS {
            let words_before_the_limit = line.chars().take(MAX_COLUMNS).collect::<String>();
            let indent = line.chars().count() - content.chars().count();
            let can_be_broken = words_before_the_limit.chars().skip(indent + 2).any(char::is_whitespace);
            if can_be_broken {
                found.push(number);
            }
        }
    }
    found
}

#[test]
fn lines_that_are_too_long_are_found() {
    let long = "word ".repeat(30);
    let link = format!("- [x]({})", "y".repeat(120));
    let markdown = format!("{long}\n```\n{long}\n```\n| {long}\n{link}\nshort\n{long}");
    assert_eq!(long_lines(&markdown, ""), [1, 8]);
    let source = format!("    /// {long}\nlet x = 1; // {long}\n//! ```text\n//! {long}\n//! ```\n// {long}");
    assert_eq!(long_lines(&source, "//"), [1, 6]);
}
