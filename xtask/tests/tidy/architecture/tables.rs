//! The tables of `docs/ARCHITECTURE.md`.

use std::collections::BTreeSet;

/// A row of the table of crates.
pub struct CrateRule {
    name: String,
    pub crates: BTreeSet<String>,
    pub others: BTreeSet<String>,
}

/// The folders that each folder may import.
type FolderRules = Vec<(String, BTreeSet<String>)>;

pub struct Tables {
    crates: Vec<CrateRule>,
    /// The rules of each crate that has folders.
    folders: Vec<(String, FolderRules)>,
}

impl Tables {
    /// Reads the table under `| crate |`, and one under `| folder of \`crate\` |` for each crate
    /// that has folders.
    pub fn parse(document: &str) -> Self {
        let mut tables = Self { crates: Vec::new(), folders: Vec::new() };
        let mut lines = document.lines();
        while let Some(line) = lines.next() {
            let heading = cells(line);
            let rows = || lines.clone().skip(1).take_while(|line| line.starts_with('|')).map(cells);
            match heading.first().map(String::as_str) {
                Some("crate") if heading.len() == 3 => tables.crates.extend(rows().map(|row| CrateRule {
                    name: names(&row[0]).into_iter().next().unwrap_or_default(),
                    crates: names(&row[1]),
                    others: names(&row[2]),
                })),
                Some(folder) if folder.starts_with("folder of `") => {
                    let name = names(folder).into_iter().next().unwrap_or_default();
                    let rules = rows()
                        .map(|row| (names(&row[0]).into_iter().next().unwrap_or_default(), names(&row[1])));
                    tables.folders.push((name, rules.collect()));
                }
                _ => {}
            }
        }
        assert!(
            !tables.crates.is_empty() && !tables.folders.is_empty(),
            "the tables of imports were not found"
        );
        tables
    }

    pub fn crate_rule(&self, name: &str) -> Option<&CrateRule> {
        self.crates.iter().find(|rule| rule.name == name)
    }

    pub fn folder_rules(&self, name: &str) -> Option<&FolderRules> {
        self.folders.iter().find(|(found, _)| found == name).map(|(_, rules)| rules)
    }
}

fn cells(line: &str) -> Vec<String> {
    let inner = line.trim().strip_prefix('|').and_then(|line| line.strip_suffix('|')).unwrap_or_default();
    inner.split('|').map(|cell| cell.trim().to_owned()).collect()
}

/// Returns the names in backticks.
fn names(cell: &str) -> BTreeSet<String> {
    cell.split('`').skip(1).step_by(2).map(str::to_owned).collect()
}
