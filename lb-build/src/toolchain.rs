//! Chooses the Rust toolchain that compiles the kernel programs.
//!
//! The BPF target has no precompiled `core`: cargo builds it from the `rust-src` component with `-Z
//! build-std`. A nightly accepts that flag; any other toolchain accepts it with
//! `RUSTC_BOOTSTRAP=1`. `bpf-linker` reads the LLVM bitcode that rustc writes, so it must use the
//! same LLVM: the toolchain must contain LLVM as a shared library, as rustup's toolchains do.

use std::{
    env,
    path::{Path, PathBuf},
    process::Command,
};

use crate::{
    command::{output, without_cargo_environment},
    constants::{LINKER_LLVM_MAJORS, LINKER_VERSION, TASK},
    error::BuildError,
    progress::{report, timed},
};

/// A toolchain that can compile the kernel programs.
#[derive(Clone, Debug)]
pub struct Toolchain {
    /// `nightly-x86_64-unknown-linux-gnu`; the sysroot if rustup does not manage the toolchain.
    pub name: String,
    /// Output of `rustc -vV`.
    pub version: String,
    /// Version of `rustc`: `1.97.0-nightly`.
    pub release: String,
    pub(crate) sysroot: PathBuf,
    /// `22.1.4`
    pub(crate) llvm: String,
    /// Shared library of that LLVM.
    pub(crate) llvm_library: PathBuf,
    /// Rustup can add components.
    rustup: bool,
}

impl Toolchain {
    /// Returns a command that runs the toolchain's cargo, without the environment of an outer
    /// cargo.
    #[must_use]
    pub fn cargo(&self) -> Command {
        let bin = self.sysroot.join("bin");
        let mut command = Command::new(bin.join("cargo"));
        without_cargo_environment(&mut command);
        // Cargo finds rustc by these two, in this order; `cargo clippy` finds its driver in the
        // same way.
        command.env("RUSTC", bin.join("rustc"));
        let path = env::var_os("PATH").unwrap_or_default();
        if let Ok(path) = env::join_paths([bin].into_iter().chain(env::split_paths(&path))) {
            command.env("PATH", path);
        }
        if !self.is_nightly() {
            command.env("RUSTC_BOOTSTRAP", "1");
        }
        command
    }

    /// Returns true for a nightly: other toolchains have no Miri.
    #[must_use]
    pub fn is_nightly(&self) -> bool {
        self.release.contains("nightly")
    }

    /// Returns true if the toolchain contains this component of rustup.
    #[must_use]
    pub fn has(&self, component: RustupComponent) -> bool {
        self.sysroot.join(component.file()).is_file()
    }

    /// Adds a component by rustup, unless the toolchain contains it.
    ///
    /// # Errors
    /// The reason as text.
    pub fn add(&self, component: RustupComponent) -> Result<(), String> {
        if self.has(component) {
            return Ok(());
        }
        let component = component.name();
        if !self.rustup {
            return Err(format!("it has no {component} (distributions package it as `{component}`)"));
        }
        report(TASK, &format!("adding {component} to {}", self.name));
        let mut command = Command::new("rustup");
        command.args(["component", "add", component, "--toolchain", &self.name]);
        timed(TASK, &format!("added {component}"), || output(&mut command))
            .map(drop)
            .map_err(|reason| format!("it has no {component} and rustup could not add it: {reason}"))
    }

    pub(crate) fn llvm_major(&self) -> &str {
        major(&self.llvm)
    }

