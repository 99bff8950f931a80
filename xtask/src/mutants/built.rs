//! The test programs, which are built once. They load the object that `SLUICE_OBJECT` names.

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::Result;

use crate::{process::cargo, programs};

/// The feature with which `lb-datapath` reads the programs from a file.
const FEATURE: &str = "lb-datapath/object-from-file";

pub struct Built {
    pub packets: PathBuf,
    pub end_to_end: PathBuf,
    pub lb: PathBuf,
}

impl Built {
    /// Builds the test programs. `folder` gets a copy of `lb`: cargo puts builds of `lb` with and
    /// without the feature into the same place.
    pub fn new(folder: &Path) -> Result<Self> {
        let mut tests = cargo();
        tests.args(["test", "--no-run", "--package", "lb-testbed", "--test", "packets", "--test", "e2e"]);
        let tests = programs::build(tests.args(["--features", FEATURE]))?;
        let mut agent = cargo();
        agent.args(["build", "--package", "lb-userspace", "--bin", "lb", "--features", FEATURE]);
        let agent = programs::build(&mut agent)?;
        fs::create_dir_all(folder)?;
        let lb = folder.join("lb");
        fs::copy(programs::path_of(&agent, "lb")?, &lb)?;
        Ok(Self {
            packets: programs::path_of(&tests, "packets")?,
            end_to_end: programs::path_of(&tests, "e2e")?,
            lb,
        })
    }
}
