//! Attributes of processes and threads that each have a prctl(2) (or a call like it) of their own.

use super::failure::{Checks, RestoreStateError};
use crate::model::Vpid;
use crate::model::state::{MemoryPolicy, ProcessState, Rseq, ThreadState};
use crate::remote::{Answers, Batch, RemoteTask, Ticket};

/// `PR_SET_THP_DISABLE`. Linux 3.15.
const PR_SET_THP_DISABLE: u64 = 41;
/// `PR_THP_DISABLE_EXCEPT_ADVISED`, as flags and as part of what the getter returns. Linux 6.18.
const THP_EXCEPT_ADVISED: u64 = 2;
/// `PR_SET_MEMORY_MERGE`. Linux 6.4.
const PR_SET_MEMORY_MERGE: u64 = 67;
/// `PR_GET_SPECULATION_CTRL`, `PR_SET_SPECULATION_CTRL`. Linux 4.17.
const PR_GET_SPECULATION_CTRL: u64 = 52;
const PR_SET_SPECULATION_CTRL: u64 = 53;
/// `PR_SPEC_DISABLE | PR_SPEC_FORCE_DISABLE | PR_SPEC_DISABLE_NOEXEC`: the program asked for a mitigation.
const MITIGATED: u32 = 4 | 8 | 16;
/// `PR_MCE_KILL` and `PR_MCE_KILL_SET`.
const PR_MCE_KILL: u64 = 33;
const PR_MCE_KILL_SET: u64 = 1;
/// `PR_MCE_KILL_DEFAULT`.
const MCE_DEFAULT: u32 = 2;
/// `ARCH_SET_CPUID` of arch_prctl(2). Linux 4.12.
const ARCH_SET_CPUID: u64 = 0x1012;
/// `RSEQ_FLAG_UNREGISTER`.
const RSEQ_UNREGISTER: u64 = 1;
/// Largest NUMA node mask: 1,024 nodes.
const MAX_NODE_BYTES: usize = 128;
/// Longest name of a task, without its end.
const MAX_COMM_BYTES: usize = 15;

/// Adds the calls for the attributes of a process that may be set before its memory and files are in place.
pub(super) fn set_process(
    batch: &mut Batch,
    checks: &mut Checks,
    process: &ProcessState,
) -> Result<(), RestoreStateError> {
    let mut prctl = |arguments: &[u64], what| checks.add(batch.call(libc::SYS_prctl, arguments), what);
    let subreaper = u64::from(process.child_subreaper);
    prctl(&[libc::PR_SET_CHILD_SUBREAPER as u64, subreaper], "set the child subreaper flag");
    let thp = u64::from(process.thp_disable);
    prctl(&[PR_SET_THP_DISABLE, thp & 1, thp & THP_EXCEPT_ADVISED, 0, 0], "set the huge page setting");
    if process.memory_merge {
        prctl(&[PR_SET_MEMORY_MERGE, 1, 0, 0, 0], "let the memory be merged");
    }
    checks.add(batch.call(libc::SYS_umask, &[u64::from(process.umask & 0o777)]), "set the umask");
    let mut path = process.cwd.clone();
    path.push(0);
    let path = batch.place(&path)?;
    checks.add(batch.call(libc::SYS_chdir, &[path.address()]), "enter the current directory");
    Ok(())
}

/// Adds the calls for the attributes of a thread that do not depend on its credentials.
pub(super) fn set_thread(
    batch: &mut Batch,
    checks: &mut Checks,
    thread: &ThreadState,
) -> Result<(), RestoreStateError> {
    set_comm(batch, checks, thread)?;
    let tid_address = thread.clear_child_tid.0;
    checks.add(batch.call(libc::SYS_set_tid_address, &[tid_address]), "set the clear_child_tid address");
    let (head, len) = thread.robust_list;
    if head.0 != 0 {
        checks.add(batch.call(libc::SYS_set_robust_list, &[head.0, len]), "set the robust list");
    }
    let personality = batch.call(libc::SYS_personality, &[u64::from(thread.personality)]);
    checks.add(personality, "set the personality");
    if thread.timer_slack_ns != 0 {
        let slack = [libc::PR_SET_TIMERSLACK as u64, thread.timer_slack_ns];
        checks.add(batch.call(libc::SYS_prctl, &slack), "set the timer slack");
    }
    if let Some(policy) = &thread.memory_policy {
        set_memory_policy(batch, checks, thread.vtid, policy)?;
    }
    if thread.machine_check_policy != MCE_DEFAULT {
        let policy = [PR_MCE_KILL, PR_MCE_KILL_SET, u64::from(thread.machine_check_policy), 0, 0];
        checks.add(batch.call(libc::SYS_prctl, &policy), "set the machine check policy");
    }
    if thread.tsc_faults {
        let fault = [libc::PR_SET_TSC as u64, libc::PR_TSC_SIGSEGV as u64];
        checks.add(batch.call(libc::SYS_prctl, &fault), "make the time stamp counter fault");
    }
    if thread.cpuid_faults {
        checks
            .add(batch.call(libc::SYS_arch_prctl, &[ARCH_SET_CPUID, 0]), "make the CPUID instruction fault");
    }
    Ok(())
}

