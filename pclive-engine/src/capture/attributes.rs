//! Attributes of processes and threads that each have a prctl(2) (or a call like it) of their own.

use super::failure::{CaptureStateError, expect, optional, word_or_zero};
use crate::model::state::MemoryPolicy;
use crate::model::{RemoteAddr, Vpid};
use crate::remote::{Answers, Batch, Piece, RemoteError, Ticket};

/// `PR_GET_THP_DISABLE`. Linux 3.15.
const PR_GET_THP_DISABLE: u64 = 42;
/// `PR_GET_MDWE`. Linux 6.3.
const PR_GET_MDWE: u64 = 66;
/// `PR_GET_MEMORY_MERGE`. Linux 6.4.
const PR_GET_MEMORY_MERGE: u64 = 68;
/// `PR_GET_TID_ADDRESS`. Linux 3.5.
const PR_GET_TID_ADDRESS: u64 = 40;
/// `PR_GET_SPECULATION_CTRL`. Linux 4.17.
const PR_GET_SPECULATION_CTRL: u64 = 52;
/// `PR_MCE_KILL_GET`. Linux 2.6.32.
const PR_MCE_KILL_GET: u64 = 34;
/// `ARCH_GET_CPUID` of arch_prctl(2). Linux 4.12.
const ARCH_GET_CPUID: u64 = 0x1011;
/// Asks personality(2) for the present value.
const PERSONALITY_QUERY: u64 = 0xffff_ffff;
/// Bytes of a NUMA node mask: 1,024 nodes.
const NODE_BYTES: usize = 128;
/// Longest `comm`.
const COMM_BYTES: usize = 16;

fn prctl(batch: &mut Batch, option: u64) -> Ticket {
    batch.call(libc::SYS_prctl, &[option])
}

/// A call that writes to memory of `len` bytes, whose address is its second argument.
fn prctl_to(batch: &mut Batch, option: u64, len: usize) -> Result<(Piece, Ticket), RemoteError> {
    let piece = batch.reserve(len)?;
    Ok((piece, batch.call(libc::SYS_prctl, &[option, piece.address()])))
}

/// Calls for the attributes of a process.
#[derive(Debug)]
pub(super) struct ProcessAttributesPlan {
    dumpable: Ticket,
    subreaper: (Piece, Ticket),
    thp_disable: Ticket,
    deny_write_exec: Ticket,
    merge: Ticket,
}

/// Attributes of a process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct ProcessAttributes {
    pub(super) dumpable: i32,
    pub(super) child_subreaper: bool,
    pub(super) thp_disable: u32,
    pub(super) memory_deny_write_exec: u32,
    pub(super) memory_merge: bool,
}

impl ProcessAttributesPlan {
    pub(super) fn plan(batch: &mut Batch) -> Result<Self, RemoteError> {
        Ok(Self {
            dumpable: prctl(batch, libc::PR_GET_DUMPABLE as u64),
            subreaper: prctl_to(batch, libc::PR_GET_CHILD_SUBREAPER as u64, 4)?,
            thp_disable: prctl(batch, PR_GET_THP_DISABLE),
            deny_write_exec: prctl(batch, PR_GET_MDWE),
            merge: prctl(batch, PR_GET_MEMORY_MERGE),
        })
    }

    pub(super) fn take(&self, answers: &Answers, vpid: Vpid) -> Result<ProcessAttributes, CaptureStateError> {
        expect(answers, self.subreaper.1, vpid, "child subreaper flag")?;
        let word = |ticket, what| word_or_zero(answers, ticket, vpid, what);
        Ok(ProcessAttributes {
            dumpable: expect(answers, self.dumpable, vpid, "dumpable flag")? as i32,
            child_subreaper: answers.u32(self.subreaper.0) != 0,
            thp_disable: word(self.thp_disable, "huge page setting")?,
            memory_deny_write_exec: word(self.deny_write_exec, "write-execute policy")?,
            memory_merge: word(self.merge, "memory merging setting")? != 0,
        })
    }
}

/// Calls for the attributes of a thread.
#[derive(Debug)]
pub(super) struct ThreadAttributesPlan {
    comm: (Piece, Ticket),
    tid_address: (Piece, Ticket),
    robust_list: (Piece, Ticket),
    death_signal: (Piece, Ticket),
    slack: Ticket,
    personality: Ticket,
    policy: (Piece, Piece, Ticket),
    speculation: [Ticket; 3],
    tsc: (Piece, Ticket),
    cpuid: Ticket,
    machine_check: Ticket,
}

/// Attributes of a thread.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct ThreadAttributes {
    pub(super) comm: Vec<u8>,
    pub(super) clear_child_tid: RemoteAddr,
    pub(super) robust_list: (RemoteAddr, u64),
    pub(super) parent_death_signal: i32,
    pub(super) timer_slack_ns: u64,
    pub(super) personality: u32,
    pub(super) memory_policy: Option<MemoryPolicy>,
    pub(super) speculation: [u32; 3],
    pub(super) tsc_faults: bool,
    pub(super) cpuid_faults: bool,
    pub(super) machine_check_policy: u32,
}

