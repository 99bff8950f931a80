//! Names in packet texts. `$client` is an address, `$client.mac` a MAC address. Any other name is a
//! value that an earlier packet captured. Every packet captures `$_` again.

use std::collections::HashMap;

use anyhow::{Context, Result};
use lb_testbed::packet::layer::Mac;
use lb_testbed::packet::{Link, dissect, render, split_layers};
use lb_testbed::programs::world;

/// The values of the names in a running case.
pub struct Names {
    captured: HashMap<String, String>,
    v6: bool,
}

impl Names {
    pub fn new(v6: bool) -> Self {
        Self { captured: HashMap::new(), v6 }
    }

    pub fn set(&mut self, name: &str, value: String) {
        self.captured.insert(name.into(), value);
    }

    pub fn forget(&mut self, name: &str) {
        self.captured.remove(name);
    }

    /// Replaces every known name with its value. Unknown names are kept.
    pub fn fill(&self, text: &str) -> String {
        let mut filled = String::new();
        let mut rest = text;
        while let Some(at) = rest.find('$') {
            filled.push_str(&rest[..at]);
            let name = name_at(&rest[at..]);
            match self.value(name) {
                Some(value) => filled.push_str(&value),
                None => filled.push_str(&rest[at..at + 1 + name.len()]),
            }
            rest = &rest[at + 1 + name.len()..];
        }
        filled + rest
    }

    fn value(&self, name: &str) -> Option<String> {
        if let Some(value) = self.captured.get(name) {
            return Some(value.clone());
        }
        if let Some(name) = name.strip_suffix(".mac") {
            let mac: Mac = world::device(name).map(|device| device.mac).or_else(|| world::peer(name)?.mac)?;
            return Some(mac.map(|byte| format!("{byte:02x}")).join(":"));
        }
        world::address(name, self.v6).map(|address| address.to_string())
    }

    /// Captures the values of the unknown names in `expected` from the packet that was found.
    /// Returns an error if the packet does not have the expected layers.
    pub fn capture(&mut self, expected: &str, found: &[u8], link: Link) -> Result<()> {
        let found_layers = dissect(found, link);
        let found = split_layers(&render(&found_layers));
        let expected = split_layers(expected);
        let skip = found.len().saturating_sub(expected.len());
        for (expected, found) in expected.iter().zip(&found[skip..]) {
            if !expected.contains('$') {
                continue;
            }
            let found: Vec<&str> = found.split_whitespace().collect();
            for (i, word) in expected.split_whitespace().enumerate() {
                let Some(at) = word.find('$') else { continue };
                let name = name_at(&word[at..]);
                if self.captured.contains_key(name) {
                    continue;
                }
                let value = if at == 0 {
                    found.get(i).copied()
                } else {
                    found.iter().find_map(|found| found.strip_prefix(&word[..at]))
                };
                let value = value
                    .with_context(|| format!("no value for ${name}: found layer `{}`", found.join(" ")))?;
                self.set(name, value.into());
            }
        }
        Ok(())
    }
}

/// Returns the name after the `$` that `text` starts with.
fn name_at(text: &str) -> &str {
    let name = &text[1..];
    let end = name
        .find(|letter: char| !letter.is_ascii_alphanumeric() && letter != '.' && letter != '_')
        .unwrap_or(name.len());
    &name[..end]
}
