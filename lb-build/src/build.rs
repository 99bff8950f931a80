//! The build of the kernel programs.

use std::{
    env, fs,
    path::{Path, PathBuf},
};

use crate::constants::{TARGET, TASK};
use crate::error::BuildError;
use crate::folder::create_folder;
use crate::progress::report;
use crate::toolchain::Toolchain;
use crate::{check, command, fingerprint, linker, lock, progress, strip, toolchain};

/// Parameters of a build.
#[derive(Clone, Debug)]
pub struct Build {
    /// Root folder of the workspace.
    pub workspace: PathBuf,
    /// Architecture of the machine that will load the programs, by its name in Rust (`x86_64`). It
    /// determines the layout of kernel structures that programs read, such as registers.
    pub arch: String,
    /// Which programs are built.
    pub programs: Programs,
}

/// A set of kernel programs. Each has an object of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Programs {
    /// Those of the agent.
    Agent,
    /// Those of the agent, with the layout of map entries that tests convert from and to (the
    /// feature `other-layout` of `lb-common`).
    OtherLayout,
    /// Those that `cargo xtask bench forward` measures with.
    Bench,
}

impl Programs {
    /// Returns the name of the program in `lb-ebpf/Cargo.toml`.
    fn bin(self) -> &'static str {
        match self {
            Self::Agent | Self::OtherLayout => "lb-ebpf",
            Self::Bench => "lb-bench",
        }
    }

    /// Returns the name of the object, without its ending.
    fn object(self) -> &'static str {
        match self {
            Self::Agent => "lb-ebpf",
            Self::OtherLayout => "lb-ebpf-other-layout",
            Self::Bench => "lb-bench",
        }
    }

    /// Returns the sections that must contain at least one program: one section for each hook that
    /// the programs are attached to.
    fn sections(self) -> &'static [&'static str] {
        match self {
            Self::Agent | Self::OtherLayout => &check::AGENT_SECTIONS,
            Self::Bench => &check::BENCH_SECTIONS,
        }
    }
}

/// Result of a build.
#[derive(Clone, Debug)]
pub struct BuiltObject {
    /// The ELF object with all programs.
    pub object: PathBuf,
    /// False if no input had changed and this is the object of an earlier build.
    pub rebuilt: bool,
}

impl Build {
    /// Returns the folders and files that the object depends on. A change in any of them causes a
    /// new build.
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

    /// Builds the object, unless that of an earlier build is up to date. Several processes may call
    /// this at the same time: one builds, the others wait.
    ///
    /// # Errors
    /// [`BuildError`] names the reason and the remedy.
    pub fn run(&self) -> Result<BuiltObject, BuildError> {
        // CARGO_TARGET_DIR moves the object but not the linker: that takes a minute to build and is
        // the same for all target folders.
        let workspace_target = self.workspace.join("target");
        let target = env::var_os("CARGO_TARGET_DIR").map_or_else(|| workspace_target.clone(), PathBuf::from);
        self.run_in(&target, &workspace_target.join("bpf-linker"))
    }

    /// Like [`Build::run`], with the object below `target` and the linker below `linkers`. This
    /// crate writes below these two folders only.
    ///
    /// # Errors
    /// [`BuildError`] names the reason and the remedy.
    pub fn run_in(&self, target: &Path, linkers: &Path) -> Result<BuiltObject, BuildError> {
        let folder = target.join("ebpf");
        create_folder(&folder)?;
        let _lock = lock::exclusive(&folder.join(".sluice-lock"), "the build of the kernel programs")?;

        let toolchain = toolchain::find()?;
        let linker = linker::provide(linkers, &toolchain)?;
        let flags = rust_flags(&linker, &self.arch);
        let fingerprint = fingerprint::of(&self.inputs(), &[&toolchain.version, &flags.join(" ")])?;

        let name = self.programs.object();
        let object = folder.join(format!("{name}.o"));
        let fingerprint_file = folder.join(format!("{name}.fingerprint"));
        if object.is_file() && fs::read_to_string(&fingerprint_file).is_ok_and(|old| old == fingerprint) {
            return Ok(BuiltObject { object, rebuilt: false });
        }

        // If a later step fails, the next build must not use this object.
        drop(fs::remove_file(&fingerprint_file));
        let compiled = self.compile(&folder, &toolchain, &flags)?;
        strip::debug_information(&compiled, &object)?;
        check::object(&object, self.programs.sections())?;
        fs::write(&fingerprint_file, fingerprint)
            .map_err(|source| BuildError::file("write", &fingerprint_file, source))?;
        Ok(BuiltObject { object, rebuilt: true })
    }

    fn compile(&self, folder: &Path, toolchain: &Toolchain, flags: &[String]) -> Result<PathBuf, BuildError> {
        report(TASK, &format!("compiling the kernel programs with {}", toolchain.name));
        let mut command = toolchain.cargo();
        command
            .current_dir(&self.workspace)
            .args(["build", "--package", "lb-ebpf", "--bin", self.programs.bin(), "--profile", "ebpf"])
            .args((self.programs == Programs::OtherLayout).then_some("--features=other-layout"))
            .args(["--target", TARGET, "-Z", "build-std=core", "--locked", "--target-dir"])
            .arg(folder)
            // Cargo defines this separator because flags may contain spaces.
            .env("CARGO_ENCODED_RUSTFLAGS", flags.join("\x1f"));
        progress::timed(TASK, "compiled", || command::compile(TASK, &mut command))?;
        Ok(folder.join(TARGET).join("ebpf").join(self.programs.bin()))
    }
}

/// Returns the compiler and linker flags of the kernel programs. The loader needs them, or their
/// effect was measured.
fn rust_flags(linker: &Path, arch: &str) -> Vec<String> {
    vec![
        format!("--cfg=bpf_target_arch=\"{arch}\""),
        format!("-Clinker={}", linker.display()),
        // The linker derives BTF (types of maps and functions) from debug information.
        "-Cdebuginfo=2".to_owned(),
        "-Clink-arg=--btf".to_owned(),
        // v3 has 32-bit registers and jumps. Every supported kernel (5.10 and later) runs it.
        "-Ctarget-cpu=v3".to_owned(),
        // Without these two, the compiler reads packets and copies structs byte by byte: 912
        // instead of 320 bytes of program for one 16-byte address and one map lookup. The machines
        // that run the agent support unaligned reads. (The linker generates the code, so it gets
        // the flag: rustc would warn about the feature and ignore it.)
        "-Clink-arg=--cpu-features=+allows-misaligned-mem-access".to_owned(),
        "-Clink-arg=--disable-expand-memcpy-in-order".to_owned(),
    ]
}
