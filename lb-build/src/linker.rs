//! `bpf-linker`, built against the LLVM of the toolchain that compiles the kernel programs.
//!
//! No LLVM package is needed: the toolchain's own shared library is given to its build under the name that a linker looks
//! for (`libLLVM.so`), and found again at run time by an rpath into the toolchain.

use std::{
    env, fs,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
};

use crate::{
    BuildError, TASK, Toolchain,
    command::spawn_error,
    create_folder, lock,
    progress::{say, timed, watched},
};

pub(crate) const VERSION: &str = "0.13.0";

/// LLVM versions that [`VERSION`] can be built for; each has a feature `llvm-<major>`.
pub(crate) const LLVM_MAJORS: [&str; 3] = ["21", "22", "23"];

/// The path of the linker for `toolchain`, which is built below `cache` unless it is there.
pub(crate) fn provide(cache: &Path, toolchain: &Toolchain) -> Result<PathBuf, BuildError> {
    if let Some(named) = env::var_os("SLUICE_BPF_LINKER").map(PathBuf::from) {
        return if named.is_file() { Ok(named) } else { Err(BuildError::NamedLinkerMissing(named)) };
    }
    let name = format!("{VERSION}-llvm{}-{}", toolchain.llvm, toolchain.release);
    let folder = cache.join(&name);
    let linker = folder.join("bin/bpf-linker");
    if linker.is_file() {
        return Ok(linker);
    }
    create_folder(cache)?;
    let _lock = lock::exclusive(&cache.join(".sluice-lock"), "building bpf-linker")?;
    if !linker.is_file() {
        build(&folder, toolchain)?;
    }
    Ok(linker)
}

fn build(folder: &Path, toolchain: &Toolchain) -> Result<(), BuildError> {
    say(
        TASK,
        &format!(
            "building bpf-linker {VERSION} for LLVM {} once, into {} (about a minute)",
            toolchain.llvm,
            folder.display()
        ),
    );
    let library_folder = folder.join("lib");
    create_folder(&library_folder)?;
    let library = library_folder.join("libLLVM.so");
    // An interrupted build may have left one that points into a toolchain that is gone.
    drop(fs::remove_file(&library));
    symlink(&toolchain.llvm_library, &library)
        .map_err(|source| BuildError::file("create the link", &library, source))?;

    let mut command = toolchain.cargo();
    command
        .args(["install", "bpf-linker", "--version", &format!("={VERSION}"), "--locked", "--force"])
        .args(["--no-default-features", "--features", &format!("llvm-{}", toolchain.llvm_major())])
        .arg("--root")
        .arg(folder)
        // Its debug information takes time and is of no use here.
        .env("CARGO_PROFILE_RELEASE_DEBUG", "false")
        .env("LLVM_PREFIX", folder)
        .env("RUSTFLAGS", format!("-Clink-arg=-Wl,-rpath,{}", toolchain.sysroot.join("lib").display()))
        .env_remove("RUSTC_BOOTSTRAP");

    timed(TASK, "built bpf-linker", || {
        let ended = watched(TASK, &mut command).map_err(|source| spawn_error(&command, source))?;
        ended.map_err(|failure| BuildError::Linker {
            version: VERSION,
            llvm: toolchain.llvm.clone(),
            reason: format!("cargo install ended with {}", failure.status),
            output: failure.tail,
        })
    })
}
