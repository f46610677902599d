//! Where a run was made.

use pclive_tests::command::{output, workspace_binary};
use serde::{Deserialize, Serialize};

/// The machine, and the versions of what runs on it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Machine {
    /// The CPU's name.
    pub(crate) cpu: String,
    /// CPUs that may be used.
    pub(crate) cpus: usize,
    /// Memory, MiB.
    pub(crate) memory_mib: u64,
    /// Of the kernel.
    pub(crate) kernel: String,
    /// First lines of what programs say of themselves.
    pub(crate) versions: Vec<String>,
}

impl Machine {
    /// Memory of this one that is free, or would be if it were needed; bytes.
    pub(crate) fn available_bytes() -> u64 {
        kib(&read("/proc/meminfo"), "MemAvailable:").saturating_mul(1024)
    }

    /// This one. What cannot be told is empty or zero.
    pub(crate) fn this() -> Self {
        Self {
            cpu: field(&read("/proc/cpuinfo"), "model name"),
            cpus: std::thread::available_parallelism().map_or(0, usize::from),
            memory_mib: kib(&read("/proc/meminfo"), "MemTotal:") / 1024,
            kernel: read("/proc/sys/kernel/osrelease").trim().to_owned(),
            versions: versions(),
        }
    }
}

fn versions() -> Vec<String> {
    let own = workspace_binary("pclivectl").map(|path| path.display().to_string());
    let programs = own.into_iter().chain(["runc".to_owned(), "redis-server".to_owned()]);
    let version = |program: String| output(std::process::Command::new(program).arg("--version")).ok();
    programs.filter_map(version).filter_map(|said| said.lines().next().map(str::to_owned)).collect()
}

fn read(path: &str) -> String {
    std::fs::read_to_string(path).unwrap_or_default()
}

/// The number behind a name in `/proc/meminfo`; 0 when it is not there.
fn kib(memory: &str, name: &str) -> u64 {
    let number =
        memory.lines().find_map(|line| line.strip_prefix(name)?.split_whitespace().next()?.parse().ok());
    number.unwrap_or_default()
}

/// The text behind the first `name : `.
fn field(text: &str, name: &str) -> String {
    let found = text.lines().find_map(|line| line.strip_prefix(name)?.split_once(':'));
    found.map(|(_, value)| value.trim().to_owned()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn field_is_the_first_of_its_name() {
        let text = "processor\t: 0\nmodel name\t: A: 3\nmodel name\t: B\n";
        assert_eq!(field(text, "model name"), "A: 3");
        assert_eq!(field(text, "flags"), "");
    }

    #[test]
    fn memory_is_found_by_its_name() {
        let text = "MemTotal:       24683672 kB\nMemAvailable:   24000000 kB\n";
        assert_eq!(
            [kib(text, "MemTotal:"), kib(text, "MemAvailable:"), kib(text, "No:")],
            [24_683_672, 24_000_000, 0]
        );
    }

    #[test]
    fn this_machine_has_a_cpu_and_memory() {
        let machine = Machine::this();
        assert!(machine.cpus > 0 && machine.memory_mib > 0 && !machine.kernel.is_empty(), "{machine:?}");
    }
}
