//! Builds the kernel programs (`lb-ebpf`) for `cargo xtask build-ebpf` and for the agent's build script alike.
//!
//! On a machine that has only rustup, this is all it takes: find a toolchain that can compile for BPF
//! ([`toolchain`]), make the `bpf-linker` that speaks the same LLVM once ([`linker`]), compile, and check that the
//! object is what the agent expects ([`check`]). What was made is kept in `target/` and used again as long as nothing it
//! was made from has changed ([`fingerprint`]).

pub mod check;
mod command;
mod error;
mod fingerprint;
mod linker;
mod lock;
pub mod progress;
mod strip;
pub mod toolchain;

use std::{
    env, fs,
    path::{Path, PathBuf},
    process::Stdio,
};

pub use command::without_cargo_environment;
pub use error::BuildError;
use progress::say;
pub use toolchain::Toolchain;

/// The target of the kernel programs. Little endian, as is every machine the agent runs on.
pub const TARGET: &str = "bpfel-unknown-none";

/// The name under which progress is told.
const TASK: &str = "build-ebpf";

/// Environment variables by which a person steers the build: the toolchain by its rustup name, a linker that is there.
pub const VARIABLES: [&str; 2] = ["SLUICE_EBPF_TOOLCHAIN", "SLUICE_BPF_LINKER"];

/// What to build from and for.
#[derive(Clone, Debug)]
pub struct Build {
    /// Root folder of the workspace.
    pub workspace: PathBuf,
    /// Architecture of the machine that will load the programs, as Rust names it (`x86_64`): it decides the layout of
    /// what programs read from the kernel, such as registers.
    pub arch: String,
}

/// What came out of a build.
#[derive(Clone, Debug)]
pub struct Programs {
    /// The ELF object with all programs.
    pub object: PathBuf,
    /// False when nothing had changed and the object of an earlier build was returned.
    pub rebuilt: bool,
}

impl Build {
    /// Folders and files that the object is made from: a change in any of them makes a new build.
    #[must_use]
    pub fn inputs(&self) -> Vec<PathBuf> {
        [
            "Cargo.toml",
            "Cargo.lock",
            "lb-common/Cargo.toml",
            "lb-common/src",
            "lb-ebpf/Cargo.toml",
            "lb-ebpf/src",
        ]
        .map(|path| self.workspace.join(path))
        .to_vec()
    }

    /// Builds the object, or returns the one that is there if it is up to date. Several processes may call this at the
    /// same time: one works, the others wait.
    ///
    /// # Errors
    /// [`BuildError`] names what is missing or wrong and the remedy.
    pub fn run(&self) -> Result<Programs, BuildError> {
        // Everything that this crate makes lives below these; CARGO_TARGET_DIR moves the object, not the linker, which
        // is expensive and the same for all.
        let workspace_target = self.workspace.join("target");
        let target = env::var_os("CARGO_TARGET_DIR").map_or_else(|| workspace_target.clone(), PathBuf::from);
        let folder = target.join("ebpf");
        create_folder(&folder)?;
        let _lock = lock::exclusive(&folder.join(".sluice-lock"), "the build of the kernel programs")?;

        let toolchain = toolchain::find()?;
        let linker = linker::provide(&workspace_target.join("bpf-linker"), &toolchain)?;
        let flags = rust_flags(&linker, &self.arch);
        let fingerprint = fingerprint::of(&self.inputs(), &[&toolchain.version, &flags.join(" ")])?;

        let object = folder.join("lb-ebpf.o");
        let fingerprint_file = folder.join("lb-ebpf.fingerprint");
        if object.is_file() && fs::read_to_string(&fingerprint_file).is_ok_and(|old| old == fingerprint) {
            return Ok(Programs { object, rebuilt: false });
        }

        // Should anything below fail, the next build must not take this object for a good one.
        drop(fs::remove_file(&fingerprint_file));
        let compiled = self.compile(&folder, &toolchain, &flags)?;
        strip::debug_information(&compiled, &object)?;
        check::object(&object)?;
        fs::write(&fingerprint_file, fingerprint)
            .map_err(|source| BuildError::file("write", &fingerprint_file, source))?;
        Ok(Programs { object, rebuilt: true })
    }

    fn compile(&self, folder: &Path, toolchain: &Toolchain, flags: &[String]) -> Result<PathBuf, BuildError> {
        say(TASK, &format!("compiling the kernel programs with {}", toolchain.name));
        let mut command = toolchain.cargo();
        command
            .current_dir(&self.workspace)
            .args(["build", "--package", "lb-ebpf", "--bin", "lb-ebpf", "--profile", "ebpf"])
            .args(["--target", TARGET, "-Z", "build-std=core", "--locked", "--target-dir"])
            .arg(folder)
            // The separator is the one cargo defines for flags that may contain spaces.
            .env("CARGO_ENCODED_RUSTFLAGS", flags.join("\x1f"))
            // A build script's standard output is read by cargo: nothing of the inner cargo may get there.
            .stdout(Stdio::null());
        progress::timed(TASK, "compiled", || command::run(&mut command))?;
        Ok(folder.join(TARGET).join("ebpf").join("lb-ebpf"))
    }
}

/// Compiler and linker flags of the kernel programs. Each was measured or is needed by the loader:
fn rust_flags(linker: &Path, arch: &str) -> Vec<String> {
    vec![
        format!("--cfg=bpf_target_arch=\"{arch}\""),
        format!("-Clinker={}", linker.display()),
        // BTF (types of maps and functions) is made from debug information.
        "-Cdebuginfo=2".to_owned(),
        "-Clink-arg=--btf".to_owned(),
        // v3 has 32-bit registers and jumps; every kernel we support (5.15 and later) runs it.
        "-Ctarget-cpu=v3".to_owned(),
        // Without these two, every packet read and struct copy becomes loads of single bytes: 912 instead of 320 bytes
        // of program for one 16-byte address and one map lookup. The machines we run on read unaligned. (As a flag of
        // the linker, which generates the code: rustc warns of this feature and gains nothing by it.)
        "-Clink-arg=--cpu-features=+allows-misaligned-mem-access".to_owned(),
        "-Clink-arg=--disable-expand-memcpy-in-order".to_owned(),
    ]
}

fn create_folder(path: &Path) -> Result<(), BuildError> {
    fs::create_dir_all(path).map_err(|source| BuildError::file("create the folder", path, source))
}
