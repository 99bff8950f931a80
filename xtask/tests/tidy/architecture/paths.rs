//! The paths into its own crate that a source file contains.

use std::collections::BTreeSet;

use proc_macro2::{Delimiter, Group, TokenStream, TokenTree};

use super::modules::Module;

/// Returns every path into the module's own crate that its text contains. Paths start at the root
/// of the crate.
pub fn paths(text: &str, module: &Module) -> BTreeSet<Vec<String>> {
    let tokens: TokenStream = text.parse().expect("Rust source");
    let mut reader = Reader { module: module.clone(), children: BTreeSet::new(), found: BTreeSet::new() };
    let tokens = without_tests(tokens);
    reader.children = declared_modules(&tokens);
    reader.read(&tokens);
    reader.found
}

fn ident(token: Option<&TokenTree>) -> Option<String> {
    match token {
        Some(TokenTree::Ident(ident)) => Some(ident.to_string()),
        _ => None,
    }
}

fn is_punct(token: Option<&TokenTree>, sign: char) -> bool {
    matches!(token, Some(TokenTree::Punct(punct)) if punct.as_char() == sign)
}

fn group(token: Option<&TokenTree>, delimiter: Delimiter) -> Option<&Group> {
    match token {
        Some(TokenTree::Group(group)) if group.delimiter() == delimiter => Some(group),
        _ => None,
    }
}

/// Returns the tokens without items with `#[cfg(test)]` and the like.
fn without_tests(tokens: TokenStream) -> Vec<TokenTree> {
    let tokens: Vec<TokenTree> = tokens.into_iter().collect();
    let mut kept = Vec::new();
    let mut index = 0;
    while index < tokens.len() {
        let attribute =
            is_punct(tokens.get(index), '#').then(|| group(tokens.get(index + 1), Delimiter::Bracket));
        let text =
            attribute.flatten().map(|group| group.stream().to_string().replace(' ', "")).unwrap_or_default();
        if text.starts_with("cfg(test)")
            || text.starts_with("cfg(any(test,")
            || text.starts_with("cfg(all(test,")
        {
            index += 2;
            // The item ends with `;` or with its body.
            while index < tokens.len() {
                let end =
                    is_punct(tokens.get(index), ';') || group(tokens.get(index), Delimiter::Brace).is_some();
                index += 1;
                if end {
                    break;
                }
            }
        } else {
            kept.push(tokens[index].clone());
            index += 1;
        }
    }
    kept
}

/// Returns the names in `mod name;`.
fn declared_modules(tokens: &[TokenTree]) -> BTreeSet<String> {
    let declared = tokens
        .windows(3)
        .filter(|window| ident(window.first()).as_deref() == Some("mod") && is_punct(window.get(2), ';'));
    declared.filter_map(|window| ident(window.get(1))).collect()
}

struct Reader {
    /// The module that paths with `self` and `super` start from.
    module: Module,
    children: BTreeSet<String>,
    found: BTreeSet<Vec<String>>,
}

impl Reader {
    fn read(&mut self, tokens: &[TokenTree]) {
        let mut index = 0;
        while index < tokens.len() {
            match ident(tokens.get(index)).as_deref() {
                Some("use") => {
                    let end =
                        (index..tokens.len()).find(|i| is_punct(tokens.get(*i), ';')).unwrap_or(tokens.len());
                    self.tree(&tokens[index + 1..end], &[]);
                    index = end;
                }
                // `mod name { … }`: `super` leads to this file there.
                Some("mod") if group(tokens.get(index + 2), Delimiter::Brace).is_some() => {
                    let name = ident(tokens.get(index + 1)).unwrap_or_default();
                    let body =
                        group(tokens.get(index + 2), Delimiter::Brace).map(Group::stream).unwrap_or_default();
                    self.module.push(name);
                    let children = std::mem::take(&mut self.children);
                    self.read(&without_tests(body));
                    self.children = children;
                    self.module.pop();
                    index += 2;
                }
                Some(_) if !follows_path(tokens, index) => {
                    let (segments, next) = segments(tokens, index);
                    if segments.len() > 1 {
                        self.add(&segments);
                    }
                    index = next - 1;
                }
                _ => {
                    if let Some(TokenTree::Group(group)) = tokens.get(index) {
                        self.read(&without_tests(group.stream()));
                    }
                }
            }
            index += 1;
        }
    }

    /// Reads a tree of a `use` declaration below `prefix`.
    fn tree(&mut self, tokens: &[TokenTree], prefix: &[String]) {
        // A list may end with a comma, so the last branch may be empty.
        let branches = tokens.split(|token| is_punct(Some(token), ','));
        for branch in branches.filter(|branch| !branch.is_empty()) {
            let (mut path, next) = segments(branch, 0);
            path.splice(0..0, prefix.iter().cloned());
            match group(branch.get(next), Delimiter::Brace) {
                Some(group) => self.tree(&group.stream().into_iter().collect::<Vec<_>>(), &path),
                None => self.add(&path),
            }
        }
    }

    fn add(&mut self, segments: &[String]) {
        let mut base = self.module.clone();
        let mut rest = segments;
        match rest.first().map(String::as_str) {
            Some("crate") => base.clear(),
            Some("self") => {}
            Some("super") => {
                while rest.first().is_some_and(|segment| segment == "super") {
                    base.pop();
                    rest = &rest[1..];
                }
                base.extend(rest.iter().cloned());
                self.found.insert(base);
                return;
            }
            Some(child) if self.children.contains(child) => {
                base.extend(rest.iter().cloned());
                self.found.insert(base);
                return;
            }
            _ => return,
        }
        // `use path::{self, …}` names the path itself.
        base.extend(rest[1..].iter().filter(|segment| *segment != "self").cloned());
        self.found.insert(base);
    }
}

/// Returns whether the token belongs to a path that began before it, or is a field or a method.
fn follows_path(tokens: &[TokenTree], index: usize) -> bool {
    index > 0
        && (is_punct(tokens.get(index - 1), '.')
            || is_punct(tokens.get(index - 1), ':') && index > 1 && is_punct(tokens.get(index - 2), ':'))
}

/// Returns the segments of the path that starts here, and the index of the token after it.
fn segments(tokens: &[TokenTree], start: usize) -> (Vec<String>, usize) {
    let mut found = Vec::new();
    let mut index = start;
    // `pub`, `unsafe` and other words before the first segment are paths of one segment and add
    // nothing.
    while let Some(name) = ident(tokens.get(index)) {
        found.push(name);
        index += 1;
        if !(is_punct(tokens.get(index), ':') && is_punct(tokens.get(index + 1), ':')) {
            break;
        }
        index += 2;
    }
    (found, index.max(start + 1))
}

#[test]
fn paths_are_found_in_declarations_expressions_and_macros() {
    let text = r#"
        mod child;
        use std::fmt;
        use crate::{a::{self, b::{C, D as E}, f},};
        pub(crate) use self::child::Thing;
        fn g(x: super::sibling::T) { println!("{}", crate::h::i::<u8>(child::j())); let a = x.crate_; }
        mod inner { use super::k; }
        #[cfg(test)]
        mod tests { use crate::only::tests; }
    "#;
    let found = paths(text, &vec!["m".to_owned(), "n".to_owned()]);
    let found: Vec<String> = found.iter().map(|path| path.join("::")).collect();
    assert_eq!(
        found,
        [
            "a",
            "a::b::C",
            "a::b::D",
            "a::f",
            "h::i",
            "m::n::child::Thing",
            "m::n::child::j",
            "m::n::k",
            "m::sibling::T"
        ]
    );
}