    /// Examines a candidate. The error is the reason why it cannot compile the kernel programs.
    fn examine(candidate: CandidateToolchain) -> Result<Self, String> {
        let CandidateToolchain { name, sysroot, rustup, .. } = candidate;
        let rustc = sysroot.join("bin/rustc");
        if !sysroot.join("bin/cargo").is_file() {
            return Err(format!("it has no cargo in {}", sysroot.join("bin").display()));
        }
        let version = output(Command::new(&rustc).arg("-vV"))?;
        let field = |name: &str| {
            version.lines().find_map(|line| line.strip_prefix(name)).map(|value| value.trim().to_owned())
        };
        let (Some(release), Some(llvm)) = (field("release:"), field("LLVM version:")) else {
            return Err(format!("`{} -vV` prints no release or no LLVM version", rustc.display()));
        };
        if !LINKER_LLVM_MAJORS.contains(&major(&llvm)) {
            return Err(format!(
                "it is built on LLVM {llvm}; bpf-linker {} reads LLVM {}",
                LINKER_VERSION,
                LINKER_LLVM_MAJORS.join(", ")
            ));
        }
        let llvm_library = shared_llvm(&sysroot.join("lib"), major(&llvm)).ok_or_else(|| {
            format!(
                "{} has no shared libLLVM for bpf-linker (rustup's toolchains have one)",
                sysroot.join("lib").display()
            )
        })?;
        let toolchain = Self { name, version, release, sysroot, llvm, llvm_library, rustup };
        if !rustup && !toolchain.has(RustupComponent::RustSrc) {
            return toolchain.add(RustupComponent::RustSrc).map(|()| toolchain);
        }
        Ok(toolchain)
    }
}

/// Components of rustup that the tasks of this workspace use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RustupComponent {
    Clippy,
    Miri,
    RustSrc,
}

impl RustupComponent {
    /// Returns the name that rustup uses.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Clippy => "clippy",
            Self::Miri => "miri",
            Self::RustSrc => "rust-src",
        }
    }

    /// Returns a file below the sysroot that comes with the component.
    fn file(self) -> &'static str {
        match self {
            Self::Clippy => "bin/cargo-clippy",
            Self::Miri => "bin/cargo-miri",
            Self::RustSrc => "lib/rustlib/src/rust/library/core/Cargo.toml",
        }
    }
}

/// Finds the best usable toolchain and adds `rust-src` to it.
///
/// # Errors
/// [`BuildError::NoToolchain`] lists for each candidate why it cannot be used.
pub fn find() -> Result<Toolchain, BuildError> {
    first(|toolchain| toolchain.add(RustupComponent::RustSrc).map(|()| toolchain))
}

/// Returns the toolchain that [`find`] prefers, and changes nothing. It may lack `rust-src`.
///
/// # Errors
/// [`BuildError::NoToolchain`] lists for each candidate why it cannot be used.
pub fn preferred() -> Result<Toolchain, BuildError> {
    first(Ok)
}

