//! Tables like those of kubectl: left-aligned columns without lines, easy to split with `awk`.
//! `comfy-table` would need all of its borders, wrapping and terminal widths switched off.

use std::fmt;

/// A heading and rows of cells.
#[derive(Debug)]
pub struct TextTable {
    rows: Vec<Vec<String>>,
}

impl TextTable {
    pub fn new(columns: Vec<&'static str>) -> Self {
        Self { rows: vec![columns.into_iter().map(str::to_owned).collect()] }
    }

    pub fn push(&mut self, cells: Vec<String>) {
        debug_assert_eq!(cells.len(), self.rows[0].len());
        // An empty cell would shift the columns for programs that split lines at spaces.
        self.rows
            .push(cells.into_iter().map(|cell| if cell.is_empty() { "-".into() } else { cell }).collect());
    }
}

impl fmt::Display for TextTable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const GAP: usize = 3;
        let columns = self.rows.first().map_or(0, Vec::len);
        let width =
            |column: usize| self.rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0);
        let widths: Vec<usize> = (0..columns).map(|column| width(column) + GAP).collect();
        for row in &self.rows {
            let line: String =
                row.iter().zip(&widths).map(|(cell, &width)| format!("{cell:<width$}")).collect();
            writeln!(f, "{}", line.trim_end())?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_aligned_and_empty_cells_are_visible() {
        let mut table = TextTable::new(vec!["NAME", "N"]);
        table.push(vec!["a".into(), "1".into()]);
        table.push(vec!["longer".into(), String::new()]);
        assert_eq!(table.to_string(), "NAME     N\na        1\nlonger   -\n");
    }
}
