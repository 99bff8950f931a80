//! Documentation: its links lead to existing files, and it describes every map.

use std::path::Path;

use crate::{assert_none, root, text_files};

#[test]
fn links_in_markdown_lead_to_files_and_headings() {
    let mut problems = Vec::new();
    for file in text_files().iter().filter(|file| file.has_extension("md")) {
        let folder = root().join(&file.path).parent().map(Path::to_owned).unwrap_or_default();
        for target in links(&file.text) {
            let (path, anchor) = target.split_once('#').unwrap_or((target, ""));
            let linked = if path.is_empty() { root().join(&file.path) } else { folder.join(path) };
            if !linked.exists() {
                problems.push(format!("{}: {target} does not exist", file.path.display()));
            } else if !anchor.is_empty() && linked.extension().is_some_and(|extension| extension == "md") {
                let text = std::fs::read_to_string(&linked).expect("a readable document");
                if !text.lines().filter_map(heading_anchor).any(|found| found == anchor) {
                    problems.push(format!("{}: {target} is not a heading", file.path.display()));
                }
            }
        }
    }
    assert_none("dead links", &problems);
}

/// Returns the targets of `[text](target)` in this repository. Code blocks are not read.
fn links(markdown: &str) -> Vec<&str> {
    let outside_of_code = markdown.split("```").step_by(2);
    outside_of_code
        .flat_map(|part| part.split("](").skip(1))
        .filter_map(|rest| rest.split([')', ' ']).next())
        .filter(|target| !target.contains("://") && !target.starts_with("mailto:") && !target.is_empty())
        .collect()
}

/// Returns the anchor that GitHub derives from a heading.
fn heading_anchor(line: &str) -> Option<String> {
    let heading = line.strip_prefix('#')?.trim_start_matches('#').trim();
    let keeps = |c: &char| c.is_alphanumeric() || matches!(c, ' ' | '-' | '_');
    Some(heading.to_lowercase().chars().filter(keeps).map(|c| if c == ' ' { '-' } else { c }).collect())
}

#[test]
fn every_map_is_documented() {
    let read = |path: &str| {
        std::fs::read_to_string(root().join(path))
            .unwrap_or_else(|error| panic!("cannot read {path}: {error}"))
    };
    let (sources, documentation) = (read("lb-ebpf/src/maps.rs"), read("docs/maps.md"));
    let maps = map_names(&sources);
    assert!(!maps.is_empty(), "no map found in lb-ebpf/src/maps.rs");
    let problems: Vec<_> = maps
        .iter()
        .filter(|map| !documentation.contains(&format!("`{map}`")))
        .map(|map| format!("docs/maps.md does not describe `{map}`"))
        .collect();
    assert_none("maps without documentation", &problems);
}

/// Returns the names of the statics with `#[map]` or `#[btf_map]`.
fn map_names(source: &str) -> Vec<&str> {
    source
        .split("map]\n")
        .skip(1)
        .filter_map(|rest| {
            let (_, name) = rest.split_once("static ")?;
            name.split(':').next().map(str::trim)
        })
        .collect()
}

#[test]
fn links_anchors_and_maps_are_found() {
    let markdown =
        "See [a](docs/a.md#the-maps), [b](https://x.test), ![c](c.svg \"title\").\n```\n[d](d)\n```\n[e](#f)";
    assert_eq!(links(markdown), ["docs/a.md#the-maps", "c.svg", "#f"]);
    assert_eq!(heading_anchor("## The maps: `lb get`").as_deref(), Some("the-maps-lb-get"));
    assert_eq!(heading_anchor("no heading"), None);
    let source =
        "#[btf_map]\npub static A: Array<u32, 1> = Array::new();\n\n/// B.\n#[map]\nstatic B_2: X = X;\n";
    assert_eq!(map_names(source), ["A", "B_2"]);
}

/// Checks links such as `` [`flow::find`](../lb-ebpf/src/flow.rs) ``: the file defines the name.
#[test]
fn names_in_links_to_sources_are_defined_there() {
    let mut problems = Vec::new();
    let mut count = 0;
    for file in text_files().iter().filter(|file| file.has_extension("md")) {
        let folder = root().join(&file.path).parent().map(Path::to_owned).unwrap_or_default();
        for (name, target) in names_in_links(&file.text) {
            count += 1;
            // Another test reports links to files that do not exist.
            let source = std::fs::read_to_string(folder.join(target)).unwrap_or_default();
            if !defines(&source, name) {
                problems.push(format!("{}: {target} does not define {name}", file.path.display()));
            }
        }
    }
    assert!(count > 30, "the links of docs/packet-walk.md were not found");
    assert_none("links with names that the source does not define", &problems);
}

/// Returns the names (without their path) and the files of links to Rust sources.
fn names_in_links(markdown: &str) -> Vec<(&str, &str)> {
    let links =
        markdown.split("[`").skip(1).filter_map(|rest| rest.split_once("`](")).filter_map(|(text, rest)| {
            let target = rest.split(')').next().filter(|target| target.ends_with(".rs"))?;
            let is_name = text.chars().all(|c| c.is_alphanumeric() || matches!(c, '_' | ':'));
            is_name.then_some((text.rsplit("::").next().unwrap_or(text), target))
        });
    links.collect()
}

/// Returns whether a source defines a function, a type, a map, or a variant of an enum.
fn defines(source: &str, name: &str) -> bool {
    source.lines().map(str::trim_start).any(|line| {
        let is_variant = name.starts_with(char::is_uppercase)
            && line.strip_prefix(name).is_some_and(|rest| rest.starts_with([',', '(']));
        let mut words = line.split(|c: char| !c.is_alphanumeric() && c != '_');
        let is_item = words.any(|word| ["fn", "struct", "enum", "trait", "static", "const"].contains(&word))
            && words.next() == Some(name);
        is_item || is_variant
    })
}

#[test]
fn names_and_definitions_are_found() {
    let markdown = "[`a::b`](../x/src/a.rs) [`a.rs`](a.rs) [`C`](c.md) [text](d.rs) [`D`](d.rs)";
    assert_eq!(names_in_links(markdown), [("b", "../x/src/a.rs"), ("D", "d.rs")]);
    let source =
        "pub(super) async fn find<F>(x: X) {\n    static MAP: M = 1;\n    Out(Route),\n    call(arg);\n";
    assert!(["find", "MAP", "Out"].iter().all(|name| defines(source, name)));
    assert!(["call", "fin", "Route", "x"].iter().all(|name| !defines(source, name)));
}
