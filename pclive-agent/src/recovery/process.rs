//! Processes that are not mistaken for others, and whether one has outlived its tracer.
//!
//! Kernel: `/proc/PID/{stat,status}`, `/proc/sys/kernel/random/boot_id`.

use std::time::{Duration, Instant};

use pclive_engine::proc::{stat, status};

use crate::journal::Process;

/// `PF_EXITING` (linux/sched.h): on its way out.
const EXITING: u32 = 0x4;
const SIGKILL: u64 = 1 << 8;
/// How long a dying agent may take to take its tasks along.
const PATIENCE: Duration = Duration::from_secs(10);
const PAUSE: Duration = Duration::from_millis(20);

/// The boot of this host; empty when the kernel does not tell.
pub(crate) fn boot_id() -> String {
    let text = std::fs::read_to_string("/proc/sys/kernel/random/boot_id");
    text.unwrap_or_default().trim().to_owned()
}

/// What tells a process from others that get its id later; `None` once it has ended. One that has lost its first thread
/// lives on with the others, and while one of those executes a program nobody may seem to be there.
pub(crate) fn identify(pid: i32) -> Option<Process> {
    const LOOKS: usize = 100;
    for _ in 0..LOOKS {
        let stat = stat::parse(&std::fs::read(format!("/proc/{pid}/stat")).ok()?).ok()?;
        match (stat.state, stat.threads) {
            (b'Z' | b'X', 0) => {}
            (b'Z' | b'X', 1) => return None,
            _ => return Some(Process { pid, start_time: stat.start_time }),
        }
    }
    None
}

/// Whether this very process is there.
pub(crate) fn is_there(process: Process) -> bool {
    identify(process.pid) == Some(process)
}

/// Whether a process has outlived the agent that traced it. Waits for one that is still dying with it: two looks
/// must find it alive and nobody's.
pub(crate) fn outlived_tracer(process: Process) -> bool {
    let deadline = Instant::now() + PATIENCE;
    let mut free = 0;
    while is_there(process) {
        free = if is_free(process.pid) { free + 1 } else { 0 };
        if free == 2 {
            return true;
        }
        if Instant::now() >= deadline {
            // Traced by somebody: not let go by us.
            return false;
        }
        std::thread::sleep(PAUSE);
    }
    false
}

/// No tracer, no deadly signal, not on its way out.
fn is_free(pid: i32) -> bool {
    let read = |name: &str| std::fs::read(format!("/proc/{pid}/{name}")).ok();
    let stat = read("stat").and_then(|text| stat::parse(&text).ok());
    let status = read("status").and_then(|text| status::parse(&text).ok());
    let (Some(stat), Some(status)) = (stat, status) else { return false };
    stat.flags & EXITING == 0 && status.tracer == 0 && (status.pending | status.shared_pending) & SIGKILL == 0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_is_itself_and_no_other_with_its_id() {
        let own = identify(i32::try_from(std::process::id()).unwrap()).unwrap();
        assert!(is_there(own) && outlived_tracer(own));
        assert!(!is_there(Process { start_time: own.start_time + 1, ..own }));
        assert!(!boot_id().is_empty());
    }

    #[test]
    fn one_that_has_lost_its_first_thread_is_there() {
        const HEADLESS: &str = "import ctypes, threading, time; \
            threading.Thread(target=time.sleep, args=(600,)).start(); ctypes.CDLL(None).syscall(60, 0)";
        let mut child = std::process::Command::new("python3").args(["-c", HEADLESS]).spawn().unwrap();
        let process = identify(i32::try_from(child.id()).unwrap()).unwrap();
        let deadline = Instant::now() + PATIENCE;
        let path = format!("/proc/{}/stat", process.pid);
        while stat::parse(&std::fs::read(&path).unwrap()).unwrap().state != b'Z' {
            assert!(Instant::now() < deadline, "its first thread lives on");
            std::thread::sleep(PAUSE);
        }
        assert!(is_there(process));
        child.kill().unwrap();
        while is_there(process) {
            assert!(Instant::now() < deadline, "it lives on");
            std::thread::sleep(PAUSE);
        }
        child.wait().unwrap();
    }

    #[test]
    fn one_that_ended_is_not_there_even_before_it_is_reaped() {
        let mut child = std::process::Command::new("/bin/sleep").arg("60").spawn().unwrap();
        let process = identify(i32::try_from(child.id()).unwrap()).unwrap();
        child.kill().unwrap();
        assert!(!outlived_tracer(process));
        child.wait().unwrap();
        assert!(!is_there(process));
    }
}
