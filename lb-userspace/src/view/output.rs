//! Output formats of `lb get`: tables for people, JSON and YAML for programs.

use super::row::Row;
use super::table::TextTable;

/// Option `-o` of `lb get`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, clap::ValueEnum)]
pub enum OutputFormat {
    /// A table with the most important columns
    #[default]
    Table,
    /// A table with all columns
    Wide,
    /// A JSON list of objects
    Json,
    /// The same list as YAML
    Yaml,
}

/// The rows could not be rendered in this format.
#[derive(Debug, thiserror::Error)]
pub enum OutputError {
    #[error("cannot write JSON")]
    Json(#[from] serde_json::Error),
    #[error("cannot write YAML")]
    Yaml(#[from] serde_saphyr::ser::Error),
}

/// Renders rows in the given format.
pub fn render<R: Row>(rows: &[R], output: OutputFormat) -> Result<String, OutputError> {
    Ok(match output {
        OutputFormat::Json => serde_json::to_string_pretty(rows)? + "\n",
        OutputFormat::Yaml => serde_saphyr::to_string(&rows)?,
        OutputFormat::Table | OutputFormat::Wide => {
            let wide = output == OutputFormat::Wide;
            let mut table = TextTable::new(R::columns(wide));
            for row in rows {
                table.push(row.cells(wide));
            }
            table.to_string()
        }
    })
}
