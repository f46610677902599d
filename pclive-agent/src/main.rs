//! The daemon that is delivered.

#![forbid(unsafe_code)]

use std::process::ExitCode;

/// Buffers of pages come and go by the gigabyte. glibc gives each back to the kernel and faults it in again, which
/// costs a fifth of the CPU time of a round; jemalloc keeps them for ten seconds.
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

fn main() -> ExitCode {
    pclive_agent::command_line::main()
}
