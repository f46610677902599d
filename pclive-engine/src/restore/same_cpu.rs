//! Remote calls on the CPU of the thread that makes them.
//!
//! A task that is woken on another CPU, which sleeps, answers after 60 us; on the caller's own CPU after 5. That counts
//! for processes of thousands of threads. Only for restorers: they die with the agent, so that nobody is left where it
//! was put. Nothing here is needed for a correct copy: what the kernel refuses is left as it was.

use super::failure::{RestoreStateError, request};
use crate::model::Pid;
use crate::sys::sched;

/// The calling thread, for the system calls on CPU masks.
const SELF: Pid = Pid(0);
/// Threads below which it is not worth the system calls.
const WORTH_IT: usize = 8;

/// The calling thread, kept on one CPU until this is dropped, and the restorers' own CPUs.
#[derive(Debug)]
pub(super) struct SameCpu {
    own: Vec<u8>,
    theirs: Vec<u8>,
    one: Vec<u8>,
}

impl SameCpu {
    /// Keeps the calling thread on a CPU that a process of so many threads may use too. `None`: not worth it, or not
    /// possible.
    pub(super) fn engage(process: Pid, threads: usize) -> Option<Self> {
        if threads < WORTH_IT {
            return None;
        }
        let (own, theirs) = (sched::affinity(SELF).ok()?, sched::affinity(process).ok()?);
        let one = first_in_both(&own, &theirs)?;
        sched::set_affinity(SELF, &one).ok()?;
        Some(Self { own, theirs, one })
    }

    /// Brings a stopped thread of the process here.
    pub(super) fn bring(&self, thread: Pid) {
        let _ = sched::set_affinity(thread, &self.one);
    }

    /// Gives a thread back the CPUs that it had.
    pub(super) fn give_back(&self, thread: Pid) -> Result<(), RestoreStateError> {
        sched::set_affinity(thread, &self.theirs).map_err(request(thread, "set the CPU affinity"))
    }
}

impl Drop for SameCpu {
    fn drop(&mut self) {
        if let Err(error) = sched::set_affinity(SELF, &self.own) {
            tracing::warn!(%error, "the migration's thread stays on one CPU");
        }
    }
}

/// A mask of one CPU that is in both.
fn first_in_both(a: &[u8], b: &[u8]) -> Option<Vec<u8>> {
    let both: Vec<u8> = a.iter().zip(b).map(|(a, b)| a & b).collect();
    let at = both.iter().position(|byte| *byte != 0)?;
    let mut one = vec![0; both.len()];
    one[at] = 1 << both[at].trailing_zeros();
    Some(one)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_cpu_that_both_may_use_is_chosen() {
        assert_eq!(first_in_both(&[0b1110, 1], &[0b1100, 1]), Some(vec![0b100, 0]));
        assert_eq!(first_in_both(&[0b0001, 1], &[0b1110, 1]), Some(vec![0, 1]));
        assert_eq!(first_in_both(&[1], &[2]), None);
    }

    #[test]
    fn calling_thread_may_use_all_of_its_cpus_afterwards() {
        let before = sched::affinity(SELF).unwrap();
        let me = Pid(std::process::id().cast_signed());
        assert!(SameCpu::engage(me, 1).is_none());
        let same = SameCpu::engage(me, 100).unwrap();
        let ones: u32 = sched::affinity(SELF).unwrap().iter().map(|byte| byte.count_ones()).sum();
        assert_eq!(ones, 1);
        drop(same);
        assert_eq!(sched::affinity(SELF).unwrap(), before);
    }
}
