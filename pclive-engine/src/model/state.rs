//! The small kernel state, captured while the container is stopped.

use serde::{Deserialize, Serialize};

use super::creds::Credentials;
use super::file::{Descriptor, OpenFile};
use super::ids::{RemoteAddr, Vpid};
use super::signal::{AltStack, PendingSignal, SignalAction};
use super::timer::{IntervalTimer, PosixTimer};

/// Everything but memory contents and layout. Processes are in the order of the final layout.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct FinalState {
    /// Live processes (no zombies).
    pub processes: Vec<ProcessState>,
    /// Open file descriptions, each once; descriptors refer to them by id.
    pub files: Vec<OpenFile>,
    /// Highest id handed out in the container's PID namespace so far (`ns_last_pid`), 0 if unknown.
    pub last_vpid: i32,
}

/// State that all threads of a process share.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProcessState {
    /// Id inside the container.
    pub vpid: Vpid,
    /// Addresses and auxiliary vector.
    pub mm: MmState,
    /// Current directory, a path inside the container.
    #[serde(with = "serde_bytes")]
    pub cwd: Vec<u8>,
    /// File mode creation mask.
    pub umask: u32,
    /// `PR_GET_DUMPABLE`.
    pub dumpable: i32,
    /// Stopped by SIGSTOP, SIGTSTP, SIGTTIN or SIGTTOU.
    pub job_stopped: bool,
    /// `PR_GET_CHILD_SUBREAPER`.
    pub child_subreaper: bool,
    /// `PR_GET_THP_DISABLE`: 0 = not disabled, 1 = disabled, 3 = except where advised (Linux 6.18).
    pub thp_disable: u32,
    /// `PR_GET_MDWE`: `PR_MDWE_*` bits (Linux 6.3).
    pub memory_deny_write_exec: u32,
    /// `PR_GET_MEMORY_MERGE`: all memory may be merged by KSM (Linux 6.4).
    pub memory_merge: bool,
    /// What `mlockall(2)` has asked for new mappings: `MCL_FUTURE`, perhaps `MCL_ONFAULT`, or 0.
    pub lock_future: u32,
    /// `/proc/PID/coredump_filter`.
    pub coredump_filter: u32,
    /// `oom_score_adj`.
    pub oom_score_adj: i32,
    /// Resource limits, index = `RLIMIT_*`.
    pub rlimits: Vec<Rlimit>,
    /// Signal actions that differ from the default.
    pub actions: Vec<SignalAction>,
    /// Signals pending for the process as a whole.
    pub pending: Vec<PendingSignal>,
    /// `ITIMER_REAL`, `ITIMER_VIRTUAL`, `ITIMER_PROF`.
    pub interval_timers: [IntervalTimer; 3],
    /// `timer_create(2)` timers.
    pub posix_timers: Vec<PosixTimer>,
    /// Seccomp filters of the threads, each once; threads refer to them by index.
    pub seccomp_filters: Vec<SeccompFilter>,
    /// The components that a thread's `xstate` may have, ascending by number.
    pub xstate_layout: Vec<XstateComponent>,
    /// Feature bits for which the process has asked (`ARCH_GET_XCOMP_PERM`), and those it has by default.
    pub xstate_permission: u64,
    /// Open descriptors.
    pub descriptors: Vec<Descriptor>,
    /// Threads in the order of the layout; the leader first.
    pub threads: Vec<ThreadState>,
}

/// `struct prctl_mm_map` (prctl(2), `PR_SET_MM_MAP`) and the auxiliary vector.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct MmState {
    /// Program text.
    pub start_code: u64,
    /// End of program text.
    pub end_code: u64,
    /// Initialised data.
    pub start_data: u64,
    /// End of initialised data.
    pub end_data: u64,
    /// First address of the heap.
    pub start_brk: u64,
    /// Current end of the heap.
    pub brk: u64,
    /// Bottom of the initial stack.
    pub start_stack: u64,
    /// Command line.
    pub arg_start: u64,
    /// End of the command line.
    pub arg_end: u64,
    /// Environment.
    pub env_start: u64,
    /// End of the environment.
    pub env_end: u64,
    /// `/proc/PID/auxv`, raw.
    #[serde(with = "serde_bytes")]
    pub auxv: Vec<u8>,
}

/// A soft and a hard limit; `u64::MAX` is unlimited.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rlimit {
    /// Enforced limit.
    pub soft: u64,
    /// Ceiling for the soft limit.
    pub hard: u64,
}