impl ThreadAttributesPlan {
    pub(super) fn plan(batch: &mut Batch) -> Result<Self, RemoteError> {
        let speculation =
            [0, 1, 2].map(|which| batch.call(libc::SYS_prctl, &[PR_GET_SPECULATION_CTRL, which]));
        Ok(Self {
            comm: prctl_to(batch, libc::PR_GET_NAME as u64, COMM_BYTES)?,
            tid_address: prctl_to(batch, PR_GET_TID_ADDRESS, 8)?,
            robust_list: robust_list(batch)?,
            death_signal: prctl_to(batch, libc::PR_GET_PDEATHSIG as u64, 4)?,
            slack: prctl(batch, libc::PR_GET_TIMERSLACK as u64),
            personality: batch.call(libc::SYS_personality, &[PERSONALITY_QUERY]),
            policy: memory_policy(batch)?,
            speculation,
            tsc: prctl_to(batch, libc::PR_GET_TSC as u64, 4)?,
            cpuid: batch.call(libc::SYS_arch_prctl, &[ARCH_GET_CPUID]),
            machine_check: prctl(batch, PR_MCE_KILL_GET),
        })
    }

    pub(super) fn take(&self, answers: &Answers, vpid: Vpid) -> Result<ThreadAttributes, CaptureStateError> {
        expect(answers, self.comm.1, vpid, "name")?;
        expect(answers, self.tid_address.1, vpid, "clear_child_tid address")?;
        expect(answers, self.robust_list.1, vpid, "robust list")?;
        expect(answers, self.death_signal.1, vpid, "parent death signal")?;
        let mut robust = answers.u64s(self.robust_list.0);
        let mut next = || robust.next().unwrap_or_default();
        let word = |ticket, what| word_or_zero(answers, ticket, vpid, what);
        let [store, branch, flush] = self.speculation;
        let tsc = optional(answers, self.tsc.1, vpid, "time stamp counter setting")?;
        // A CPU that cannot make CPUID fault says that it does not.
        let cpuid = optional(answers, self.cpuid, vpid, "CPUID setting")?;
        Ok(ThreadAttributes {
            comm: answers.bytes(self.comm.0).split(|byte| *byte == 0).next().unwrap_or_default().to_vec(),
            clear_child_tid: RemoteAddr(answers.u64(self.tid_address.0)),
            robust_list: (RemoteAddr(next()), next()),
            parent_death_signal: answers.u32(self.death_signal.0) as i32,
            timer_slack_ns: expect(answers, self.slack, vpid, "timer slack")?,
            personality: expect(answers, self.personality, vpid, "personality")? as u32,
            memory_policy: take_policy(answers, self.policy, vpid)?,
            speculation: [
                word(store, "speculation control")?,
                word(branch, "speculation control")?,
                word(flush, "speculation control")?,
            ],
            tsc_faults: tsc.is_some() && answers.u32(self.tsc.0) == libc::PR_TSC_SIGSEGV as u32,
            cpuid_faults: cpuid == Some(0),
            machine_check_policy: word(self.machine_check, "machine check policy")?,
        })
    }
}

fn robust_list(batch: &mut Batch) -> Result<(Piece, Ticket), RemoteError> {
    let list = batch.reserve(16)?;
    let at = list.address();
    Ok((list, batch.call(libc::SYS_get_robust_list, &[0, at, at + 8])))
}

fn memory_policy(batch: &mut Batch) -> Result<(Piece, Piece, Ticket), RemoteError> {
    let mode = batch.reserve(4)?;
    let nodes = batch.reserve(NODE_BYTES)?;
    // The kernel takes one bit less than it is told.
    let bits = NODE_BYTES as u64 * 8 + 1;
    let ticket = batch.call(libc::SYS_get_mempolicy, &[mode.address(), nodes.address(), bits, 0, 0]);
    Ok((mode, nodes, ticket))
}

fn take_policy(
    answers: &Answers,
    (mode, nodes, ticket): (Piece, Piece, Ticket),
    vpid: Vpid,
) -> Result<Option<MemoryPolicy>, CaptureStateError> {
    const MPOL_DEFAULT: u32 = 0;
    let known = optional(answers, ticket, vpid, "memory policy")?;
    let mode = answers.u32(mode);
    if known.is_none() || mode == MPOL_DEFAULT {
        return Ok(None);
    }
    let nodes = answers.bytes(nodes);
    let used = nodes.iter().rposition(|byte| *byte != 0).map_or(0, |last| last + 1);
    Ok(Some(MemoryPolicy { mode, nodes: nodes[..used].to_vec() }))
}
