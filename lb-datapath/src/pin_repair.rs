//! Pins maps again whose pins another program has removed or replaced.

use std::io;
use std::os::fd::AsFd as _;
use std::path::Path;

use crate::drift::{Drift, DriftKind};
use crate::handles::MapHandles;
use crate::links::AttachError;
use crate::own_maps::is_pinned;
use crate::pins::Pins;
use crate::sys;

/// Pins the maps again whose pins are missing or lead to another object, also if the folders were
/// removed. The next agent and commands need the pins. Returns what it found.
pub fn repair(pins: &Pins, maps: &MapHandles) -> Result<Vec<Drift>, AttachError> {
    let failed = |path: &Path| {
        let path = path.to_owned();
        move |source| AttachError::Pin { path, source }
    };
    pins.create().map_err(failed(pins.root()))?;
    let mut found = Vec::new();
    for (name, map) in maps.iter().filter(|(name, _)| is_pinned(name)) {
        let path = pins.map(name);
        let id = sys::map_info(map).map_err(failed(&path))?.id;
        match sys::open_pin(&path) {
            Ok(pinned) if sys::map_info(pinned.as_fd()).is_ok_and(|info| info.id == id) => continue,
            Ok(_) => {
                std::fs::remove_file(&path).map_err(failed(&path))?;
                found.push(format!("the pin {} leads to another object", path.display()));
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                found.push(format!("the pin {} is missing", path.display()));
            }
            Err(error) => return Err(failed(&path)(error)),
        }
        sys::pin(map, &path).map_err(failed(&path))?;
    }
    found.sort();
    Ok(found.into_iter().map(|found| Drift::new(DriftKind::Pin, found)).collect())
}
