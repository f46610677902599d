//! Extended registers: floating point, SSE, AVX and whatever else the CPU saves with XSAVE.
//!
//! The register set is carried raw, with the place of each component in it, because CPUs differ in that.

use super::failure::{CaptureStateError, optional};
use crate::model::state::XstateComponent;
use crate::model::{Pid, Vpid};
use crate::remote::{Answers, Batch, Piece, RemoteError, Ticket};
use crate::sys::{cpuid, ptrace_state};

/// `ARCH_GET_XCOMP_PERM` of arch_prctl(2). Linux 5.16.
const ARCH_GET_XCOMP_PERM: u64 = 0x1022;
/// The kernel writes XCR0 here, in the bytes that the CPU leaves to software.
const XCR0_AT: usize = 464;

/// The register set of a stopped tracee.
pub(super) fn capture(pid: Pid) -> Result<Vec<u8>, CaptureStateError> {
    ptrace_state::xstate(pid).map_err(|source| CaptureStateError::Request {
        pid,
        what: "extended registers",
        source,
    })
}

/// The features that a register set has room for (XCR0); 0 if it is too short to say.
pub(crate) fn features(xstate: &[u8]) -> u64 {
    xstate.get(XCR0_AT..).and_then(|rest| rest.first_chunk()).map_or(0, |word| u64::from_le_bytes(*word))
}

/// Where this CPU keeps each of the features of a register set.
pub(crate) fn layout(xstate: &[u8]) -> Vec<XstateComponent> {
    let features = features(xstate);
    (2..=62u8).filter(|number| features & 1 << number != 0).filter_map(cpuid::xstate_component).collect()
}

/// The call that reads which features the process may use.
#[derive(Debug)]
pub(super) struct PermissionPlan {
    mask: Piece,
    ticket: Ticket,
}

impl PermissionPlan {
    pub(super) fn plan(batch: &mut Batch) -> Result<Self, RemoteError> {
        let mask = batch.reserve(8)?;
        let ticket = batch.call(libc::SYS_arch_prctl, &[ARCH_GET_XCOMP_PERM, mask.address()]);
        Ok(Self { mask, ticket })
    }

    pub(super) fn take(&self, answers: &Answers, vpid: Vpid) -> Result<u64, CaptureStateError> {
        let known = optional(answers, self.ticket, vpid, "permitted CPU features")?;
        Ok(if known.is_some() { answers.u64(self.mask) } else { 0 })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn short_register_set_has_no_features() {
        assert_eq!(features(&[0xff; 470]), 0);
        assert!(layout(&[]).is_empty());
    }
}
