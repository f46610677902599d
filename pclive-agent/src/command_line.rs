//! The daemon's command line. Exit codes: 0 ended by a signal or did what was asked, 1 failed while running, 2
//! wrong usage or configuration.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;

use anyhow::Context;
use clap::Parser;

use crate::config::{self, Config};
use crate::hooks::supervisor;
use crate::tls::Keeper;
use crate::{daemon, logging, tail};

/// Exit code for a configuration that cannot be used; clap uses the same for wrong usage.
const UNUSABLE: u8 = 2;

/// The PCLive daemon: migrates running containers between hosts.
#[derive(Debug, Parser)]
#[command(
    version,
    after_help = "Exit codes: 0 ended by a signal or did what was asked, 1 failed while running, 2 wrong usage \
                  or configuration."
)]
struct Arguments {
    /// Configuration file; every key can also be set by a PCLIVE_ variable (PCLIVE_MIGRATION__MAX_ROUNDS=5).
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Say whether the configuration can be used, and end.
    #[arg(long, conflicts_with = "print_config")]
    check_config: bool,
    /// Print what defaults, file and environment add up to, and end.
    #[arg(long)]
    print_config: bool,
    #[command(subcommand)]
    work: Option<Work>,
}

/// What the agent starts its own program for.
#[derive(Debug, clap::Subcommand)]
enum Work {
    /// Fetches the last pages of a container that runs here already. Told by its standard input what to do.
    #[command(hide = true)]
    FetchPages,
    /// Runs a hook, and ends it with its agent.
    #[command(hide = true)]
    RunHook {
        /// Program and arguments.
        #[arg(required = true, last = true)]
        command: Vec<OsString>,
    },
    /// Lists the points at which a test may end it.
    #[cfg(feature = "fault-injection")]
    #[command(hide = true)]
    FaultPoints,
}

/// What the command line asks for, to its end.
pub fn main() -> ExitCode {
    if let Err(error) = forbid_core_dumps() {
        return ended(Err(error));
    }
    let arguments = Arguments::parse();
    match arguments.work {
        Some(Work::FetchPages) => return ended(tail::run().map_err(anyhow::Error::from)),
        Some(Work::RunHook { command }) => {
            return ended(supervisor::run(&command).map_err(anyhow::Error::from));
        }
        #[cfg(feature = "fault-injection")]
        Some(Work::FaultPoints) => {
            print!("{}", crate::fault::list());
            return ExitCode::SUCCESS;
        }
        None => {}
    }
    let loaded = config::load(arguments.config.as_deref(), &environment());
    let config = match loaded {
        Ok(config) => config,
        Err(error) => {
            eprintln!("pclive-agent: {}", crate::error::chain(&error));
            return ExitCode::from(UNUSABLE);
        }
    };
    if arguments.print_config {
        return ended(print(&config));
    }
    if !arguments.check_config
        && let Err(error) = logging::start(&config.log)
    {
        return ended(Err(error).context("cannot start logging"));
    }
    let keeper = match Keeper::load(&config) {
        Ok(keeper) => keeper,
        Err(error) => {
            eprintln!("pclive-agent: {}", crate::error::chain(&error));
            return ExitCode::from(UNUSABLE);
        }
    };
    if arguments.check_config {
        println!("the configuration can be used");
        return ExitCode::SUCCESS;
    }
    ended(run(config, keeper))
}

/// Whatever this program is started for, it may come to hold the memory of containers: no crash may write it to a disk, not
/// even by way of a program in `core_pattern`, which a core limit of 0 does not keep away. Without it, only who may trace
/// every process may look into this one. Programs that it starts are as they would be: execve(2) puts it back.
fn forbid_core_dumps() -> anyhow::Result<()> {
    nix::sys::prctl::set_dumpable(false).context("cannot forbid core dumps of this process")
}

fn ended(done: anyhow::Result<()>) -> ExitCode {
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("pclive-agent: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn environment() -> BTreeMap<String, String> {
    let variables = std::env::vars_os();
    variables
        .filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)))
        .collect()
}

fn print(config: &Config) -> anyhow::Result<()> {
    print!("{}", toml::to_string(config).context("cannot print the configuration")?);
    Ok(())
}

fn run(config: Config, keeper: Option<Arc<Keeper>>) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build();
    let runtime = runtime.context("cannot start the asynchronous runtime")?;
    let done = runtime.block_on(daemon::run(config, keeper));
    // Threads of migrations that would not end must not keep the process.
    runtime.shutdown_background();
    Ok(done?)
}