/// Returns the first candidate that `prepare` accepts. `SLUICE_EBPF_TOOLCHAIN` names the only
/// candidate. Without it these are a nightly, then the default toolchain, then any other toolchain
/// of rustup. Without rustup it is the `rustc` in `PATH`.
fn first(prepare: impl Fn(Toolchain) -> Result<Toolchain, String>) -> Result<Toolchain, BuildError> {
    let mut reasons = Vec::new();
    let installed = match output(Command::new("rustup").args(["toolchain", "list", "-v"])) {
        Ok(list) => parse_list(&list),
        Err(reason) => {
            reasons.push(format!("rustup: {reason}"));
            Vec::new()
        }
    };
    let candidates = match env::var("SLUICE_EBPF_TOOLCHAIN") {
        Ok(wanted) => {
            let matching: Vec<_> =
                installed.into_iter().filter(|found| found.name.starts_with(&wanted)).collect();
            if matching.is_empty() {
                reasons.push(format!("{wanted} (from SLUICE_EBPF_TOOLCHAIN): rustup has no such toolchain"));
            }
            matching
        }
        Err(_) if installed.is_empty() => in_path(&mut reasons).into_iter().collect(),
        Err(_) => in_order_of_preference(installed),
    };
    for candidate in candidates {
        let name = candidate.name.clone();
        match Toolchain::examine(candidate).and_then(&prepare) {
            Ok(toolchain) => return Ok(toolchain),
            Err(reason) => reasons.push(format!("{name}: {reason}")),
        }
    }
    Err(BuildError::NoToolchain { reasons })
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct CandidateToolchain {
    name: String,
    sysroot: PathBuf,
    default: bool,
    rustup: bool,
}

/// Parses the output of `rustup toolchain list -v`. A line of it:
/// `stable-x86_64-unknown-linux-gnu (active, default) /root/.rustup/toolchains/…`.
fn parse_list(list: &str) -> Vec<CandidateToolchain> {
    list.lines()
        .filter_map(|line| {
            let (head, path) = line.split_at(line.find('/')?);
            let name = head.split_whitespace().next()?.to_owned();
            Some(CandidateToolchain {
                name,
                sysroot: path.trim().into(),
                default: head.contains("default"),
                rustup: true,
            })
        })
        .collect()
}

fn in_order_of_preference(mut candidates: Vec<CandidateToolchain>) -> Vec<CandidateToolchain> {
    // The sort is stable: among equals, rustup's order stays.
    candidates.sort_by_key(|candidate| match candidate {
        CandidateToolchain { name, .. } if name.starts_with("nightly") => 0,
        CandidateToolchain { default: true, .. } => 1,
        _ => 2,
    });
    candidates
}

fn in_path(reasons: &mut Vec<String>) -> Option<CandidateToolchain> {
    match output(without_cargo_environment(Command::new("rustc").args(["--print", "sysroot"]))) {
        Ok(sysroot) => {
            let sysroot = sysroot.trim().to_owned();
            Some(CandidateToolchain {
                name: sysroot.clone(),
                sysroot: sysroot.into(),
                default: true,
                rustup: false,
            })
        }
        Err(reason) => {
            reasons.push(format!("rustc in PATH: {reason}"));
            None
        }
    }
}

/// Returns the shared LLVM in `folder`: `libLLVM.so.22.1-rust-1.97.0-nightly` in rustup's
/// toolchains, `libLLVM.so.22.1` or `libLLVM-22.so` elsewhere. (The `libLLVM-22-rust-….so` beside
/// the first is a linker script of a few bytes. A linker cannot use it from another folder.)
fn shared_llvm(folder: &Path, major: &str) -> Option<PathBuf> {
    let (versioned, plain) = (format!("libLLVM.so.{major}"), format!("libLLVM-{major}.so"));
    folder.read_dir().ok()?.flatten().map(|entry| entry.path()).find(|path| {
        let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        name.starts_with(&versioned) || name == plain
    })
}

fn major(version: &str) -> &str {
    version.split('.').next().unwrap_or(version)
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::{in_order_of_preference, parse_list, shared_llvm};

    #[test]
    fn a_nightly_is_preferred_to_the_default_toolchain() {
        let list = "\
            1.95.0-x86_64-unknown-linux-gnu /r/toolchains/1.95.0\n\
            stable-x86_64-unknown-linux-gnu (active, default) /r/toolchains/stable\n\
            nightly-x86_64-unknown-linux-gnu /home/a b/nightly\n";
        let found = in_order_of_preference(parse_list(list));
        let names: Vec<_> = found.iter().map(|found| (found.name.as_str(), found.sysroot.to_str())).collect();
        assert_eq!(
            names,
            [
                ("nightly-x86_64-unknown-linux-gnu", Some("/home/a b/nightly")),
                ("stable-x86_64-unknown-linux-gnu", Some("/r/toolchains/stable")),
                ("1.95.0-x86_64-unknown-linux-gnu", Some("/r/toolchains/1.95.0")),
            ]
        );
    }

    #[test]
    fn the_list_of_a_rustup_without_toolchains_is_empty() {
        assert!(parse_list("no installed toolchains\n").is_empty());
    }

    #[test]
    fn the_llvm_library_has_the_right_version_and_is_no_linker_script() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        for name in ["libLLVM-22-rust-1.97.0-nightly.so", "libLLVM.so.21.1", "librustc_driver-b5.so"] {
            fs::write(folder.path().join(name), "").expect("a file");
        }
        assert_eq!(shared_llvm(folder.path(), "22"), None);
        let real = folder.path().join("libLLVM.so.22.1-rust-1.97.0-nightly");
        fs::write(&real, "").expect("a file");
        assert_eq!(shared_llvm(folder.path(), "22"), Some(real));
    }
}
