//! The data file of faults. The test `tidy` contains this file too: it checks that each fault can
//! still be planted.

use std::{fs, path::Path};

/// The data file, from the root of the workspace.
pub const FILE: &str = "xtask/src/mutants/faults.txt";

/// A fault that is planted into a source file.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Fault {
    pub name: String,
    /// Path of the source file, from the root of the workspace.
    pub file: String,
    /// The behaviour that no longer works, as a sentence.
    pub breaks: String,
    /// Part of the names of the packet cases that run first.
    pub cases: Option<String>,
    /// Part of the names of the end-to-end cases that run instead of packet cases: no packet case
    /// reaches the programs of sockets.
    pub end_to_end: Option<String>,
    /// The text that is replaced. It occurs once in the file.
    pub text: String,
    pub replacement: String,
}

impl Fault {
    /// Returns the text of a file with the fault, or an error if the fault cannot be planted.
    pub fn plant(&self, source: &str) -> Result<String, String> {
        match source.matches(&self.text).count() {
            1 => Ok(source.replace(&self.text, &self.replacement)),
            0 => Err(format!("{}: {} does not contain `{}`", self.name, self.file, self.text)),
            count => Err(format!("{}: {} contains `{}` {count} times", self.name, self.file, self.text)),
        }
    }

    /// Like [`Fault::plant`], with the file below `root`.
    pub fn plant_in(&self, root: &Path) -> Result<String, String> {
        let source = fs::read_to_string(root.join(&self.file))
            .map_err(|error| format!("{}: cannot read {}: {error}", self.name, self.file))?;
        self.plant(&source)
    }
}

/// Reads the data file below `root`.
pub fn read(root: &Path) -> Result<Vec<Fault>, String> {
    let text = fs::read_to_string(root.join(FILE)).map_err(|error| format!("cannot read {FILE}: {error}"))?;
    parse(&text)
}

/// Parses the data file. Blocks are separated by empty lines, and `#` begins a comment.
fn parse(text: &str) -> Result<Vec<Fault>, String> {
    let mut faults: Vec<Fault> = Vec::new();
    let uncommented: Vec<_> = text.lines().filter(|line| !line.starts_with('#')).collect();
    for block in uncommented.split(|line| line.trim().is_empty()).filter(|block| !block.is_empty()) {
        let fault = fault(block)?;
        if faults.iter().any(|other| other.name == fault.name) {
            return Err(format!("two faults are named {}", fault.name));
        }
        faults.push(fault);
    }
    Ok(faults)
}

fn fault(block: &[&str]) -> Result<Fault, String> {
    let mut fault = Fault::default();
    for line in block {
        let (key, value) = line.split_once(' ').unwrap_or((line, ""));
        let value = value.trim().to_owned();
        match key {
            "fault:" => fault.name = value,
            "file:" => fault.file = value,
            "breaks:" => fault.breaks = value,
            "cases:" => fault.cases = Some(value),
            "end-to-end:" => fault.end_to_end = Some(value),
            "-" => fault.text = value,
            "+" => fault.replacement = value,
            _ => return Err(format!("`{line}`: no such key")),
        }
    }
    for (key, value) in
        [("fault", &fault.name), ("file", &fault.file), ("breaks", &fault.breaks), ("-", &fault.text)]
    {
        if value.is_empty() {
            return Err(format!("the fault `{}` has no `{key}`", block.join(" | ")));
        }
    }
    if fault.text == fault.replacement {
        return Err(format!("{}: the replacement is the text", fault.name));
    }
    Ok(fault)
}

#[cfg(test)]
mod tests {
    use super::{Fault, parse};

    const TEXT: &str = "# parsing\n\nfault: ports\nfile: a.rs\nbreaks: Ports are exchanged.\n\
                        cases: flows\n- (a, b)\n+ (b, a)\n\nfault: gone\nfile: b.rs\nbreaks: Nothing is done.\n- done();\n+\n";

    #[test]
    fn faults_are_read_from_blocks() {
        let faults = parse(TEXT).unwrap();
        assert_eq!(faults.len(), 2);
        assert_eq!((faults[0].cases.as_deref(), faults[0].replacement.as_str()), (Some("flows"), "(b, a)"));
        assert_eq!(faults[1].replacement, "");
        assert!(parse("fault: ports\nfile: a.rs\n- x\n+ y\n").is_err());
        assert!(parse(&TEXT.replace("gone", "ports")).is_err());
    }

    #[test]
    fn a_fault_replaces_a_text_that_occurs_once() {
        let fault = Fault { text: "a + b".into(), replacement: "a - b".into(), ..Fault::default() };
        assert_eq!(fault.plant("let c = a + b;").unwrap(), "let c = a - b;");
        assert!(fault.plant("let c = a;").is_err());
        assert!(fault.plant("a + b; a + b").is_err());
    }
}
