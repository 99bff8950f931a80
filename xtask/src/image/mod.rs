//! `cargo xtask image`: builds the image without a container engine, as an OCI layout in
//! `target/image/oci`. The programs are cross-compiled, umoci writes the layout.

mod layout;
mod sbom;

use std::path::PathBuf;

use anyhow::Result;
use clap::ValueEnum;
use lb_build::progress::{report, timed};

use self::layout::Layout;
use crate::{
    aarch64, build_ebpf,
    process::{cargo, compile},
    setup::{self, Component, InstallOptions, Need, Program},
    task, workspace,
};

#[derive(clap::Args)]
pub struct Options {
    /// Architectures of the image; each has a tag of its own
    #[arg(long, value_enum, value_delimiter = ',', default_value = "x86_64")]
    arch: Vec<Arch>,
    #[command(flatten)]
    setup: InstallOptions,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Arch {
    #[value(name = "x86_64")]
    X86_64,
    Aarch64,
}

impl Arch {
    /// Returns the name of the architecture in an image (GOARCH).
    fn oci(self) -> &'static str {
        match self {
            Self::X86_64 => "amd64",
            Self::Aarch64 => "arm64",
        }
    }

    /// Returns the target of the static program.
    fn target(self) -> &'static str {
        match self {
            Self::X86_64 => "x86_64-unknown-linux-musl",
            Self::Aarch64 => aarch64::TARGET,
        }
    }

    fn compiler(self) -> Program {
        match self {
            Self::X86_64 => Program::MuslCompiler,
            Self::Aarch64 => Program::Aarch64Compiler,
        }
    }
}

pub fn run(options: &Options) -> Result<()> {
    for arch in &options.arch {
        let image = build(*arch, options.setup)?;
        println!("{}", image.name());
    }
    Ok(())
}

/// Builds the image of an architecture.
pub fn build(arch: Arch, options: InstallOptions) -> Result<Layout> {
    let programs = [Program::Compiler, Program::Umoci, arch.compiler()].map(Need::Program);
    setup::provide(&[&programs[..], &[Need::Component(Component::KernelRustSrc)]].concat(), options)?;
    build_ebpf::ensure()?;
    let program = build_program(arch)?;
    let folder = workspace::target().join("image");
    let root = folder.join(arch.oci());
    layout::fill_root(&root, &program, &sbom::of(arch.target())?)?;
    let image = Layout::new(folder.join("oci"), format!("{}-{}", env!("CARGO_PKG_VERSION"), arch.oci()));
    timed(task::IMAGE, &format!("wrote {}", image.name()), || image.write(&root, arch.oci()))?;
    Ok(image)
}

/// Builds the static program and returns its path.
fn build_program(arch: Arch) -> Result<PathBuf> {
    aarch64::add_target(arch.target())?;
    let mut build = match arch {
        Arch::X86_64 => {
            let mut build = cargo();
            build.args(["build", "--target", arch.target()]);
            build
        }
        Arch::Aarch64 => aarch64::cargo_for_target("build"),
    };
    build.args(["--locked", "--release", "--package", "lb-userspace", "--bin", "lb"]);
    report(task::IMAGE, &format!("building lb for {}", arch.target()));
    timed(task::IMAGE, "built lb", || compile(&mut build))?;
    Ok(workspace::target().join(arch.target()).join("release/lb"))
}
