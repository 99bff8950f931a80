//! Copies of `lb` with kernel programs that no verifier accepts. They show what the agent does on a
//! kernel that refuses a program.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use crate::agent;

/// First instructions for which the verifier refuses a program.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// `r0 = r5`. A program starts without a value in r5: "R5 !read_ok".
    UnsetRegister,
    /// A call of a helper function that no kernel has: "invalid func".
    UnknownHelper,
    /// A loop that ends if the context's address is a certain number. The verifier must look at the
    /// rest of the program once for each number, which is more than it can store: "too complex".
    /// The program must have no relocations in its first four instructions.
    TooComplex,
}

impl Fault {
    fn instructions(self) -> &'static [[u8; 8]] {
        match self {
            Self::UnsetRegister => &[[0xbf, 0x50, 0, 0, 0, 0, 0, 0]],
            Self::UnknownHelper => &[[0x85, 0, 0, 0, 0xff, 0xff, 0, 0]],
            Self::TooComplex => &[
                // r0 = 0
                [0xb7, 0, 0, 0, 0, 0, 0, 0],
                // r0 += 1
                [0x07, 0, 0, 0, 1, 0, 0, 0],
                // if r1 == r0 goto +1
                [0x1d, 0x01, 1, 0, 0, 0, 0, 0],
                // goto -3
                [0x05, 0, 0xfd, 0xff, 0, 0, 0, 0],
            ],
        }
    }
}

/// Writes a copy of `lb` to `folder`. The first instructions of each of these programs are
/// replaced. Returns the path of the copy.
pub fn lb_with_refused(programs: &[&str], fault: Fault, folder: &Path) -> Result<PathBuf> {
    let mut bytes = fs::read(agent::program()?).context("read lb")?;
    for program in programs {
        let at = first_instruction(&bytes, program)
            .with_context(|| format!("lb has no kernel program {program}"))?;
        let fault = fault.instructions().as_flattened();
        bytes.get_mut(at..at + fault.len()).context("a program ends after lb")?.copy_from_slice(fault);
    }
    let path = folder.join(format!("lb-without-{}", programs.join("-")));
    fs::write(&path, bytes).with_context(|| format!("write {}", path.display()))?;
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755))?;
    Ok(path)
}

/// Returns the offset in `lb` of a program's first instruction.
fn first_instruction(lb: &[u8], program: &str) -> Option<usize> {
    let mut starts = (0..lb.len()).step_by(ALIGNMENT).filter(|at| lb[*at..].starts_with(b"\x7fELF"));
    starts.find_map(|start| Some(start + Elf(lb.get(start..)?).function(program)?))
}

/// The object file of the kernel programs: ELF, 64 bits, little-endian (elf(5)).
struct Elf<'a>(&'a [u8]);

/// Alignment of the object file in `lb` (`aya::include_bytes_aligned`), or a divisor of it.
const ALIGNMENT: usize = 8;
/// `EM_BPF`.
const MACHINE_BPF: u16 = 247;
/// `SHT_SYMTAB`.
const SYMBOL_TABLE: u32 = 2;
/// Size of a symbol.
const SYMBOL: usize = 24;

impl<'a> Elf<'a> {
    /// Returns the offset of a function.
    fn function(&self, name: &str) -> Option<usize> {
        if self.u16(0x12)? != MACHINE_BPF {
            return None;
        }
        let sections = self.u16(0x3c)?;
        let symbols = (0..sections)
            .filter_map(|number| self.section(number))
            .find(|section| self.u32(section + 4) == Some(SYMBOL_TABLE))?;
        let names = self.section(self.u32(symbols + 0x28)? as u16)?;
        let names = self.bytes(names)?;
        let symbol = self.bytes(symbols)?.chunks_exact(SYMBOL).find(|symbol| {
            let name_at = u32::from_le_bytes([symbol[0], symbol[1], symbol[2], symbol[3]]) as usize;
            let text = names.get(name_at..).and_then(|rest| rest.split(|byte| *byte == 0).next());
            text == Some(name.as_bytes())
        })?;
        let symbol = Self(symbol);
        let section = self.section(symbol.u16(6)?)?;
        Some((self.u64(section + 0x18)? + symbol.u64(8)?) as usize)
    }

    /// Returns the offset of a section's header.
    fn section(&self, number: u16) -> Option<usize> {
        let (table, size) = (self.u64(0x28)? as usize, usize::from(self.u16(0x3a)?));
        Some(table + size * usize::from(number))
    }

    /// Returns the content of the section with this header.
    fn bytes(&self, header: usize) -> Option<&'a [u8]> {
        let (offset, size) = (self.u64(header + 0x18)? as usize, self.u64(header + 0x20)? as usize);
        self.0.get(offset..offset + size)
    }

    fn u16(&self, at: usize) -> Option<u16> {
        Some(u16::from_le_bytes(self.0.get(at..at + 2)?.try_into().ok()?))
    }

    fn u32(&self, at: usize) -> Option<u32> {
        Some(u32::from_le_bytes(self.0.get(at..at + 4)?.try_into().ok()?))
    }

    fn u64(&self, at: usize) -> Option<u64> {
        Some(u64::from_le_bytes(self.0.get(at..at + 8)?.try_into().ok()?))
    }
}
