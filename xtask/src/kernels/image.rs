//! The files that QEMU boots: an uncompressed kernel, and an archive with this program as `/init`.

use std::{
    fs::{self, File},
    io::Write as _,
    path::{Path, PathBuf},
    process::Stdio,
};

use anyhow::{Context as _, Result, bail, ensure};

use super::{
    arch::Arch,
    debian::Kernel,
    guest::{self, GuestTask},
};
use crate::{
    process::{bytes_of, command, text_of},
    setup,
};

/// Modules that the guest needs before it can load any from the host.
const EARLY_MODULES: [&str; 4] = ["virtio_pci", "virtiofs", "virtio_rng", "overlay"];

/// Returns the path of the kernel that QEMU starts. For x86-64, it is the uncompressed kernel,
/// which starts directly (PVH): decompression is slow under emulation. For aarch64, QEMU
/// decompresses the kernel itself.
pub fn bootable(kernel: &Kernel) -> Result<PathBuf> {
    match kernel.arch {
        Arch::X86_64 => vmlinux(kernel),
        Arch::Aarch64 => kernel.image(),
    }
}

/// Returns the path of the uncompressed kernel inside a bzImage.
fn vmlinux(kernel: &Kernel) -> Result<PathBuf> {
    let path = kernel.folder.join("vmlinux");
    if path.is_file() {
        return Ok(path);
    }
    let image = fs::read(kernel.image()?)?;
    let payload = payload(&image).context("the kernel's image is no bzImage")?;
    let decompress: &[&str] = match payload {
        [0x1f, 0x8b, ..] => &["gzip"],
        [0xfd, b'7', b'z', b'X', b'Z', ..] => &["xz", "--single-stream"],
        [0x28, 0xb5, 0x2f, 0xfd, ..] => &["zstd", "-q"],
        [0x02, 0x21, 0x4c, 0x18, ..] => &["lz4", "-q"],
        _ => bail!("the kernel is compressed in a way that is not known here"),
    };
    let compressed = kernel.folder.join("payload");
    fs::write(&compressed, payload)?;
    let output = command(decompress[0])
        .args(&decompress[1..])
        .arg("-dc")
        .stdin(File::open(&compressed)?)
        .stderr(Stdio::null())
        .output()
        .with_context(|| format!("cannot run {}", decompress[0]))?;
    fs::remove_file(&compressed)?;
    // The payload ends with its size, so the programs report an error.
    ensure!(output.stdout.starts_with(b"\x7fELF"), "{} did not decompress the kernel", decompress[0]);
    fs::write(&path, output.stdout)?;
    Ok(path)
}

/// Returns the compressed kernel inside a bzImage (Documentation/arch/x86/boot.rst: `setup_sects`,
/// `payload_offset`, `payload_length`).
fn payload(image: &[u8]) -> Option<&[u8]> {
    let word = |at: usize| Some(u32::from_le_bytes(image.get(at..at + 4)?.try_into().ok()?) as usize);
    let setup_sectors = match *image.get(0x1f1)? {
        0 => 4,
        sectors => usize::from(sectors),
    };
    let start = (setup_sectors + 1) * 512 + word(0x248)?;
    image.get(start..start + word(0x24c)?)
}

/// The program that is the first process of a guest.
#[derive(Clone, Debug)]
pub enum Init {
    /// This program, with its shared libraries.
    Own,
    /// A static program, built from the same source for the guest's architecture.
    Static(PathBuf),
}

/// Writes the archive: the first program with its libraries, the early modules, and the task.
pub fn initramfs(kernel: &Kernel, init: &Init, task: &GuestTask, path: &Path) -> Result<()> {
    let mut archive = Archive::default();
    for folder in ["dev", "proc", "sys", "host", "writable", "root", "modules"] {
        archive.folder(folder);
    }
    let scratch = path.with_extension("stripped");
    let libraries = match init {
        Init::Own => {
            // The file may have been replaced by a newer build since this process started.
            let program = PathBuf::from(format!("/proc/{}/exe", std::process::id()));
            archive.file("init", &stripped(&program, setup::Program::Strip, &scratch)?);
            libraries(&program)?
        }
        Init::Static(program) => {
            archive.file("init", &stripped(program, setup::Program::Aarch64Strip, &scratch)?);
            Vec::new()
        }
    };
    for library in libraries {
        let bytes = fs::read(&library).with_context(|| format!("cannot read {library}"))?;
        archive.file(library.trim_start_matches('/'), &bytes);
    }
    let mut order = Vec::new();
    for (name, module) in early_modules(kernel)? {
        archive.file(&format!("modules/{name}"), &module);
        order.push(name);
    }
    let task = GuestTask { early_modules: order, ..task.clone() };
    archive.file(guest::TASK_FILE.trim_start_matches('/'), &serde_json::to_vec(&task)?);
    fs::write(path, archive.finish()).with_context(|| format!("cannot write {}", path.display()))
}

/// Returns a program without its debug information, which is most of the file.
fn stripped(program: &Path, strip: setup::Program, scratch: &Path) -> Result<Vec<u8>> {
    fs::copy(program, scratch).with_context(|| format!("cannot read {}", program.display()))?;
    text_of(command(strip.name()).arg(scratch))?;
    let bytes = fs::read(scratch)?;
    fs::remove_file(scratch)?;
    Ok(bytes)
}

