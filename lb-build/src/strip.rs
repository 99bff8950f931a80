//! Removes debug information from the object. The linker derives BTF from it; after that it is of
//! no use, and it is two thirds of the object.

use std::{fs, path::Path};

use object::{
    build::elf::{Builder, SectionData},
    elf::SHT_STRTAB,
};

use crate::error::BuildError;

/// Writes the object `from` to `to` without its DWARF sections; `.BTF` and `.BTF.ext` stay.
pub(crate) fn debug_information(from: &Path, to: &Path) -> Result<(), BuildError> {
    let data = fs::read(from).map_err(|source| BuildError::file("read", from, source))?;
    let stripped = without_debug_information(&data)
        .map_err(|error| BuildError::Object { object: from.to_owned(), problems: vec![error.to_string()] })?;
    fs::write(to, stripped).map_err(|source| BuildError::file("write", to, source))
}

fn without_debug_information(data: &[u8]) -> Result<Vec<u8>, object::build::Error> {
    let mut builder = Builder::read(data)?;
    for section in &mut builder.sections {
        let name = section.name.as_slice();
        section.delete |= name.starts_with(b".debug_") || name.starts_with(b".rel.debug_");
    }
    builder.delete_orphan_symbols();
    // LLVM keeps all names in one string table. The builder writes the names of sections into a
    // separate table.
    if !builder.sections.iter().any(|section| matches!(section.data, SectionData::SectionString)) {
        let names = builder.sections.add();
        names.name = b".shstrtab"[..].into();
        names.sh_type = SHT_STRTAB;
        names.data = SectionData::SectionString;
    }
    let mut stripped = Vec::new();
    builder.write(&mut stripped)?;
    Ok(stripped)
}

#[cfg(test)]
mod tests {
    use object::{
        Architecture, BinaryFormat, Endianness, File, Object as _, ObjectSection as _, SectionKind,
        write::Object,
    };

    use super::without_debug_information;

    #[test]
    fn dwarf_is_removed_and_the_rest_stays() {
        let mut object = Object::new(BinaryFormat::Elf, Architecture::Bpf, Endianness::Little);
        for name in ["xdp", ".BTF", ".debug_info", ".debug_str"] {
            let section = object.add_section(Vec::new(), name.into(), SectionKind::Data);
            object.append_section_data(section, name.as_bytes(), 1);
        }
        let stripped = without_debug_information(&object.write().expect("an object")).expect("an ELF object");
        let stripped = File::parse(&*stripped).expect("the stripped object");
        for name in ["xdp", ".BTF"] {
            let data = stripped.section_by_name(name).and_then(|section| section.data().ok());
            assert_eq!(data, Some(name.as_bytes()));
        }
        assert!(stripped.sections().all(|section| section.name().is_ok_and(|name| !name.contains("debug"))));
    }
}
