//! `cargo xtask test image`: the agent runs in a container with the image of `cargo xtask image`.

use std::fs;

use anyhow::{Context as _, Result, bail, ensure};

use super::part::Part;
use crate::{
    image::{self, Arch},
    process::{cargo, is_root},
    setup::{self, InstallOptions},
    workspace,
};

/// The end-to-end cases about the container of the DaemonSet.
const CASES: &str = "tc::routed::container_";

#[derive(clap::Args, Default)]
pub struct Options {
    #[command(flatten)]
    setup: InstallOptions,
}

pub fn run(options: &Options) -> Result<()> {
    if !is_root() {
        bail!("loads kernel programs and creates network namespaces: run `sudo -E cargo xtask test image`");
    }
    setup::provide(&Part::E2e.needs(), options.setup)?;
    let image = image::build(Arch::X86_64, options.setup)?;
    let root = image.unpack(&workspace::target().join("image/bundle"))?;
    for file in ["lb", "sbom.cdx.json", "licenses/LICENSE"] {
        ensure!(root.join(file).is_file(), "the image has no file /{file}");
    }
    let sbom = fs::read_to_string(root.join("sbom.cdx.json")).context("cannot read the list of crates")?;
    for name in ["lb-userspace", "aya", "lb-ebpf", "aya-ebpf"] {
        ensure!(sbom.contains(&format!("\"name\": \"{name}\"")), "the list of crates lacks {name}");
    }
    let mut command = cargo();
    command.env("SLUICE_IMAGE_ROOT", root);
    command.args(["test", "-p", "lb-testbed", "--test", "e2e", "--", CASES]);
    if !command.status()?.success() {
        bail!("a case failed in the container of the image, see above");
    }
    Ok(())
}