/// Returns the paths of the shared libraries of a program and of its loader.
fn libraries(program: &Path) -> Result<Vec<String>> {
    let list = text_of(command("ldd").arg(program))?;
    let paths = list.lines().filter_map(|line| line.split_whitespace().find(|word| word.starts_with('/')));
    Ok(paths.map(str::to_owned).collect())
}

/// Returns the early modules that are not built into the kernel, decompressed. A module follows its
/// dependencies.
fn early_modules(kernel: &Kernel) -> Result<Vec<(String, Vec<u8>)>> {
    let folder = kernel.modules();
    let dependencies = fs::read_to_string(folder.join("modules.dep")).context("cannot read modules.dep")?;
    let mut modules: Vec<(String, Vec<u8>)> = Vec::new();
    for path in EARLY_MODULES.iter().flat_map(|module| with_dependencies(&dependencies, module)) {
        let name = module_name(path).to_owned();
        if modules.iter().all(|(other, _)| *other != name) {
            modules.push((name, decompressed(&folder.join(path))?));
        }
    }
    Ok(modules)
}

/// Returns the paths of a module and of its dependencies in the order of loading. The list is empty
/// if the module is built into the kernel.
fn with_dependencies<'a>(dependencies: &'a str, module: &str) -> Vec<&'a str> {
    let entry = dependencies.lines().filter_map(|line| line.split_once(':'));
    let Some((path, needed)) = entry.into_iter().find(|(path, _)| module_name(path) == module) else {
        return Vec::new();
    };
    // In modules.dep, the module that must be loaded first is the last one.
    needed.split_whitespace().rev().chain([path]).collect()
}

/// Returns the name of a module: `overlay` for `kernel/fs/overlayfs/overlay.ko.xz`.
fn module_name(path: &str) -> &str {
    let file = path.rsplit('/').next().unwrap_or(path);
    file.split(".ko").next().unwrap_or(file)
}

fn decompressed(path: &Path) -> Result<Vec<u8>> {
    let program = match path.extension().and_then(|extension| extension.to_str()) {
        Some("xz") => "xz",
        Some("zst") => "zstd",
        _ => return fs::read(path).with_context(|| format!("cannot read {}", path.display())),
    };
    bytes_of(command(program).args(["-q", "-dc"]).arg(path))
}

/// A cpio archive in the format `newc`
/// (Documentation/driver-api/early-userspace/buffer-format.rst).
#[derive(Default)]
struct Archive {
    bytes: Vec<u8>,
    folders: Vec<String>,
    entries: u32,
}

impl Archive {
    fn folder(&mut self, path: &str) {
        if self.folders.iter().any(|folder| folder == path) {
            return;
        }
        self.parents(path);
        self.entry(path, 0o040_755, &[]);
        self.folders.push(path.to_owned());
    }

    fn file(&mut self, path: &str, content: &[u8]) {
        self.parents(path);
        self.entry(path, 0o100_755, content);
    }

    fn parents(&mut self, path: &str) {
        if let Some((parent, _)) = path.rsplit_once('/') {
            self.folder(parent);
        }
    }

    fn entry(&mut self, path: &str, mode: u32, content: &[u8]) {
        self.entries += 1;
        let (size, name_size) = (content.len(), path.len() + 1);
        // inode, mode, owner, group, links, time, size, device, device of a device file, length of
        // the name, checksum
        let fields = [self.entries, mode, 0, 0, 1, 0, size as u32, 0, 0, 0, 0, name_size as u32, 0];
        self.bytes.extend(b"070701");
        for field in fields {
            // Writing to a vector does not fail.
            let _ = write!(self.bytes, "{field:08x}");
        }
        self.bytes.extend(path.as_bytes());
        self.bytes.push(0);
        self.align();
        self.bytes.extend(content);
        self.align();
    }

    fn align(&mut self) {
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
    }

    fn finish(mut self) -> Vec<u8> {
        self.entry("TRAILER!!!", 0, &[]);
        self.bytes
    }
}

#[cfg(test)]
mod tests {
    use super::{Archive, module_name, with_dependencies};

    #[test]
    fn modules_are_loaded_after_what_they_need() {
        let dependencies = "kernel/fs/fuse/fuse.ko.xz:\n\
                            kernel/fs/fuse/virtiofs.ko.xz: kernel/fs/fuse/fuse.ko.xz kernel/drivers/virtio/virtio.ko.xz\n";
        let names: Vec<_> =
            with_dependencies(dependencies, "virtiofs").into_iter().map(module_name).collect();
        assert_eq!(names, ["virtio", "fuse", "virtiofs"]);
        assert!(with_dependencies(dependencies, "overlay").is_empty());
    }

    #[test]
    fn an_archive_has_the_folders_of_its_files() {
        let mut archive = Archive::default();
        archive.file("lib/a", b"12345");
        archive.file("lib/b", b"");
        let text = String::from_utf8(archive.finish()).expect("only text was put in");
        assert_eq!(text.matches("070701").count(), 4);
        assert!(text.starts_with(
            "07070100000001000041ed00000000000000000000000100000000000000000000000000000000000000000000000000000004\
             00000000lib\0"
        ));
    }
}