/// State of one thread.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ThreadState {
    /// Id inside the container.
    pub vtid: Vpid,
    /// `comm`, at most 15 bytes.
    #[serde(with = "serde_bytes")]
    pub comm: Vec<u8>,
    /// General registers (`struct user_regs_struct`), raw, 216 bytes.
    #[serde(with = "serde_bytes")]
    pub registers: Vec<u8>,
    /// `NT_X86_XSTATE` register set: legacy area and header (576 bytes), then the components that are in use
    /// (`XSTATE_BV`), ascending by number, without gaps.
    #[serde(with = "serde_bytes")]
    pub xstate: Vec<u8>,
    /// Blocked signals.
    pub signal_mask: u64,
    /// Signals pending for this thread.
    pub pending: Vec<PendingSignal>,
    /// Alternate signal stack.
    pub alt_stack: AltStack,
    /// `set_robust_list(2)`: head address and length.
    pub robust_list: (RemoteAddr, u64),
    /// `set_tid_address(2)`.
    pub clear_child_tid: RemoteAddr,
    /// Restartable sequences.
    pub rseq: Option<Rseq>,
    /// Scheduling.
    pub scheduling: Scheduling,
    /// Credentials (they are per thread in Linux).
    pub credentials: Credentials,
    /// `PR_GET_PDEATHSIG`, 0 for none.
    pub parent_death_signal: i32,
    /// `PR_GET_TIMERSLACK` in nanoseconds; 0 for a real-time thread, which has none.
    pub timer_slack_ns: u64,
    /// personality(2).
    pub personality: u32,
    /// `set_mempolicy(2)`; `None` is the default policy.
    pub memory_policy: Option<MemoryPolicy>,
    /// `PR_GET_SPECULATION_CTRL` for store bypass, indirect branch and L1D flush: `PR_SPEC_*` bits; 0 where the
    /// kernel knows nothing of it.
    pub speculation: [u32; 3],
    /// `PR_GET_TSC`: reading the time stamp counter raises SIGSEGV.
    pub tsc_faults: bool,
    /// `ARCH_GET_CPUID`: the CPUID instruction raises SIGSEGV.
    pub cpuid_faults: bool,
    /// `PR_MCE_KILL_GET`: `PR_MCE_KILL_*`.
    pub machine_check_policy: u32,
    /// The thread's filters, the oldest first: indices into [`ProcessState::seccomp_filters`].
    pub seccomp: Vec<u32>,
}

/// A memory policy (set_mempolicy(2)).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MemoryPolicy {
    /// `MPOL_*` with its mode flags.
    pub mode: u32,
    /// NUMA nodes, a bit each, in the machine's byte order.
    #[serde(with = "serde_bytes")]
    pub nodes: Vec<u8>,
}

/// A seccomp filter program.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct SeccompFilter {
    /// `SECCOMP_FILTER_FLAG_LOG` or 0.
    pub flags: u64,
    /// `struct sock_filter` each 8 bytes, at most 4,096 of them.
    #[serde(with = "serde_bytes")]
    pub program: Vec<u8>,
}

/// Place of one component in the standard (not compacted) XSAVE format of a CPU: CPUID leaf 0xd.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct XstateComponent {
    /// Bit number in XCR0, 2 to 62.
    pub number: u8,
    /// First byte.
    pub offset: u32,
    /// Bytes.
    pub size: u32,
}

impl XstateComponent {
    /// Its bytes in a register set of that format; `None` if they are not all there.
    pub fn range(&self, xstate: &[u8]) -> Option<std::ops::Range<usize>> {
        let start = self.offset as usize;
        let end = start.checked_add(self.size as usize)?;
        (end <= xstate.len()).then_some(start..end)
    }
}

/// A registered rseq area (rseq(2)).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rseq {
    /// Address of `struct rseq`.
    pub address: RemoteAddr,
    /// Its registered size in bytes.
    pub size: u32,
    /// Signature before abort handlers.
    pub signature: u32,
}

/// Scheduling attributes (`struct sched_attr`) and CPU affinity.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Scheduling {
    /// `SCHED_*`.
    pub policy: u32,
    /// `SCHED_FLAG_*` (reset-on-fork).
    pub flags: u64,
    /// Nice value, -20 to 19.
    pub nice: i32,
    /// Real-time priority, 0 to 99.
    pub priority: u32,
    /// Allowed CPUs, a bit each, as `sched_getaffinity(2)` returns them; empty: every CPU that the container
    /// may use.
    #[serde(with = "serde_bytes")]
    pub affinity: Vec<u8>,
    /// `ioprio_get(2)`: class and level; 0 for none of its own.
    pub io_priority: u32,
}
