//! What is written of the runs: tables, plots and the page.

use std::path::Path;

use anyhow::{Context, Result};

use crate::figures::Figure;
use crate::outcome::Run;
use crate::picture::Painter;
use crate::table::{self, Table};
use crate::{figures, page};

/// The page's file.
pub(crate) const PAGE: &str = "report.html";
/// The tables' file.
pub(crate) const TABLES: &str = "report.md";

/// Writes `report.html`, `report.md` and each plot, as SVG and PNG, into the directory, over what is there.
pub(crate) fn write(directory: &Path, runs: &[Run]) -> Result<()> {
    let (tables, figures) = (table::tables(runs), figures::figures(runs)?);
    let file = |name: &str, contents: &[u8]| {
        let path = directory.join(name);
        std::fs::write(&path, contents).with_context(|| format!("cannot write {}", path.display()))
    };
    for Figure { name, svg } in &figures {
        file(&format!("{name}.svg"), svg.as_bytes())?;
    }
    let conditions = page::conditions(runs).join("\n\n");
    let text: Vec<String> = tables.iter().map(Table::markdown).collect();
    file(TABLES, format!("{conditions}\n\n{}", text.join("\n")).as_bytes())?;
    file(PAGE, page::page(runs, &tables, &figures).as_bytes())?;
    match Painter::new() {
        Ok(painter) => figures.iter().try_for_each(|Figure { name, svg }| {
            let picture = painter.png(svg).with_context(|| format!("cannot draw {name}.png"))?;
            file(&format!("{name}.png"), &picture)
        }),
        Err(error) => {
            eprintln!("plots are there as SVG only: {error:#}");
            Ok(())
        }
    }
}
