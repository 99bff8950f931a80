//! Provides `bpf-linker`, built against the LLVM of the toolchain that compiles the kernel
//! programs.
//!
//! This needs no LLVM package. The build links to the toolchain's own shared library through a
//! symbolic link with the name that a linker looks for (`libLLVM.so`). At run time an rpath into
//! the toolchain leads to the same library.

use std::{
    env, fs,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
};

use crate::{
    command::spawn_error,
    constants::{LINKER_VERSION, TASK},
    error::BuildError,
    folder::create_folder,
    lock,
    progress::{report, timed, watched},
    toolchain::Toolchain,
};

/// Returns the path of the linker for `toolchain`. Builds it below `cache` if it does not exist
/// yet.
pub(crate) fn provide(cache: &Path, toolchain: &Toolchain) -> Result<PathBuf, BuildError> {
    if let Some(named) = env::var_os("SLUICE_BPF_LINKER").map(PathBuf::from) {
        return if named.is_file() { Ok(named) } else { Err(BuildError::NamedLinkerMissing(named)) };
    }
    let name = format!("{LINKER_VERSION}-llvm{}-{}", toolchain.llvm, toolchain.release);
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
    report(
        TASK,
        &format!(
            "building bpf-linker {LINKER_VERSION} for LLVM {} into {} (once, about a minute)",
            toolchain.llvm,
            folder.display()
        ),
    );
    let library_folder = folder.join("lib");
    create_folder(&library_folder)?;
    let library = library_folder.join("libLLVM.so");
    // An interrupted build may have left a link into a toolchain that has been removed.
    drop(fs::remove_file(&library));
    symlink(&toolchain.llvm_library, &library)
        .map_err(|source| BuildError::file("create the link", &library, source))?;

    let mut command = toolchain.cargo();
    command
        .args(["install", "bpf-linker", "--version", &format!("={LINKER_VERSION}"), "--locked", "--force"])
        .args(["--no-default-features", "--features", &format!("llvm-{}", toolchain.llvm_major())])
        .arg("--root")
        .arg(folder)
        // Debug information of the linker costs build time and is not needed.
        .env("CARGO_PROFILE_RELEASE_DEBUG", "false")
        .env("LLVM_PREFIX", folder)
        .env("RUSTFLAGS", format!("-Clink-arg=-Wl,-rpath,{}", toolchain.sysroot.join("lib").display()))
        .env_remove("RUSTC_BOOTSTRAP");

    timed(TASK, "built bpf-linker", || {
        let ended = watched(TASK, &mut command).map_err(|source| spawn_error(&command, source))?;
        ended.map_err(|failure| BuildError::Linker {
            version: LINKER_VERSION,
            llvm: toolchain.llvm.clone(),
            reason: format!("cargo install ended with {}", failure.status),
            output: failure.tail,
        })
    })
}
