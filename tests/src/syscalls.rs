//! The system calls of an agent, counted by the kernel's tracer while a container stands still.
//!
//! An instance of the tracer (tracefs) records every call of the agent's threads, and of those that they start: nothing
//! is stopped for that, as strace(1) would. Calls that wait are left out, because how often somebody looks depends on
//! how fast the machine is.

use std::collections::BTreeMap;
use std::fmt::{self, Display};
use std::fs;
use std::path::PathBuf;

use anyhow::{Context, Result, ensure};
use syscalls::Sysno;

use crate::host::Host;

/// Where the tracer is.
const TRACING: &str = "/sys/kernel/tracing";
/// Where every instance of it has a directory.
pub(crate) const INSTANCES: &str = "/sys/kernel/tracing/instances";
/// What an instance may record on all CPUs together: some hundred thousand calls.
const BUFFER_KIB: usize = 32 << 10;
/// Calls that wait for others, or wake them.
const WAITING: [Sysno; 10] = [
    Sysno::futex,
    Sysno::epoll_wait,
    Sysno::epoll_pwait,
    Sysno::poll,
    Sysno::ppoll,
    Sysno::nanosleep,
    Sysno::clock_nanosleep,
    Sysno::sched_yield,
    Sysno::wait4,
    Sysno::waitid,
];

/// The calls of one agent are being recorded; ends when dropped.
#[derive(Debug)]
pub struct Recorder {
    instance: PathBuf,
}

impl Recorder {
    /// Whether the kernel can record system calls; says what is missing when not. On a machine without the tracer's file
    /// system that is mounted on the host alone.
    pub fn available(host: &Host) -> Result<()> {
        let tracing = Self::tracing(host);
        if !tracing.join("instances").exists() {
            host.node().run(&["mount", "-t", "tracefs", "nodev", TRACING])?;
        }
        let event = tracing.join("events/raw_syscalls/sys_enter");
        ensure!(event.exists(), "the kernel cannot trace system calls (CONFIG_FTRACE_SYSCALLS)");
        Ok(())
    }

    /// The tracer, as the host sees it.
    fn tracing(host: &Host) -> PathBuf {
        PathBuf::from(format!("/proc/{}/root{TRACING}", host.node().pid()))
    }

    /// Gets ready to record the calls of the host's agent.
    ///
    /// # Errors
    /// When no agent runs there, or the tracer cannot be set up; [`Self::available`] tells whether it is there at all.
    pub fn prepare(host: &Host) -> Result<Self> {
        let threads = fs::read_dir(format!("/proc/{}/task", host.agent_pid()?))?;
        let threads: Vec<String> =
            threads.flatten().map(|thread| thread.file_name().to_string_lossy().into_owned()).collect();
        let recorder = Self { instance: Self::tracing(host).join("instances").join(host.trace_name()) };
        fs::create_dir(&recorder.instance).context("cannot make an instance of the tracer")?;
        recorder.write("tracing_on", "0")?;
        let cpus = std::thread::available_parallelism().map_or(1, usize::from);
        recorder.write("buffer_size_kb", &BUFFER_KIB.div_ceil(cpus).to_string())?;
        recorder.write("options/event-fork", "1")?;
        recorder.write("set_event_pid", &threads.join(" "))?;
        recorder.write("events/raw_syscalls/sys_enter/enable", "1")?;
        Ok(recorder)
    }

    /// Records from now on.
    ///
    /// # Errors
    /// When the tracer cannot be switched on.
    pub fn start(&self) -> Result<()> {
        self.write("tracing_on", "1")
    }

    /// Records no more.
    ///
    /// # Errors
    /// When the tracer cannot be switched off.
    pub fn stop(&self) -> Result<()> {
        self.write("tracing_on", "0")
    }

    /// What was recorded until [`Self::stop`].
    ///
    /// # Errors
    /// When it was nothing, or more than the kernel has kept, or cannot be read.
    pub fn calls(&self) -> Result<Calls> {
        for cpu in fs::read_dir(self.instance.join("per_cpu"))? {
            let stats = fs::read_to_string(cpu?.path().join("stats"))?;
            let mut lost =
                stats.lines().filter(|line| line.starts_with("overrun:") || line.starts_with("dropped"));
            ensure!(lost.all(|line| line.ends_with(": 0")), "calls were lost: {stats}");
        }
        let text = fs::read_to_string(self.instance.join("trace")).context("cannot read the trace")?;
        let mut calls = BTreeMap::new();
        text.lines().filter_map(call).for_each(|call| *calls.entry(call).or_default() += 1);
        ensure!(!calls.is_empty(), "no call was recorded: the agent's threads have other ids for the tracer");
        Ok(Calls(calls))
    }

    fn write(&self, file: &str, text: &str) -> Result<()> {
        let path = self.instance.join(file);
        fs::write(&path, text).with_context(|| format!("cannot write {text:?} to {}", path.display()))
    }
}

impl Drop for Recorder {
    fn drop(&mut self) {
        let _ = fs::remove_dir(&self.instance);
    }
}

/// How often each call was made. ptrace(2) counts apart for each request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Calls(BTreeMap<String, u64>);

impl Calls {
    /// All of them.
    pub fn total(&self) -> u64 {
        self.0.values().sum()
    }

    /// Those of this name.
    pub fn of(&self, name: &str) -> u64 {
        self.0.get(name).copied().unwrap_or(0)
    }

    /// Those with which a tracer lets a task run on: PTRACE_CONT, PTRACE_SYSCALL and PTRACE_DETACH.
    pub fn stops(&self) -> u64 {
        ["ptrace 7", "ptrace 18", "ptrace 11"].iter().filter_map(|call| self.0.get(*call)).sum()
    }
}

impl Display for Calls {
    /// The most frequent ones first.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut calls: Vec<_> = self.0.iter().collect();
        calls.sort_by_key(|(_, count)| std::cmp::Reverse(**count));
        calls.iter().try_for_each(|(call, count)| write!(f, "{call} {count}, "))
    }
}

/// The call that a line of the trace tells of: `... sys_enter: NR 101 (4207, 1f, 0, ...)`, arguments in hexadecimal.
fn call(line: &str) -> Option<String> {
    let (number, arguments) = line.split_once("sys_enter: NR ")?.1.split_once(" (")?;
    let name = Sysno::new(number.parse().ok()?)?;
    match name {
        waiting if WAITING.contains(&waiting) => None,
        Sysno::ptrace => Some(format!("ptrace {}", arguments.split(',').next()?)),
        other => Some(other.name().into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn calls_are_told_from_a_trace() {
        let line = |call| format!("  pclive-agent-4711    [001] ..... 12345.678901: sys_enter: NR {call}");
        assert_eq!(call(&line("101 (4207, 1f, 0, 0, 7f00, 0)")).as_deref(), Some("ptrace 4207"));
        assert_eq!(call(&line("257 (ffffff9c, 7f0, 0, 0, 0, 0)")).as_deref(), Some("openat"));
        assert_eq!(call(&line("202 (7f0, 0, 0, 0, 0, 0)")), None);
        assert_eq!(call("# tracer: nop"), None);
    }
}
