//! Rules for all files.

use crate::{TextFile, assert_none, text_files};

/// A longer file has more than one concern.
const MAX_LINES: usize = 900;

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
