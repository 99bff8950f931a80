//! Detects changes of the object's inputs by their content. Time stamps do not count.

use std::{
    fs,
    hash::{DefaultHasher, Hash as _, Hasher as _},
    path::{Path, PathBuf},
};

use crate::error::BuildError;

/// Returns a digest of all `files` (of a folder: all files below it) and `settings`. It is
/// comparable with digests made by the same compiler on the same machine only.
pub(crate) fn of(files: &[PathBuf], settings: &[&str]) -> Result<String, BuildError> {
    let mut hasher = DefaultHasher::new();
    settings.hash(&mut hasher);
    for path in files {
        add(path, &mut hasher)?;
    }
    Ok(format!("{:016x}", hasher.finish()))
}

fn add(path: &Path, hasher: &mut DefaultHasher) -> Result<(), BuildError> {
    path.hash(hasher);
    if !path.is_dir() {
        fs::read(path).map_err(|source| BuildError::file("read", path, source))?.hash(hasher);
        return Ok(());
    }
    let read = |source| BuildError::file("read the folder", path, source);
    let mut entries = fs::read_dir(path)
        .map_err(read)?
        .map(|entry| entry.map(|entry| entry.path()))
        .collect::<Result<Vec<_>, _>>()
        .map_err(read)?;
    // The order in which a folder lists its files depends on the file system.
    entries.sort();
    entries.iter().try_for_each(|entry| add(entry, hasher))
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::of;

    #[test]
    fn a_change_of_content_name_or_setting_is_detected() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let root = [folder.path().to_owned()];
        fs::create_dir(folder.path().join("src")).expect("a folder");
        let file = folder.path().join("src/main.rs");
        fs::write(&file, "one").expect("a file");
        let first = of(&root, &["v3"]).expect("a fingerprint");

        fs::write(&file, "one").expect("the file again");
        assert_eq!(of(&root, &["v3"]).expect("a fingerprint"), first, "the same content");
        assert_ne!(of(&root, &["v2"]).expect("a fingerprint"), first, "another flag");

        fs::write(&file, "two").expect("the file changed");
        assert_ne!(of(&root, &["v3"]).expect("a fingerprint"), first, "other content");

        fs::write(&file, "one").expect("the file as it was");
        fs::rename(&file, folder.path().join("src/lib.rs")).expect("a new name");
        assert_ne!(of(&root, &["v3"]).expect("a fingerprint"), first, "another name");
    }

    #[test]
    fn a_missing_input_is_an_error_that_names_it() {
        let error = of(&["/nonexistent/lb-ebpf".into()], &[]).expect_err("no such file");
        assert!(error.to_string().contains("/nonexistent/lb-ebpf"), "{error}");
    }
}
