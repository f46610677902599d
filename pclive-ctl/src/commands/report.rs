//! `report`: a page about one migration.

use std::path::Path;

use serde::Serialize;

use super::now_ms;
use crate::args::Report;
use crate::client::Client;
use crate::exit::Exit;
use crate::failure::Failure;
use crate::output::Output;
use crate::render::page;

/// What was written, for programs.
#[derive(Serialize)]
struct Written {
    file: String,
}

/// Writes the page, over one that is there.
pub(super) async fn run(mut client: Client, report: &Report, output: &mut Output) -> Result<Exit, Failure> {
    let found = client.migration(&report.id).await?;
    let page = page::page(&found, now_ms());
    // The agent knows the id, so that it is one and no path.
    let path = report.output.clone().unwrap_or_else(|| format!("pclive-{}.html", report.id).into());
    if path == Path::new("-") {
        output.text(&page)?;
        return Ok(Exit::Ok);
    }
    std::fs::write(&path, page).map_err(|source| Failure::Page { path: path.clone(), source })?;
    let file = path.display().to_string();
    output.result(&Written { file: file.clone() }, || format!("written: {file}"))?;
    Ok(Exit::Ok)
}
