//! Checks that the agent can load the object. The messages name the mistake; the kernel's verifier
//! would report the same mistake as a page of register states.

use std::{fs, path::Path};

use object::{File, Object as _, ObjectSection as _, ObjectSymbol as _};

use crate::error::BuildError;

/// The hooks that the agent attaches programs to.
pub(crate) const AGENT_SECTIONS: [&str; 10] = [
    "xdp",
    "classifier",
    "cgroup/connect4",
    "cgroup/connect6",
    "cgroup/sendmsg4",
    "cgroup/sendmsg6",
    "cgroup/recvmsg4",
    "cgroup/recvmsg6",
    "cgroup/getpeername4",
    "cgroup/getpeername6",
];
/// The hooks of the programs that benchmarks measure with.
pub(crate) const BENCH_SECTIONS: [&str; 1] = ["xdp"];

/// Parts of symbol names that occur only in code for a panic. A BPF program cannot panic. Each such
/// symbol stems from an `unwrap`, an index or an arithmetic check that the compiler could not
/// remove.
const PANIC_SYMBOLS: [&str; 5] =
    ["panic", "rust_begin_unwind", "unwrap_failed", "expect_failed", "slice_index_fail"];

/// Checks the object at `path`: machine, licence, BTF, no path to a panic, no undefined symbol, and
/// at least one program in each of these sections.
///
/// # Errors
/// [`BuildError::Object`] lists every problem.
pub(crate) fn object(path: &Path, sections: &[&str]) -> Result<(), BuildError> {
    let data = fs::read(path).map_err(|source| BuildError::file("read", path, source))?;
    let problems = problems(&data, sections);
    if problems.is_empty() { Ok(()) } else { Err(BuildError::Object { object: path.to_owned(), problems }) }
}

fn problems(data: &[u8], sections: &[&str]) -> Vec<String> {
    let file = match File::parse(data) {
        Ok(file) => file,
        Err(error) => return vec![format!("it is not an ELF object: {error}")],
    };
    let mut problems = Vec::new();
    if file.architecture() != object::Architecture::Bpf || !file.is_little_endian() {
        problems.push(format!("it is built for {:?}, not for little-endian BPF", file.architecture()));
    }
    let filled: Vec<_> = file
        .sections()
        .filter(|section| section.size() > 0)
        .filter_map(|section| section.name().map(str::to_owned).ok())
        .collect();
    for wanted in ["license", ".BTF", ".BTF.ext"].iter().chain(sections) {
        // Programs in `xdp.frags` attach to the hook `xdp` too.
        let serves =
            |name: &String| name.strip_prefix(wanted).is_some_and(|rest| rest.is_empty() || rest == ".frags");
        if !filled.iter().any(serves) {
            problems.push(format!("section {wanted} is missing or empty"));
        }
    }
    for symbol in file.symbols() {
        let Ok(name) = symbol.name() else { continue };
        if PANIC_SYMBOLS.iter().any(|part| name.contains(part)) {
            problems.push(format!("{name}: a panic is reachable; use `get`, masks and checked arithmetic"));
        } else if symbol.is_undefined() && !name.is_empty() {
            problems.push(format!("{name} is called but not defined"));
        }
    }
    problems
}

/// Returns the name and the section of each program of the object at `path`.
///
/// # Errors
/// [`BuildError`] if the file cannot be read or is not an ELF object.
pub fn programs(path: &Path) -> Result<Vec<(String, String)>, BuildError> {
    let data = fs::read(path).map_err(|source| BuildError::file("read", path, source))?;
    let file = File::parse(&*data).map_err(|error| BuildError::Object {
        object: path.to_owned(),
        problems: vec![format!("it is not an ELF object: {error}")],
    })?;
    let mut programs: Vec<_> = file
        .symbols()
        .filter(|symbol| symbol.is_global() && symbol.kind() == object::SymbolKind::Text)
        .filter_map(|symbol| {
            let section = file.section_by_index(symbol.section_index()?).ok()?;
            let section = section.name().ok()?;
            // Subprograms are in .text. A program that can be attached is in a section with the
            // name of its hook.
            (section != ".text").then(|| Some((symbol.name().ok()?.to_owned(), section.to_owned())))?
        })
        .collect();
    programs.sort();
    Ok(programs)
}

#[cfg(test)]
mod tests {
    use object::{
        Architecture, BinaryFormat, Endianness, SectionKind, SymbolFlags, SymbolKind, SymbolScope,
        write::{Object, Symbol, SymbolSection},
    };

    use super::{AGENT_SECTIONS, problems};

    /// Returns an object for `architecture` that has all required sections.
    fn complete(architecture: Architecture) -> Object<'static> {
        let mut object = Object::new(BinaryFormat::Elf, architecture, Endianness::Little);
        for name in ["license", ".BTF", ".BTF.ext"].into_iter().chain(AGENT_SECTIONS) {
            let section = object.add_section(Vec::new(), name.into(), SectionKind::Data);
            object.append_section_data(section, b"GPL\0", 1);
        }
        object
    }

    fn add_symbol(object: &mut Object, name: &str, section: SymbolSection) {
        object.add_symbol(Symbol {
            name: name.into(),
            value: 0,
            size: 8,
            kind: SymbolKind::Text,
            scope: SymbolScope::Linkage,
            weak: false,
            section,
            flags: SymbolFlags::None,
        });
    }

    #[test]
    fn a_complete_object_has_no_problems() {
        let object = complete(Architecture::Bpf);
        assert_eq!(problems(&object.write().expect("an object"), &AGENT_SECTIONS), Vec::<String>::new());
    }

    #[test]
    fn a_panic_path_and_an_undefined_function_are_reported() {
        let mut object = complete(Architecture::Bpf);
        let text = object.add_section(Vec::new(), b".text".to_vec(), SectionKind::Text);
        add_symbol(&mut object, "_ZN4core9panicking18panic_bounds_check17h0E", SymbolSection::Section(text));
        add_symbol(&mut object, "memcpy", SymbolSection::Section(text));
        add_symbol(&mut object, "memcmp", SymbolSection::Undefined);
        let problems = problems(&object.write().expect("an object"), &AGENT_SECTIONS);
        assert_eq!(problems.len(), 2, "{problems:?}");
        assert!(problems.iter().any(|problem| problem.contains("panic_bounds_check")), "{problems:?}");
        assert!(problems.iter().any(|problem| problem.starts_with("memcmp is called")), "{problems:?}");
    }

    #[test]
    fn missing_sections_and_other_machines_are_reported() {
        let empty = Object::new(BinaryFormat::Elf, Architecture::Bpf, Endianness::Little);
        assert_eq!(
            problems(&empty.write().expect("an object"), &AGENT_SECTIONS).len(),
            3 + AGENT_SECTIONS.len()
        );
        let host = problems(&complete(Architecture::X86_64).write().expect("an object"), &AGENT_SECTIONS);
        assert!(matches!(&host[..], [problem] if problem.contains("X86_64")), "{host:?}");
        assert!(
            matches!(&problems(b"no object", &[])[..], [problem] if problem.starts_with("it is not an ELF"))
        );
    }
}
