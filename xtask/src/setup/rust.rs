//! Components of Rust toolchains, which rustup installs.

use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, bail};
use lb_build::{
    progress::{report, timed},
    toolchain,
};

use crate::{
    process::{cargo, command, is_installed},
    task,
};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Component {
    Rustfmt,
    Clippy,
    /// Clippy of the toolchain that compiles the kernel programs.
    KernelClippy,
    /// `core` for the kernel programs.
    KernelRustSrc,
}

impl Component {
    /// Returns the name that rustup uses.
    pub fn name(self) -> &'static str {
        match self {
            Self::Rustfmt => "rustfmt",
            Self::Clippy | Self::KernelClippy => "clippy",
            Self::KernelRustSrc => "rust-src",
        }
    }

    /// Returns the component of the toolchain of the kernel programs, or `None` if the component
    /// belongs to the toolchain of this workspace.
    fn of_kernel_programs(self) -> Option<toolchain::RustupComponent> {
        match self {
            Self::Rustfmt | Self::Clippy => None,
            Self::KernelClippy => Some(toolchain::RustupComponent::Clippy),
            Self::KernelRustSrc => Some(toolchain::RustupComponent::RustSrc),
        }
    }

    pub fn is_installed(self) -> bool {
        match self.of_kernel_programs() {
            // The build of the kernel programs reports an unusable toolchain, with each reason.
            Some(component) => toolchain::preferred().map_or(true, |toolchain| toolchain.has(component)),
            // Rustup installs cargo-fmt and cargo-clippy as links to itself, so only a run shows
            // whether they exist.
            None => {
                let subcommand = if self == Self::Rustfmt { "fmt" } else { "clippy" };
                let mut version = cargo();
                version.args([subcommand, "--version"]).stdout(Stdio::null()).stderr(Stdio::null());
                version.status().is_ok_and(|status| status.success())
            }
        }
    }

    /// Returns the command that installs the component, for a message.
    pub fn install_command(self) -> String {
        let component = format!("rustup component add {}", self.name());
        match self.of_kernel_programs().and_then(|_| toolchain::preferred().ok()) {
            Some(toolchain) => format!("{component} --toolchain {}", toolchain.name),
            None => component,
        }
    }
}

/// Returns the reason why [`install`] cannot install these components on this machine.
pub fn cannot_install(components: &[Component]) -> Option<&'static str> {
    (!components.is_empty() && !is_installed("rustup")).then_some(
        "this machine has no rustup\nremedy: install rustup (https://rustup.rs), or your distribution's packages",
    )
}

pub fn install(components: &[Component]) -> Result<()> {
    for component in components {
        match component.of_kernel_programs() {
            Some(of_kernel_programs) => {
                toolchain::preferred()?.add(of_kernel_programs).map_err(anyhow::Error::msg)?;
            }
            None => {
                report(task::SETUP, &format!("adding {}", component.name()));
                let mut rustup = command("rustup");
                // Rustup passes the toolchain of this workspace on in RUSTUP_TOOLCHAIN.
                rustup.args(["component", "add", component.name()]);
                timed(task::SETUP, &format!("added {}", component.name()), || run(&mut rustup))?;
            }
        }
    }
    Ok(())
}

fn run(rustup: &mut Command) -> Result<()> {
    let output = rustup.output().context("cannot run rustup")?;
    if !output.status.success() {
        bail!("rustup failed ({})\n{}", output.status, String::from_utf8_lossy(&output.stderr).trim_end());
    }
    Ok(())
}
