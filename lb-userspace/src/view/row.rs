//! The trait of table rows.

use serde::Serialize;

/// A row of a table, and an object of the JSON and YAML output.
pub trait Row: Serialize {
    /// Returns the column headings, of the normal or the wide table.
    fn columns(wide: bool) -> Vec<&'static str>;
    /// Returns the cells of this row, in the order of the columns. Empty cells are shown as `-`.
    fn cells(&self, wide: bool) -> Vec<String>;
}
