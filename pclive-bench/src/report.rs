//! What is written of the runs: tables, plots and the page.

use std::path::Path;

use anyhow::{Context, Result};

use crate::outcome::Run;
use crate::table::{self, Table};
use crate::{figures, page};

/// The page's file.
pub(crate) const PAGE: &str = "report.html";
/// The tables' file.
pub(crate) const TABLES: &str = "report.md";

/// Writes `report.html`, `report.md` and a file for each plot into the directory, over those that are there.
pub(crate) fn write(directory: &Path, runs: &[Run]) -> Result<()> {
    let (tables, figures) = (table::tables(runs), figures::figures(runs)?);
    let file = |name: &str, text: &str| {
        let path = directory.join(name);
        std::fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))
    };
    for figure in &figures {
        file(&format!("{}.svg", figure.name), &figure.svg)?;
    }
    let conditions = page::conditions(runs).join("\n\n");
    let text: Vec<String> = tables.iter().map(Table::markdown).collect();
    file(TABLES, &format!("{conditions}\n\n{}", text.join("\n")))?;
    file(PAGE, &page::page(runs, &tables, &figures))
}
