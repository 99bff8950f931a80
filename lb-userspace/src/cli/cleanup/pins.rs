//! Lists the pins: every file below `<bpffs>/sluice`, of any map layout version.

use std::io;
use std::path::Path;

use super::error::CleanupError;
use super::item::Item;

/// Returns `folder` and everything below it, in an order in which it can be removed. Returns
/// nothing if the folder does not exist.
pub(super) fn list(folder: &Path) -> Result<Vec<Item>, CleanupError> {
    let failed = |source: io::Error| CleanupError::List { path: folder.to_owned(), source };
    let listing = match std::fs::read_dir(folder) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        listing => listing.map_err(failed)?,
    };
    let mut entries = listing.collect::<Result<Vec<_>, _>>().map_err(failed)?;
    entries.sort_by_key(std::fs::DirEntry::file_name);
    let mut items = Vec::new();
    for entry in entries {
        if entry.file_type().map_err(failed)?.is_dir() {
            items.extend(list(&entry.path())?);
        } else {
            items.push(Item::Pin(entry.path()));
        }
    }
    items.push(Item::Folder(folder.to_owned()));
    Ok(items)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_comes_after_its_content() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().join("sluice");
        for folder in ["v1/links", "v2"] {
            std::fs::create_dir_all(root.join(folder)).unwrap();
        }
        for file in ["v1/links/xdp-eth0", "v1/SERVICES_V4", "v2/FLOWS"] {
            std::fs::write(root.join(file), "").unwrap();
        }
        let pin = |path: &str| Item::Pin(root.join(path));
        let folder = |path: &str| Item::Folder(root.join(path));
        assert_eq!(
            list(&root).unwrap(),
            [
                pin("v1/SERVICES_V4"),
                pin("v1/links/xdp-eth0"),
                folder("v1/links"),
                folder("v1"),
                pin("v2/FLOWS"),
                folder("v2"),
                Item::Folder(root.clone()),
            ]
        );
    }

    #[test]
    fn a_missing_folder_has_no_pins() {
        assert_eq!(list(Path::new("/nonexistent/sluice")).unwrap(), []);
    }
}
