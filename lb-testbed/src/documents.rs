//! Finds the `lb` commands in documents, and writes tables into documents.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result};

/// Returns the arguments of the `lb` commands in the code blocks of a document.
pub fn commands(document: &str) -> Vec<Vec<String>> {
    let blocks = document.split("```sh\n").skip(1).filter_map(|rest| rest.split("```").next());
    let lines = blocks.flat_map(str::lines).map(str::trim);
    lines
        .filter_map(|line| {
            let line = line.split(" # ").next().unwrap_or(line);
            let words: Vec<_> = line.split_whitespace().collect();
            let program = words.iter().position(|word| *word == "lb" || word.ends_with("/lb"))?;
            let before = &words[..program];
            let runs =
                before.is_empty() || *before == ["sudo"] || matches!(before.last(), Some(&("--" | "|")));
            runs.then(|| {
                words[program + 1..].iter().map(|word| word.trim_matches(['\'', '"']).to_owned()).collect()
            })
        })
        .collect()
}

/// Replaces the text between the first `begin` and the next `end` of a document.
pub fn replace_between(path: &Path, begin: &str, end: &str, table: &str) -> Result<()> {
    let file = || path.display().to_string();
    let text = fs::read_to_string(path).with_context(file)?;
    let (before, rest) =
        text.split_once(begin).with_context(|| format!("{} has no line `{begin}`", file()))?;
    let (_, after) = rest.split_once(end).with_context(|| format!("{} has no line `{end}`", file()))?;
    fs::write(path, format!("{before}{begin}\n{table}{end}{after}")).with_context(file)
}

#[cfg(test)]
mod tests {
    use super::commands;

    #[test]
    fn commands_are_found() {
        let document = "```sh\nlb get  services\nsudo target/release/lb agent  # comment\nkubectl exec x -- /lb doctor\n\
                        kubectl cp lb x\nkubectl get x | lb migrate -\n```\n```text\nlb no\n```\n";
        assert_eq!(
            commands(document),
            [vec!["get", "services"], vec!["agent"], vec!["doctor"], vec!["migrate", "-"]]
        );
    }
}
