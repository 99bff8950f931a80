//! The crates of the workspace, their files and the imports of each file.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use super::paths::paths;
use crate::root;

/// A path of modules below the root of a crate. The root is the empty path.
pub type Module = Vec<String>;

pub struct Crate {
    pub name: String,
    /// Normal and build dependencies.
    pub dependencies: BTreeSet<String>,
    /// The files by module, without those of tests.
    files: BTreeMap<Module, PathBuf>,
}

/// Returns every crate of the workspace, sorted by name.
pub fn workspace_crates() -> Vec<Crate> {
    let mut crates = Vec::new();
    for entry in fs::read_dir(root()).expect("a readable root").flatten() {
        let folder = entry.path();
        let Ok(manifest) = fs::read_to_string(folder.join("Cargo.toml")) else { continue };
        let mut files = BTreeMap::new();
        collect(&folder.join("src"), &Module::new(), &mut files);
        let name = entry.file_name().to_string_lossy().into_owned();
        crates.push(Crate { name, dependencies: dependencies(&manifest), files });
    }
    assert!(crates.len() > 5, "the crates were not found");
    crates.sort_by(|a, b| a.name.cmp(&b.name));
    crates
}

/// Returns the keys of `[dependencies]` and `[build-dependencies]`.
fn dependencies(manifest: &str) -> BTreeSet<String> {
    let mut section = "";
    let mut found = BTreeSet::new();
    for line in manifest.lines() {
        if let Some(heading) = line.strip_prefix('[') {
            section = heading.trim_end_matches(']');
        } else if ["dependencies", "build-dependencies"].contains(&section)
            && let Some((key, _)) = line.split_once(['.', ' ', '='])
        {
            found.insert(key.to_owned());
        }
    }
    found
}

fn collect(folder: &Path, module: &Module, files: &mut BTreeMap<Module, PathBuf>) {
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        let path = entry.path();
        let Some(stem) = path.file_stem().and_then(|stem| stem.to_str()) else { continue };
        let child = || module.iter().cloned().chain([stem.to_owned()]).collect::<Module>();
        if stem == "tests" || stem == "bin" {
            continue;
        }
        if path.is_dir() {
            collect(&path, &child(), files);
        } else if stem == "mod" || stem == "lib" {
            files.insert(module.clone(), path);
        } else if stem == "main" && module.is_empty() {
            // Beside `lib.rs`, `main.rs` is a program of its own. No file imports it.
            files.entry(module.clone()).or_insert(path);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            files.insert(child(), path);
        }
    }
}

impl Crate {
    /// Returns each import: the importing module, the imported module, and the importing file.
    pub fn imports(&self) -> Vec<(Module, Module, String)> {
        let mut imports = BTreeSet::new();
        for (module, path) in &self.files {
            let text = fs::read_to_string(path).expect("a readable source");
            let file = path.strip_prefix(root()).expect("below the root").display().to_string();
            for target in paths(&text, module).iter().map(|path| self.module_of(path)) {
                if target != *module {
                    imports.insert((module.clone(), target, file.clone()));
                }
            }
        }
        imports.into_iter().collect()
    }

    /// Returns whether a module of the root is a folder with files.
    pub fn has_folder(&self, module: &str) -> bool {
        self.files.keys().any(|file| file.len() > 1 && file[0] == module)
    }

    /// Returns the module of this crate that contains the item at a path: the longest prefix of the
    /// path that has a file.
    fn module_of(&self, path: &[String]) -> Module {
        let known = (0..=path.len()).rev().map(|length| &path[..length]);
        let mut files = known.filter(|part| self.files.contains_key(*part));
        files.next().unwrap_or_default().to_vec()
    }
}
