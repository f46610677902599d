//! ptrace(2) requests. The calling thread must be the one that seized the task.

use std::io::{Error, Result};
use std::mem::size_of;

use crate::model::Pid;

/// `PTRACE_O_TRACESYSGOOD`: system call stops are told apart from signals.
pub const TRACE_SYSTEM_CALLS_GOOD: u64 = libc::PTRACE_O_TRACESYSGOOD as u64;
/// `PTRACE_O_TRACEFORK | TRACEVFORK | TRACECLONE`: children are seized from birth.
pub const TRACE_BIRTHS: u64 =
    (libc::PTRACE_O_TRACEFORK | libc::PTRACE_O_TRACEVFORK | libc::PTRACE_O_TRACECLONE) as u64;
/// `PTRACE_O_TRACEEXEC`: execve stops.
pub const TRACE_EXEC: u64 = libc::PTRACE_O_TRACEEXEC as u64;
/// `PTRACE_O_EXITKILL`: the task dies with its tracer.
pub const EXIT_KILL: u64 = libc::PTRACE_O_EXITKILL as u64;
/// `PTRACE_O_SUSPEND_SECCOMP`: filters sleep while the task is traced (CAP_SYS_ADMIN).
pub const SUSPEND_SECCOMP: u64 = libc::PTRACE_O_SUSPEND_SECCOMP as u64;

fn request(request: libc::c_uint, pid: Pid, addr: usize, data: usize) -> Result<i64> {
    // SAFETY: every caller in this file passes either plain numbers or the address of a live buffer of the
    // size that the request writes or reads; the kernel checks that the task is a stopped tracee of this thread.
    let result = unsafe { libc::ptrace(request, pid.0, addr, data) };
    if result == -1 { Err(Error::last_os_error()) } else { Ok(result) }
}

/// Seizes a task without stopping it. EPERM: another tracer has it. Linux 3.4.
pub fn seize(pid: Pid, options: u64) -> Result<()> {
    request(libc::PTRACE_SEIZE, pid, 0, options as usize).map(drop)
}

/// Replaces the options of a stopped tracee.
pub fn set_options(pid: Pid, options: u64) -> Result<()> {
    request(libc::PTRACE_SETOPTIONS, pid, 0, options as usize).map(drop)
}

/// Asks a seized task to stop; it does so with `PTRACE_EVENT_STOP`.
pub fn interrupt(pid: Pid) -> Result<()> {
    request(libc::PTRACE_INTERRUPT, pid, 0, 0).map(drop)
}

/// Lets a stopped tracee run until its next stop, delivering `signal` (0 = none).
pub fn resume(pid: Pid, signal: i32) -> Result<()> {
    request(libc::PTRACE_CONT, pid, 0, signal as usize).map(drop)
}

/// Like [`resume`], but also stops at the next system call's entry or exit.
pub fn resume_to_system_call(pid: Pid, signal: i32) -> Result<()> {
    request(libc::PTRACE_SYSCALL, pid, 0, signal as usize).map(drop)
}

/// Ends tracing of a stopped tracee, delivering `signal` (0 = none).
pub fn detach(pid: Pid, signal: i32) -> Result<()> {
    request(libc::PTRACE_DETACH, pid, 0, signal as usize).map(drop)
}

/// The message of the last event: the new task's id after a birth.
pub fn event_message(pid: Pid) -> Result<u64> {
    let mut message: libc::c_ulong = 0;
    request(libc::PTRACE_GETEVENTMSG, pid, 0, (&raw mut message) as usize)?;
    Ok(message)
}

/// General registers.
pub fn registers(pid: Pid) -> Result<libc::user_regs_struct> {
    // SAFETY: all-zero bytes are a valid user_regs_struct (integers only).
    let mut registers: libc::user_regs_struct = unsafe { std::mem::zeroed() };
    request(libc::PTRACE_GETREGS, pid, 0, (&raw mut registers) as usize)?;
    Ok(registers)
}

/// Sets the general registers.
pub fn set_registers(pid: Pid, registers: &libc::user_regs_struct) -> Result<()> {
    request(libc::PTRACE_SETREGS, pid, 0, std::ptr::from_ref(registers) as usize).map(drop)
}

/// Blocked signals. Linux 3.11.
pub fn signal_mask(pid: Pid) -> Result<u64> {
    let mut mask = 0u64;
    request(libc::PTRACE_GETSIGMASK, pid, size_of::<u64>(), (&raw mut mask) as usize)?;
    Ok(mask)
}

/// Sets the blocked signals; SIGKILL and SIGSTOP are left out by the kernel. Linux 3.11.
pub fn set_signal_mask(pid: Pid, mask: u64) -> Result<()> {
    request(libc::PTRACE_SETSIGMASK, pid, size_of::<u64>(), (&raw const mask) as usize).map(drop)
}

/// Registers as the bytes of `struct user_regs_struct`.
pub fn registers_to_bytes(registers: &libc::user_regs_struct) -> Vec<u8> {
    // SAFETY: the struct is made of 27 u64 without padding, so that every byte is initialised.
    let bytes = unsafe {
        std::slice::from_raw_parts(
            std::ptr::from_ref(registers).cast::<u8>(),
            size_of::<libc::user_regs_struct>(),
        )
    };
    bytes.to_vec()
}

/// The reverse of [`registers_to_bytes`]; `None` if the length is wrong.
pub fn registers_from_bytes(bytes: &[u8]) -> Option<libc::user_regs_struct> {
    if bytes.len() != size_of::<libc::user_regs_struct>() {
        return None;
    }
    // SAFETY: the length is right, every bit pattern is a valid struct of integers, and the read is unaligned.
    Some(unsafe { std::ptr::read_unaligned(bytes.as_ptr().cast()) })
}

const _: () = assert!(size_of::<libc::user_regs_struct>() == 27 * 8);
