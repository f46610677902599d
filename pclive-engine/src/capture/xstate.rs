//! Extended registers: floating point, SSE, AVX and whatever else the CPU saves with XSAVE.
//!
//! The components are carried one after the other, with the size of each, because CPUs differ in where they have them.

use super::failure::{CaptureStateError, optional};
use crate::model::state::XstateComponent;
use crate::model::{Pid, Vpid};
use crate::remote::{Answers, Batch, Piece, RemoteError, Ticket};
use crate::sys::{cpuid, ptrace_state};

/// `ARCH_GET_XCOMP_PERM` of arch_prctl(2). Linux 5.16.
const ARCH_GET_XCOMP_PERM: u64 = 0x1022;
/// The kernel writes XCR0 here, in the bytes that the CPU leaves to software.
const XCR0_AT: usize = 464;
/// Which features are not in their initial state (`XSTATE_BV`).
const IN_USE_AT: usize = 512;
/// End of the legacy area and the header, the same on every CPU.
pub(crate) const HEADER_END: usize = 576;

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
    word(xstate, XCR0_AT)
}

/// The features that are not in their initial state; 0 if it is too short to say.
pub(crate) fn in_use(xstate: &[u8]) -> u64 {
    word(xstate, IN_USE_AT)
}

fn word(xstate: &[u8], at: usize) -> u64 {
    xstate.get(at..).and_then(|rest| rest.first_chunk()).map_or(0, |word| u64::from_le_bytes(*word))
}

/// A register set without the components that are in their initial state, and without gaps: what a thousand threads have
/// in use is a tenth of what their register sets take. `layout` is that of this CPU, ascending by number.
pub(super) fn pack(xstate: &[u8], layout: &[XstateComponent]) -> Vec<u8> {
    let in_use = in_use(xstate);
    let mut packed = xstate.get(..HEADER_END).unwrap_or(xstate).to_vec();
    for part in layout.iter().filter(|part| in_use & 1 << part.number != 0) {
        let bytes = part.range(xstate).and_then(|range| xstate.get(range));
        packed.extend_from_slice(bytes.unwrap_or_default());
    }
    packed
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
        assert!(pack(&[], &[]).is_empty());
    }

    #[test]
    fn components_in_use_are_packed_without_gaps() {
        let mut set = vec![0; 700];
        set[IN_USE_AT] = 0b1000_0100;
        set[600..608].fill(2);
        set[640..648].fill(3);
        set[680..688].fill(7);
        let part = |number, offset| XstateComponent { number, offset, size: 8 };
        let packed = pack(&set, &[part(2, 600), part(3, 640), part(7, 680)]);
        assert_eq!(packed[..HEADER_END], set[..HEADER_END]);
        assert_eq!(packed[HEADER_END..], [2, 2, 2, 2, 2, 2, 2, 2, 7, 7, 7, 7, 7, 7, 7, 7]);
    }
}
