//! Builds the kernel programs and puts them where `datapath` includes them from:
//! `$OUT_DIR/lb-ebpf.o`.

use std::{env, fs, path::PathBuf};

use anyhow::{Context as _, Result, bail};
use lb_build::{Build, Programs};

fn main() -> Result<()> {
    let variable =
        |name: &str| env::var(name).with_context(|| format!("cargo sets {name} for build scripts"));
    if variable("CARGO_CFG_TARGET_ENDIAN")? != "little" || variable("CARGO_CFG_TARGET_OS")? != "linux" {
        bail!("Sluice runs on little-endian Linux only");
    }
    let workspace = PathBuf::from(variable("CARGO_MANIFEST_DIR")?).join("..").canonicalize()?;
    let other_layout = env::var_os("CARGO_FEATURE_OTHER_LAYOUT").is_some();
    let programs = if other_layout { Programs::OtherLayout } else { Programs::Agent };
    let build = Build { workspace, arch: variable("CARGO_CFG_TARGET_ARCH")?, programs };

    for input in build.inputs() {
        println!("cargo::rerun-if-changed={}", input.display());
    }
    for variable in lb_build::VARIABLES {
        println!("cargo::rerun-if-env-changed={variable}");
    }
    let built = build.run()?;
    fs::copy(&built.object, PathBuf::from(variable("OUT_DIR")?).join("lb-ebpf.o"))?;
    Ok(())
}
