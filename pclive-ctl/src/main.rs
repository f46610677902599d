//! `pclivectl`: the command line of PCLive.
//!
//! It talks to the agent of the host that it runs on (or to another one, `--agent`) and knows nothing but the
//! control API. Reading commands print a table or one JSON document; `migrate` and `watch` follow a migration
//! and end with its report. The exit code tells what became of the container, see [`exit::Exit`].

#![forbid(unsafe_code)]

mod address;
mod args;
mod certs;
mod client;
mod commands;
mod exit;
mod failure;
mod follow;
mod interrupt;
mod output;
mod render;
mod tls;

use std::process::ExitCode;

use clap::Parser;

use crate::args::Args;
use crate::exit::Exit;
use crate::output::Output;

fn main() -> ExitCode {
    let args = Args::parse();
    let mut output = Output::new(args.json);
    let ended = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime.block_on(commands::run(args, &mut output)),
        Err(source) => Err(failure::Failure::Runtime { source }),
    };
    ended.unwrap_or_else(|failure| give_up(&mut output, &failure)).into()
}

/// Tells why a command ends early. That the reader of our output has gone is no news to anybody.
fn give_up(output: &mut Output, failure: &failure::Failure) -> Exit {
    if !failure.is_closed_output() {
        output.failure(&failure.to_error());
    }
    failure.exit()
}
