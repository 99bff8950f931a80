//! Helpers of the unit tests.

use std::path::Path;

/// Compares `actual` with the file `tests/golden/NAME`. With `SLUICE_BLESS=1` the file is
/// written instead, and the change is reviewed in the diff.
#[track_caller]
pub fn assert_golden(name: &str, actual: &str) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(name);
    if std::env::var_os("SLUICE_BLESS").is_some() {
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(&path, actual).unwrap();
        return;
    }
    let expected = std::fs::read_to_string(&path)
        .unwrap_or_else(|error| panic!("{}: {error}; create it with SLUICE_BLESS=1", path.display()));
    assert!(
        actual == expected,
        "{} differs; if the new text is right, write it with SLUICE_BLESS=1\n\
         --- expected\n{expected}\n--- actual\n{actual}",
        path.display()
    );
}
