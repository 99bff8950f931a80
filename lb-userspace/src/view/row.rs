//! What a table shows.

use serde::Serialize;

/// A row of a table, and an object of the JSON and YAML output.
pub trait Row: Serialize {
    /// What the rows are, for "no … found".
    const PLURAL: &'static str;

    fn columns(wide: bool) -> Vec<&'static str>;
    fn cells(&self, wide: bool) -> Vec<String>;
}