fn set_comm(batch: &mut Batch, checks: &mut Checks, thread: &ThreadState) -> Result<(), RestoreStateError> {
    if thread.comm.len() > MAX_COMM_BYTES || thread.comm.contains(&0) {
        let what = format!("a name of {} bytes", thread.comm.len());
        return Err(RestoreStateError::Invalid { vpid: thread.vtid, what });
    }
    let mut comm = thread.comm.clone();
    comm.push(0);
    let comm = batch.place(&comm)?;
    checks.add(batch.call(libc::SYS_prctl, &[libc::PR_SET_NAME as u64, comm.address()]), "set the name");
    Ok(())
}

fn set_memory_policy(
    batch: &mut Batch,
    checks: &mut Checks,
    vpid: Vpid,
    policy: &MemoryPolicy,
) -> Result<(), RestoreStateError> {
    if policy.nodes.len() > MAX_NODE_BYTES {
        let what = format!("a node mask of {} bytes", policy.nodes.len());
        return Err(RestoreStateError::Invalid { vpid, what });
    }
    let mut nodes = policy.nodes.clone();
    nodes.resize(MAX_NODE_BYTES, 0);
    let nodes = batch.place(&nodes)?;
    // The kernel takes one bit less than it is told.
    let arguments = [u64::from(policy.mode), nodes.address(), MAX_NODE_BYTES as u64 * 8 + 1];
    checks.add(batch.call(libc::SYS_set_mempolicy, &arguments), "set the NUMA memory policy");
    Ok(())
}

/// Adds the calls that turn the rseq registration that the thread has into the one that it should have.
pub(super) fn set_rseq(batch: &mut Batch, checks: &mut Checks, present: Option<Rseq>, wanted: Option<Rseq>) {
    if present == wanted {
        return;
    }
    let mut register = |area: Rseq, flags: u64, what| {
        let arguments = [area.address.0, u64::from(area.size), flags, u64::from(area.signature)];
        checks.add(batch.call(libc::SYS_rseq, &arguments), what);
    };
    if let Some(area) = present {
        register(area, RSEQ_UNREGISTER, "unregister the rseq area");
    }
    if let Some(area) = wanted {
        register(area, 0, "register the rseq area");
    }
}

/// Calls that mitigate speculation where the program has asked for it.
#[derive(Debug)]
pub(super) struct Speculation(Vec<(Ticket, Ticket)>);

impl Speculation {
    pub(super) fn set(batch: &mut Batch, thread: &ThreadState) -> Self {
        let mut calls = Vec::new();
        for (which, control) in (0..).zip(thread.speculation).filter(|(_, control)| control & MITIGATED != 0)
        {
            let wanted = u64::from(control & MITIGATED);
            let set = batch.call(libc::SYS_prctl, &[PR_SET_SPECULATION_CTRL, which, wanted, 0, 0]);
            let get = batch.call(libc::SYS_prctl, &[PR_GET_SPECULATION_CTRL, which, 0, 0, 0]);
            calls.push((set, get));
        }
        Self(calls)
    }

    /// A mitigation that cannot be set is in order if it is in force anyway, or if the CPU does not need it (0).
    pub(super) fn take(&self, answers: &Answers, task: &dyn RemoteTask) -> Result<(), RestoreStateError> {
        for (set, get) in &self.0 {
            let Err(source) = answers.result(*set) else { continue };
            let state = answers.result(*get).unwrap_or(u64::MAX) as u32;
            if state != 0 && state & MITIGATED == 0 {
                let what = "set the speculation control".into();
                return Err(RestoreStateError::Call { vpid: task.vpid(), what, source });
            }
        }
        Ok(())
    }
}
