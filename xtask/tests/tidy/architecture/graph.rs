//! Circles in the imports of a crate.

use std::collections::{BTreeMap, BTreeSet};

use super::modules::Module;

/// One circle for each module that reaches itself, told once: by the first of its modules.
pub fn circles(imports: &[(Module, Module, String)]) -> Vec<String> {
    let mut edges: BTreeMap<&Module, BTreeSet<&Module>> = BTreeMap::new();
    for (from, to, _) in imports {
        edges.entry(from).or_default().insert(to);
    }
    let mut told: BTreeSet<&Module> = BTreeSet::new();
    let mut circles = Vec::new();
    for start in edges.keys() {
        if told.contains(start) {
            continue;
        }
        if let Some(circle) = shortest_circle(start, &edges) {
            circles.push(circle.iter().map(|module| name(module)).collect::<Vec<_>>().join(" → "));
            told.extend(circle);
        }
    }
    circles
}

/// The way from a module back to itself, if there is one: found breadth first.
fn shortest_circle<'a>(
    start: &'a Module,
    edges: &BTreeMap<&'a Module, BTreeSet<&'a Module>>,
) -> Option<Vec<&'a Module>> {
    let mut came_from: BTreeMap<&Module, &Module> = BTreeMap::new();
    let mut front = vec![start];
    while !front.is_empty() {
        let mut next = Vec::new();
        for module in front {
            for &target in edges.get(module).into_iter().flatten() {
                if target == start {
                    let mut circle = vec![start, module];
                    while *circle.last()? != start {
                        circle.push(came_from.get(circle.last()?)?);
                    }
                    circle.reverse();
                    return Some(circle);
                }
                if !came_from.contains_key(target) {
                    came_from.insert(target, module);
                    next.push(target);
                }
            }
        }
        front = next;
    }
    None
}

fn name(module: &Module) -> String {
    if module.is_empty() { "crate".to_owned() } else { module.join("::") }
}

#[test]
fn a_circle_is_told_once() {
    let module = |name: &str| vec![name.to_owned()];
    let imports = [("a", "b"), ("b", "c"), ("c", "a"), ("d", "a")]
        .map(|(from, to)| (module(from), module(to), String::new()));
    assert_eq!(circles(&imports), ["a → b → c → a"]);
    assert_eq!(circles(&imports[1..]), [""; 0]);
}
