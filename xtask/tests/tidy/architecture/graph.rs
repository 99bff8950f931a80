//! Circles in the imports of a crate.

use std::collections::{BTreeMap, BTreeSet};

use super::modules::Module;

/// Returns one circle for each module that reaches itself. A circle is listed once, under the first
/// of its modules.
pub fn circles(imports: &[(Module, Module, String)]) -> Vec<String> {
    let mut edges: BTreeMap<&Module, BTreeSet<&Module>> = BTreeMap::new();
    for (from, to, _) in imports {
        edges.entry(from).or_default().insert(to);
    }
    let mut listed: BTreeSet<&Module> = BTreeSet::new();
    let mut circles = Vec::new();
    for start in edges.keys() {
        if listed.contains(start) {
            continue;
        }
        if let Some(circle) = shortest_circle(start, &edges) {
            circles.push(circle.iter().map(|module| name(module)).collect::<Vec<_>>().join(" → "));
            listed.extend(circle);
        }
    }
    circles
}

/// Returns the shortest path from a module back to itself, or `None`. The search is breadth first.
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
fn a_circle_is_listed_once() {
    let module = |name: &str| vec![name.to_owned()];
    let imports = [("a", "b"), ("b", "c"), ("c", "a"), ("d", "a")]
        .map(|(from, to)| (module(from), module(to), String::new()));
    assert_eq!(circles(&imports), ["a → b → c → a"]);
    assert_eq!(circles(&imports[1..]), [""; 0]);
}
