//! A process of many threads, mappings and open files, each with something that is its own and can be verified.
//!
//! `crowd --threads N --mappings N --files N`, then on TCP port 7000: `PING`, and `CHECK`: `PASS ...` when every
//! thread counts on, every mapping has its contents and its protection, and every open file is at its place.
//! A check also writes to every mapping and moves every file's position, so that the next one expects other values.

mod files;
mod mappings;
mod threads;

use anyhow::{Context, Result};
use clap::Parser;
use pclive_tests::answers;

use files::Files;
use mappings::Mappings;
use threads::Threads;

/// Holds many of everything, for ever.
#[derive(Debug, Parser)]
struct Options {
    /// Threads beside the first one.
    #[arg(long, default_value_t = 2000)]
    threads: usize,
    /// Mappings of one page each.
    #[arg(long, default_value_t = 20_000)]
    mappings: usize,
    /// Open files, each opened by itself.
    #[arg(long, default_value_t = 5000)]
    files: usize,
}

fn main() -> Result<()> {
    let options = Options::parse();
    let mut mappings = Mappings::new(options.mappings).context("cannot make the mappings")?;
    let mut files = Files::open(options.files).context("cannot open the files")?;
    let threads = Threads::start(options.threads).context("cannot start the threads")?;
    answers::serve(|question| match question {
        "PING" => "PONG".into(),
        "CHECK" => {
            let everything = threads.check().and_then(|()| mappings.check()).and_then(|()| files.check());
            everything
                .map_or_else(|error| format!("FAIL {error:#}"), |()| "PASS everything is its own".into())
        }
        other => format!("FAIL unknown question {other}"),
    })
}
