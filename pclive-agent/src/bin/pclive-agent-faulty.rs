//! The daemon with its feature `fault-injection`, for tests only: it can be made to end, stop or hold at named points.

#![forbid(unsafe_code)]

use std::process::ExitCode;

/// As in the one that is delivered.
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

fn main() -> ExitCode {
    pclive_agent::command_line::main()
}
