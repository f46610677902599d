//! Extended registers: from the layout of the source's CPU to that of this one.
//!
//! A program looks once for what its CPU can do. So a host that lacks any feature that the source had switched on
//! is refused, also if the registers are empty at the moment.

use super::failure::{Checks, RestoreStateError};
use crate::capture::xstate::{HEADER_END, features, in_use, layout};
use crate::model::state::XstateComponent;
use crate::model::{Pid, Vpid};
use crate::remote::Batch;
use crate::sys::ptrace_state;

/// `ARCH_REQ_XCOMP_PERM` of arch_prctl(2). Linux 5.16.
const ARCH_REQ_XCOMP_PERM: u64 = 0x1023;
/// Features that a process has to ask for: AMX tile data.
const ON_REQUEST: [u64; 1] = [18];
/// Bytes of the legacy area that belong to software: the kernel writes them itself.
const SOFTWARE_BYTES: std::ops::Range<usize> = 464..512;

/// Adds the calls that ask for the features that the source's process had asked for.
pub(super) fn ask_for_permissions(batch: &mut Batch, checks: &mut Checks, permission: u64) {
    for feature in ON_REQUEST.into_iter().filter(|feature| permission & 1 << feature != 0) {
        let ask = batch.call(libc::SYS_arch_prctl, &[ARCH_REQ_XCOMP_PERM, feature]);
        checks.add(ask, "get the permission to use AMX tile data");
    }
}

/// The register set that every thread of a process has here.
#[derive(Debug)]
pub struct RegisterSet {
    present: Vec<u8>,
    layout: Vec<XstateComponent>,
}

impl RegisterSet {
    /// Reads it from a stopped tracee. Asking the CPU for its layout costs a trap into the hypervisor a component: once
    /// is enough for all threads of a process.
    pub fn of(pid: Pid) -> Result<Self, RestoreStateError> {
        let read = |source| RestoreStateError::Request { pid, what: "read the extended registers", source };
        let present = ptrace_state::xstate(pid).map_err(read)?;
        let layout = layout(&present);
        Ok(Self { present, layout })
    }
}

/// Sets the extended registers of a stopped tracee, a thread of the process whose register set is `here`.
pub(super) fn restore(
    pid: Pid,
    vpid: Vpid,
    wanted: &[u8],
    source: &[XstateComponent],
    here: &RegisterSet,
) -> Result<(), RestoreStateError> {
    let set = convert(vpid, wanted, source, here)?;
    ptrace_state::set_xstate(pid, &set).map_err(|source| RestoreStateError::Request {
        pid,
        what: "set the extended registers",
        source,
    })
}

/// `wanted`, packed, in the layout of this CPU. `from` has the sizes of the packed components.
fn convert(
    vpid: Vpid,
    wanted: &[u8],
    from: &[XstateComponent],
    here: &RegisterSet,
) -> Result<Vec<u8>, RestoreStateError> {
    let invalid = |what: String| RestoreStateError::Invalid { vpid, what };
    let RegisterSet { present, layout } = here;
    if wanted.len() < HEADER_END || present.len() < HEADER_END {
        return Err(invalid(format!("{} bytes of extended registers", wanted.len())));
    }
    let missing = (features(wanted) | in_use(wanted)) & !features(present);
    if missing != 0 {
        let what = format!("CPU features that this host does not have: {}", names(missing));
        return Err(RestoreStateError::Unfit { vpid, what });
    }
    let (header, mut rest) = wanted.split_at(HEADER_END);
    let mut set = vec![0; present.len()];
    set[..HEADER_END].copy_from_slice(header);
    set[SOFTWARE_BYTES].copy_from_slice(&present[SOFTWARE_BYTES]);
    for number in (2..=62u8).filter(|number| in_use(wanted) & 1 << number != 0) {
        let place = |layout: &[XstateComponent]| layout.iter().find(|part| part.number == number).copied();
        let (Some(from), Some(to)) = (place(from), place(layout)) else {
            return Err(invalid(format!("extended registers of {} without their place", name(number))));
        };
        let (Some((bytes, later)), Some(room)) = (rest.split_at_checked(from.size as usize), to.range(&set))
        else {
            return Err(invalid(format!("extended registers of {} out of bounds", name(number))));
        };
        if bytes.len() != room.len() {
            let what =
                format!("{} registers of {} bytes; here they have {}", name(number), bytes.len(), room.len());
            return Err(RestoreStateError::Unfit { vpid, what });
        }
        set[room].copy_from_slice(bytes);
        rest = later;
    }
    if rest.is_empty() {
        Ok(set)
    } else {
        Err(invalid(format!("{} bytes of extended registers too many", rest.len())))
    }
}

fn names(features: u64) -> String {
    let names: Vec<&str> = (0..=63u8).filter(|number| features & 1 << number != 0).map(name).collect();
    names.join(", ")
}

fn name(number: u8) -> &'static str {
    match number {
        0 => "x87",
        1 => "SSE",
        2 => "AVX",
        3 | 4 => "MPX",
        5..=7 => "AVX-512",
        9 => "PKRU",
        17 | 18 => "AMX",
        19 => "APX",
        _ => "an unknown feature",
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// A register set with the given features, of which some are in use.
    fn register_set(features: u64, in_use: u64, bytes: usize) -> Vec<u8> {
        let mut set = vec![0; bytes];
        set[464..472].copy_from_slice(&features.to_le_bytes());
        set[512..520].copy_from_slice(&in_use.to_le_bytes());
        set
    }

    fn here(present: Vec<u8>, layout: &[XstateComponent]) -> RegisterSet {
        RegisterSet { present, layout: layout.to_vec() }
    }

    const PKRU: XstateComponent = XstateComponent { number: 9, offset: 2688, size: 8 };
    const AVX: XstateComponent = XstateComponent { number: 2, offset: 576, size: 256 };

    #[test]
    fn components_move_to_where_this_cpu_has_them() {
        let mut wanted = register_set(0x207, 0x207, 840);
        wanted[576..832].fill(7);
        wanted[832..840].fill(9);
        let here = here(register_set(0x207, 3, 2696), &[AVX, PKRU]);
        let set = convert(Vpid(1), &wanted, &[AVX, PKRU], &here).unwrap();
        assert_eq!(set.len(), 2696);
        assert_eq!(set[576..832], [7; 256]);
        assert_eq!(set[2688..2696], [9; 8]);
        assert_eq!(in_use(&set), 0x207);
    }

    #[test]
    fn host_without_a_feature_is_refused_by_its_name() {
        let wanted = register_set(0xe7, 3, 2688);
        let here = here(register_set(7, 3, 832), &[AVX]);
        let error = convert(Vpid(7), &wanted, &[AVX], &here).unwrap_err();
        assert!(error.to_string().contains("AVX-512"), "{error}");
    }

    #[test]
    fn components_that_are_too_short_or_too_long_are_refused() {
        let here = here(register_set(7, 3, 832), &[AVX]);
        for bytes in [600, 833] {
            let error = convert(Vpid(1), &register_set(7, 7, bytes), &[AVX], &here).unwrap_err();
            assert!(matches!(error, RestoreStateError::Invalid { .. }), "{error}");
        }
    }

    proptest! {
        #[test]
        fn any_register_set_is_converted_or_refused(
            wanted in proptest::collection::vec(any::<u8>(), 0..900),
            number in 0u8..64, offset in any::<u32>(), size in any::<u32>(),
        ) {
            let here = here(register_set(u64::MAX, 0, 832), &[AVX]);
            let from = [XstateComponent { number, offset, size }];
            let _ = convert(Vpid(1), &wanted, &from, &here);
        }
    }
}
