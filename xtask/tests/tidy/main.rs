//! Rules of this repository that no compiler checks. Each test lists every violation of its
//! rule.

mod architecture;
mod chart;
mod docs;
mod files;
mod flags;
mod manifests;
mod monitoring;
mod mutants;
mod semantics;
mod sources;

use std::{
    fs,
    path::{Path, PathBuf},
};

/// A text file of the repository.
struct TextFile {
    /// Relative to the root.
    path: PathBuf,
    text: String,
}

impl TextFile {
    fn has_extension(&self, extension: &str) -> bool {
        self.path.extension().is_some_and(|found| found == extension)
    }
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("xtask is in the root of the workspace")
}

/// Returns all text files, without those of git and of builds.
fn text_files() -> Vec<TextFile> {
    let mut files = Vec::new();
    collect(root(), &mut files);
    assert!(files.len() > 20, "the repository was not found at {}", root().display());
    files
}

fn collect(folder: &Path, files: &mut Vec<TextFile>) {
    for entry in fs::read_dir(folder).expect("a readable folder") {
        let path = entry.expect("a readable entry").path();
        let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        if path.is_symlink() || [".git", "target"].contains(&name) {
            continue;
        }
        if path.is_dir() {
            collect(&path, files);
        } else if let Ok(text) = String::from_utf8(fs::read(&path).expect("a readable file")) {
            files
                .push(TextFile { path: path.strip_prefix(root()).expect("below the root").to_owned(), text });
        }
    }
}

/// Fails with the list of `problems` unless it is empty.
fn assert_none(rule: &str, problems: &[String]) {
    assert!(problems.is_empty(), "{rule}:\n  {}", problems.join("\n  "));
}
