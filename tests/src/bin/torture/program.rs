//! Children that execute this program anew: each tortures memory of its own for a while, executes the program once more in
//! its place, and ends.

use std::os::unix::process::CommandExt;
use std::process::{Child, Command};
use std::time::Duration;

use anyhow::{Context, Result, anyhow};

use super::Options;

/// Steps before a program executes itself again, or ends.
pub(crate) const TURNS: u64 = 400;
/// How often it does.
const GENERATIONS: u32 = 2;
/// Pages that one has mapped at most.
const PAGES: usize = 256;
/// Between two steps.
const PAUSE: Duration = Duration::from_micros(100);

/// A child that executes this program.
#[derive(Debug)]
pub(crate) struct Program(Child);

impl Program {
    /// Starts one.
    pub(crate) fn start(seed: u64) -> std::io::Result<Self> {
        command(seed, GENERATIONS).spawn().map(Self)
    }

    /// Whether it has ended well.
    pub(crate) fn look(&mut self) -> Result<bool, String> {
        match self.0.try_wait().map_err(|error| error.to_string())? {
            None => Ok(false),
            Some(status) if status.success() => Ok(true),
            Some(status) => Err(format!("program {}: {status}", self.0.id())),
        }
    }
}

/// What a program does at its end: the next one takes its place, if there is to be one. Every other one is executed by a
/// thread that is not the first, amid those that live still.
pub(crate) fn go_on(options: &Options) -> Result<()> {
    let Some(left) = options.generations.checked_sub(1) else { return Ok(()) };
    let seed = options.seed.wrapping_add(1);
    let execute = move || command(seed, left).exec();
    let error = if left.is_multiple_of(2) {
        execute()
    } else {
        std::thread::spawn(execute).join().map_err(|_| anyhow!("the thread that executes panicked"))?
    };
    Err(error).context("cannot execute the program again")
}

fn command(seed: u64, generations: u32) -> Command {
    let mut command = Command::new("/proc/self/exe");
    let numbers = [
        ("--seed", seed),
        ("--turns", TURNS),
        ("--generations", generations.into()),
        ("--pages", PAGES as u64),
        ("--pause-us", PAUSE.as_micros() as u64),
    ];
    command.args(numbers.iter().flat_map(|(name, number)| [(*name).to_owned(), number.to_string()]));
    // It has no children: nobody would wait for those of one that is gone.
    command.args(["--without", "fork"]);
    command
}
