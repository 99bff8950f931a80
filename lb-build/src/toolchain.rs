//! Which Rust toolchain compiles the kernel programs.
//!
//! Their target has no precompiled `core`, so it is built from the `rust-src` component with `-Z build-std`, which a
//! nightly takes and any other toolchain takes under `RUSTC_BOOTSTRAP=1`. The linker reads the LLVM bitcode that rustc
//! writes, so it must be linked to the same LLVM: the toolchain must come with it as a shared library, as those of rustup do.

use std::{
    env,
    path::{Path, PathBuf},
    process::Command,
};

use crate::{
    BuildError, TASK,
    command::{output, without_cargo_environment},
    linker,
    progress::{say, timed},
};

/// A toolchain that can compile the kernel programs.
#[derive(Clone, Debug)]
pub struct Toolchain {
    /// `nightly-x86_64-unknown-linux-gnu`, or the sysroot of one that rustup does not know.
    pub name: String,
    /// What `rustc -vV` prints.
    pub version: String,
    /// `rustc`'s own version: `1.97.0-nightly`.
    pub release: String,
    pub(crate) sysroot: PathBuf,
    /// `22.1.4`
    pub(crate) llvm: String,
    /// The shared library of that LLVM.
    pub(crate) llvm_library: PathBuf,
}

impl Toolchain {
    /// The toolchain's cargo, in an environment free of any outer cargo.
    #[must_use]
    pub fn cargo(&self) -> Command {
        let bin = self.sysroot.join("bin");
        let mut command = Command::new(bin.join("cargo"));
        without_cargo_environment(&mut command);
        // Cargo looks for rustc (and `cargo clippy` for its driver) by these, in this order.
        command.env("RUSTC", bin.join("rustc"));
        let path = env::var_os("PATH").unwrap_or_default();
        if let Ok(path) = env::join_paths([bin].into_iter().chain(env::split_paths(&path))) {
            command.env("PATH", path);
        }
        if !self.release.contains("nightly") {
            command.env("RUSTC_BOOTSTRAP", "1");
        }
        command
    }

    /// Whether the toolchain has this cargo subcommand (`clippy`).
    #[must_use]
    pub fn has_subcommand(&self, name: &str) -> bool {
        self.sysroot.join("bin").join(format!("cargo-{name}")).is_file()
    }

    pub(crate) fn llvm_major(&self) -> &str {
        major(&self.llvm)
    }

    fn at(name: String, sysroot: PathBuf, rustup: bool) -> Result<Self, String> {
        let rustc = sysroot.join("bin/rustc");
        if !sysroot.join("bin/cargo").is_file() {
            return Err(format!("it has no cargo in {}", sysroot.join("bin").display()));
        }
        let version = output(Command::new(&rustc).arg("-vV"))?;
        let field = |name: &str| {
            version.lines().find_map(|line| line.strip_prefix(name)).map(|value| value.trim().to_owned())
        };
        let (Some(release), Some(llvm)) = (field("release:"), field("LLVM version:")) else {
            return Err(format!("`{} -vV` names no release or no LLVM version", rustc.display()));
        };
        if !linker::LLVM_MAJORS.contains(&major(&llvm)) {
            return Err(format!(
                "it is built on LLVM {llvm}; bpf-linker {} reads LLVM {}",
                linker::VERSION,
                linker::LLVM_MAJORS.join(", ")
            ));
        }
        let llvm_library = shared_llvm(&sysroot.join("lib"), major(&llvm)).ok_or_else(|| {
            format!(
                "{} has no libLLVM shared library for bpf-linker to use (those of rustup have)",
                sysroot.join("lib").display()
            )
        })?;
        provide_rust_src(&name, &sysroot, rustup)?;
        Ok(Self { name, version, release, sysroot, llvm, llvm_library })
    }
}

/// Finds the best usable toolchain: the one named in `SLUICE_EBPF_TOOLCHAIN` and no other, or else a nightly, the default
/// one, any other that rustup has, and at last, without rustup, the `rustc` in `PATH`.
///
/// # Errors
/// [`BuildError::NoToolchain`] says of each candidate why it cannot be used.
pub fn find() -> Result<Toolchain, BuildError> {
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
        match Toolchain::at(candidate.name.clone(), candidate.sysroot, candidate.rustup) {
            Ok(toolchain) => return Ok(toolchain),
            Err(reason) => reasons.push(format!("{}: {reason}", candidate.name)),
        }
    }
    Err(BuildError::NoToolchain { reasons })
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Candidate {
    name: String,
    sysroot: PathBuf,
    default: bool,
    rustup: bool,
}

/// Lines of `rustup toolchain list -v`: `stable-x86_64-unknown-linux-gnu (active, default) /root/.rustup/toolchains/…`.
fn parse_list(list: &str) -> Vec<Candidate> {
    list.lines()
        .filter_map(|line| {
            let (head, path) = line.split_at(line.find('/')?);
            let name = head.split_whitespace().next()?.to_owned();
            Some(Candidate {
                name,
                sysroot: path.trim().into(),
                default: head.contains("default"),
                rustup: true,
            })
        })
        .collect()
}

fn in_order_of_preference(mut candidates: Vec<Candidate>) -> Vec<Candidate> {
    // Stable sort: among equals, rustup's own order.
    candidates.sort_by_key(|candidate| match candidate {
        Candidate { name, .. } if name.starts_with("nightly") => 0,
        Candidate { default: true, .. } => 1,
        _ => 2,
    });
    candidates
}

fn in_path(reasons: &mut Vec<String>) -> Option<Candidate> {
    match output(without_cargo_environment(Command::new("rustc").args(["--print", "sysroot"]))) {
        Ok(sysroot) => {
            let sysroot = sysroot.trim().to_owned();
            Some(Candidate { name: sysroot.clone(), sysroot: sysroot.into(), default: true, rustup: false })
        }
        Err(reason) => {
            reasons.push(format!("rustc in PATH: {reason}"));
            None
        }
    }
}

fn provide_rust_src(name: &str, sysroot: &Path, rustup: bool) -> Result<(), String> {
    if sysroot.join("lib/rustlib/src/rust/library/core/Cargo.toml").is_file() {
        return Ok(());
    }
    if !rustup {
        return Err("it has no rust-src (distributions have it as a package `rust-src`)".to_owned());
    }
    say(TASK, &format!("adding rust-src to {name}"));
    let mut command = Command::new("rustup");
    command.args(["component", "add", "rust-src", "--toolchain", name]);
    timed(TASK, "added rust-src", || output(&mut command))
        .map(drop)
        .map_err(|reason| format!("it has no rust-src and rustup could not add it: {reason}"))
}

/// `libLLVM.so.22.1-rust-1.97.0-nightly` in rustup's toolchains, `libLLVM.so.22.1` or `libLLVM-22.so` elsewhere. (The
/// `libLLVM-22-rust-….so` beside the first is a linker script of a few bytes, which a linker cannot be given as `-lLLVM`
/// from another folder.)
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
    fn a_nightly_is_preferred_then_the_default() {
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
    fn no_toolchain_at_all_is_an_empty_list() {
        assert!(parse_list("no installed toolchains\n").is_empty());
    }

    #[test]
    fn the_llvm_library_is_the_real_one_of_the_right_version() {
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
