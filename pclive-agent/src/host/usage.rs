//! What a migration costs the agent: CPU time and extra memory.
//!
//! Both are the whole process's, from the start of the meter on: with several migrations at once each sees the
//! others' cost too. Kernel: getrusage(2); `VmHWM` of `/proc/self/status`, set back by writing 5 to
//! `/proc/self/clear_refs` (Linux 4.0).

use std::time::Duration;

use nix::sys::resource::{UsageWho, getrusage};
use nix::sys::time::TimeValLike;
use pclive_proto::control::EndUsage;

use super::facts::field_kib;

/// Counts from its start.
#[derive(Debug)]
pub struct UsageMeter {
    cpu: Duration,
    memory: u64,
}

impl UsageMeter {
    /// Starts counting.
    pub fn start() -> Self {
        // Without it the peak of an earlier migration counts; still an upper bound.
        let _ = std::fs::write("/proc/self/clear_refs", "5");
        Self { cpu: cpu_time(), memory: status_bytes("VmRSS:") }
    }

    /// What was used since the start. Units: nanoseconds, bytes.
    pub fn used(&self) -> EndUsage {
        let cpu = cpu_time().saturating_sub(self.cpu);
        EndUsage {
            cpu_ns: u64::try_from(cpu.as_nanos()).unwrap_or(u64::MAX),
            peak_memory_bytes: status_bytes("VmHWM:").saturating_sub(self.memory),
        }
    }
}

fn cpu_time() -> Duration {
    let Ok(usage) = getrusage(UsageWho::RUSAGE_SELF) else { return Duration::ZERO };
    let microseconds = usage.user_time().num_microseconds() + usage.system_time().num_microseconds();
    Duration::from_micros(u64::try_from(microseconds).unwrap_or(0))
}

fn status_bytes(field: &str) -> u64 {
    let text = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    field_kib(&text, field).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_that_was_touched_and_freed_is_in_the_peak() {
        let meter = UsageMeter::start();
        let block = vec![1u8; 32 << 20];
        let sum: u64 = block.iter().map(|byte| u64::from(*byte)).sum();
        drop(block);
        assert_eq!(sum, 32 << 20);
        let used = meter.used();
        assert!(used.peak_memory_bytes >= 30 << 20, "{used:?}");
        assert!(used.cpu_ns > 0);
    }
}
