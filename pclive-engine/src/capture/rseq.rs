//! Restartable sequences: a thread that is stopped inside a critical section has to leave it by its abort handler.
//!
//! The kernel sends a thread to its abort handler when it resumes after having been preempted there. A remote call
//! resumes it elsewhere, which clears the section without aborting it: so the abort is taken over *before* the
//! first remote call.
//!
//! Kernel: rseq(2), `struct rseq` and `struct rseq_cs` of `linux/rseq.h`.

use super::failure::CaptureStateError;
use crate::model::{Pid, RemoteAddr};
use crate::remote::ProcessMemory;
use crate::sys::ptrace_state;
use crate::tracee::Registers;

/// `rseq_cs` in `struct rseq`.
const SECTION_AT: u64 = 8;
/// `struct rseq_cs`: version, flags, start_ip, post_commit_offset, abort_ip.
const SECTION_BYTES: usize = 32;

/// The registers with which a stopped thread may be taken for remote calls: its own, or if it is inside a critical
/// section, those at the section's abort handler.
pub fn leave_critical_section(
    pid: Pid,
    memory: &ProcessMemory,
    registers: Registers,
) -> Result<Registers, CaptureStateError> {
    let area = ptrace_state::rseq(pid).map_err(|source| CaptureStateError::Request {
        pid,
        what: "rseq area",
        source,
    })?;
    let Some(area) = area else { return Ok(registers) };
    let mut pointer = [0; 8];
    memory.read(RemoteAddr(area.address.0.saturating_add(SECTION_AT)), &mut pointer)?;
    let section = u64::from_le_bytes(pointer);
    if section == 0 {
        return Ok(registers);
    }
    let mut bytes = [0; SECTION_BYTES];
    memory.read(RemoteAddr(section), &mut bytes)?;
    Ok(abort(&bytes, registers))
}

fn abort(section: &[u8; SECTION_BYTES], mut registers: Registers) -> Registers {
    let (words, _) = section.as_chunks::<8>();
    let [_, start, length, abort] = [0, 1, 2, 3].map(|index| u64::from_le_bytes(words[index]));
    if registers.rip.wrapping_sub(start) < length {
        registers.rip = abort;
    }
    registers
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::ptrace::registers_from_bytes;

    #[test]
    fn only_an_instruction_inside_the_section_is_aborted() {
        let mut section = [0; SECTION_BYTES];
        section[8..16].copy_from_slice(&0x1000u64.to_le_bytes());
        section[16..24].copy_from_slice(&0x20u64.to_le_bytes());
        section[24..32].copy_from_slice(&0x5000u64.to_le_bytes());
        for (rip, expected) in [(0xfff, 0xfff), (0x1000, 0x5000), (0x101f, 0x5000), (0x1020, 0x1020)] {
            let mut registers = registers_from_bytes(&[0; 216]).unwrap();
            registers.rip = rip;
            assert_eq!(abort(&section, registers).rip, expected, "at {rip:#x}");
        }
    }
}
