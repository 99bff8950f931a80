//! Every fault of `cargo xtask mutants` can still be planted.

#[path = "../../src/mutants/faults.rs"]
mod faults;

use crate::{assert_none, root};

/// The least number of faults.
const LEAST: usize = 80;

#[test]
fn the_text_of_every_fault_occurs_once_in_its_file() {
    let faults = faults::read(root()).expect("the faults can be read");
    assert!(faults.len() >= LEAST, "there are only {} faults", faults.len());
    let stale: Vec<String> = faults.iter().filter_map(|fault| fault.plant_in(root()).err()).collect();
    assert_none("faults that can no longer be planted: change their text", &stale);
}
