//! `report`: a page about one migration.

use std::path::{Path, PathBuf};

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
struct Written<'a> {
    file: &'a Path,
}

/// Writes the page, over one that is there.
pub(super) async fn run(mut client: Client, report: &Report, output: &mut Output) -> Result<Exit, Failure> {
    let found = client.migration(&report.id).await?;
    let page = page::page(&found, now_ms());
    let path = report.output.clone().unwrap_or_else(|| default_path(&report.id));
    if path == Path::new("-") {
        output.text(&page)?;
        return Ok(Exit::Ok);
    }
    std::fs::write(&path, page).map_err(|source| Failure::Page { path: path.clone(), source })?;
    output.result(&Written { file: &path }, || format!("written: {}", path.display()))?;
    Ok(Exit::Ok)
}

fn default_path(id: &str) -> PathBuf {
    // An id that the agent knows has no slash; one that it does not know has been refused by now.
    PathBuf::from(format!("pclive-{}.html", id.replace('/', "_")))
}
