//! Output formats: tables for people, JSON and YAML for programs.

use super::row::Row;
use super::table::Table;

/// `-o`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, clap::ValueEnum)]
pub enum Output {
    /// A table of what matters most
    #[default]
    Table,
    /// The table with every column
    Wide,
    /// A list of objects
    Json,
    /// The same list as YAML
    Yaml,
}

/// The rows could not be written in the chosen format.
#[derive(Debug, thiserror::Error)]
pub enum OutputError {
    #[error("cannot write JSON")]
    Json(#[from] serde_json::Error),
    #[error("cannot write YAML")]
    Yaml(#[from] serde_saphyr::ser::Error),
}

pub fn render<R: Row>(rows: &[R], output: Output) -> Result<String, OutputError> {
    Ok(match output {
        Output::Json => serde_json::to_string_pretty(rows)? + "\n",
        Output::Yaml => serde_saphyr::to_string(&rows)?,
        Output::Table | Output::Wide => {
            let wide = output == Output::Wide;
            let mut table = Table::new(R::columns(wide));
            for row in rows {
                table.push(row.cells(wide));
            }
            table.to_string()
        }
    })
}
