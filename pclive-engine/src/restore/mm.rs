//! What the kernel knows of an address space beside its mappings.
//!
//! Kernel: `PR_SET_MM_MAP` (Linux 3.18), which needs no capability as long as the executable stays as it is.

use super::failure::{Checks, RestoreStateError};
use crate::model::Vpid;
use crate::model::state::MmState;
use crate::proc::auxv;
use crate::remote::Batch;

const PR_SET_MM: u64 = 35;
const PR_SET_MM_MAP: u64 = 14;
/// `struct prctl_mm_map`: eleven addresses, the vector's address, its length, a descriptor.
const MAP_BYTES: usize = 104;
/// Keeps `/proc/PID/exe`.
const NO_EXECUTABLE: u32 = u32::MAX;

/// Adds the call that sets addresses and auxiliary vector.
pub(super) fn set(
    batch: &mut Batch,
    checks: &mut Checks,
    vpid: Vpid,
    mm: &MmState,
) -> Result<(), RestoreStateError> {
    auxv::check(&mm.auxv).map_err(|error| RestoreStateError::Invalid { vpid, what: error.to_string() })?;
    let auxv = batch.place(&mm.auxv)?;
    let words = [
        mm.start_code,
        mm.end_code,
        mm.start_data,
        mm.end_data,
        mm.start_brk,
        mm.brk,
        mm.start_stack,
        mm.arg_start,
        mm.arg_end,
        mm.env_start,
        mm.env_end,
        auxv.address(),
    ];
    let mut map: Vec<u8> = words.iter().flat_map(|word| word.to_ne_bytes()).collect();
    map.extend_from_slice(&(mm.auxv.len() as u32).to_ne_bytes());
    map.extend_from_slice(&NO_EXECUTABLE.to_ne_bytes());
    debug_assert_eq!(map.len(), MAP_BYTES);
    let map = batch.place(&map)?;
    let arguments = [PR_SET_MM, PR_SET_MM_MAP, map.address(), MAP_BYTES as u64, 0];
    checks.add(batch.call(libc::SYS_prctl, &arguments), "set the memory addresses (PR_SET_MM_MAP)");
    Ok(())
}
