//! ptrace(2) requests for the state of a stopped tracee. The calling thread must be the one that seized it.
//!
//! ESRCH from any of them: the task is gone, or not stopped, or not a tracee of this thread.

use std::io::{Error, Result};

use crate::model::state::{Rseq, SeccompFilter};
use crate::model::{Pid, RemoteAddr};

const NT_X86_XSTATE: usize = 0x202;
const PTRACE_SECCOMP_GET_FILTER: libc::c_uint = 0x420c;
const PTRACE_SECCOMP_GET_METADATA: libc::c_uint = 0x420d;
const PTRACE_GET_SYSCALL_USER_DISPATCH_CONFIG: libc::c_uint = 0x4211;

/// Bytes of a `siginfo_t`.
pub const SIGINFO_BYTES: usize = 128;
/// Largest register set that any kernel is expected to have.
const MAX_XSTATE_BYTES: usize = 1 << 20;
/// `BPF_MAXINSNS` instructions of 8 bytes.
const MAX_FILTER_BYTES: usize = 4096 * 8;
/// Signals fetched by one request.
const SIGNALS_AT_ONCE: usize = 32;

/// `struct ptrace_peeksiginfo_args`.
#[repr(C)]
struct PeekArguments {
    offset: u64,
    flags: u32,
    count: i32,
}

/// `struct seccomp_metadata`.
#[repr(C)]
struct FilterMetadata {
    index: u64,
    flags: u64,
}

/// `struct ptrace_sud_config`.
#[repr(C)]
#[derive(Default)]
struct DispatchConfig {
    mode: u64,
    selector: u64,
    offset: u64,
    len: u64,
}

const _: () = assert!(size_of::<PeekArguments>() == 16);
const _: () = assert!(size_of::<FilterMetadata>() == 16);
const _: () = assert!(size_of::<DispatchConfig>() == 32);
const _: () = assert!(size_of::<libc::siginfo_t>() == SIGINFO_BYTES);
const _: () = assert!(size_of::<libc::ptrace_rseq_configuration>() == 24);

fn request(request: libc::c_uint, pid: Pid, addr: usize, data: usize) -> Result<usize> {
    // SAFETY: every caller in this file passes either plain numbers or the address of a live buffer that is at
    // least as large as what the request reads or writes; the kernel checks that the task is a stopped tracee.
    let result = unsafe { libc::ptrace(request, pid.0, addr, data) };
    if result < 0 { Err(Error::last_os_error()) } else { Ok(result as usize) }
}

/// The `NT_X86_XSTATE` register set: standard XSAVE format, as long as the kernel makes it. Linux 2.6.35.
pub fn xstate(pid: Pid) -> Result<Vec<u8>> {
    let mut bytes = vec![0; 16 << 10];
    loop {
        let mut range = libc::iovec { iov_base: bytes.as_mut_ptr().cast(), iov_len: bytes.len() };
        request(libc::PTRACE_GETREGSET, pid, NT_X86_XSTATE, (&raw mut range) as usize)?;
        // A full buffer may have been too short: the kernel cuts the set without a word.
        if range.iov_len < bytes.len() || bytes.len() >= MAX_XSTATE_BYTES {
            bytes.truncate(range.iov_len);
            return Ok(bytes);
        }
        bytes.resize(bytes.len() * 2, 0);
    }
}

/// Sets the `NT_X86_XSTATE` register set; `bytes` has the length that [`xstate`] returns for the same task.
/// EFAULT: wrong length; EINVAL: features or MXCSR bits that the CPU or the task does not have.
pub fn set_xstate(pid: Pid, bytes: &[u8]) -> Result<()> {
    let range = libc::iovec { iov_base: bytes.as_ptr().cast_mut().cast(), iov_len: bytes.len() };
    request(libc::PTRACE_SETREGSET, pid, NT_X86_XSTATE, (&raw const range) as usize).map(drop)
}

/// Queued signals of the thread, or with `shared` of its process, in order; they stay queued. Linux 3.10.
///
/// A signal that was sent when the queue's limit was reached has no entry; only `/proc/PID/status` shows it.
pub fn queued_signals(pid: Pid, shared: bool) -> Result<Vec<[u8; SIGINFO_BYTES]>> {
    let mut signals: Vec<[u8; SIGINFO_BYTES]> = Vec::new();
    loop {
        let mut part = [[0u8; SIGINFO_BYTES]; SIGNALS_AT_ONCE];
        let arguments = PeekArguments {
            offset: signals.len() as u64,
            flags: if shared { libc::PTRACE_PEEKSIGINFO_SHARED } else { 0 },
            count: SIGNALS_AT_ONCE as i32,
        };
        let from = (&raw const arguments) as usize;
        let count = request(libc::PTRACE_PEEKSIGINFO, pid, from, part.as_mut_ptr() as usize)?;
        signals.extend_from_slice(part.get(..count).unwrap_or_default());
        if count < SIGNALS_AT_ONCE {
            return Ok(signals);
        }
    }
}

/// The registered rseq area. Linux 5.13.
pub fn rseq(pid: Pid) -> Result<Option<Rseq>> {
    // SAFETY: all-zero bytes are a valid ptrace_rseq_configuration (integers only).
    let mut area: libc::ptrace_rseq_configuration = unsafe { std::mem::zeroed() };
    request(libc::PTRACE_GET_RSEQ_CONFIGURATION, pid, size_of_val(&area), (&raw mut area) as usize)?;
    let address = RemoteAddr(area.rseq_abi_pointer);
    let registered = area.rseq_abi_pointer != 0;
    Ok(registered.then_some(Rseq { address, size: area.rseq_abi_size, signature: area.signature }))
}

/// The `index`-th seccomp filter of a task, 0 = the oldest; `None` if it has no such filter. Linux 4.4.
///
/// EACCES: the caller lacks CAP_SYS_ADMIN or is filtered itself; EMEDIUMTYPE: the kernel has not kept the program.
pub fn seccomp_filter(pid: Pid, index: usize) -> Result<Option<SeccompFilter>> {
    let mut program = vec![0u8; MAX_FILTER_BYTES];
    let count = match request(PTRACE_SECCOMP_GET_FILTER, pid, index, program.as_mut_ptr() as usize) {
        Ok(count) => count,
        // EINVAL: the task has no filter at all.
        Err(error) if matches!(error.raw_os_error(), Some(libc::ENOENT | libc::EINVAL)) => return Ok(None),
        Err(error) => return Err(error),
    };
    program.truncate(count * 8);
    let mut metadata = FilterMetadata { index: index as u64, flags: 0 };
    request(PTRACE_SECCOMP_GET_METADATA, pid, size_of::<FilterMetadata>(), (&raw mut metadata) as usize)?;
    Ok(Some(SeccompFilter { flags: metadata.flags, program }))
}

/// The signal of the stop that a tracee is in: SIGTRAP for one that the tracer asked for, SIGSTOP (or SIGTSTP,
/// SIGTTIN, SIGTTOU) for a process that is stopped by job control.
pub fn stop_signal(pid: Pid) -> Result<i32> {
    // SAFETY: all-zero bytes are a valid siginfo_t; the kernel fills it in.
    let mut info: libc::siginfo_t = unsafe { std::mem::zeroed() };
    request(libc::PTRACE_GETSIGINFO, pid, 0, (&raw mut info) as usize)?;
    Ok(info.si_signo)
}

/// Whether syscall user dispatch (`PR_SET_SYSCALL_USER_DISPATCH`) is on: remote calls would raise SIGSYS.
/// EIO: a kernel before 6.4, which cannot tell.
pub fn dispatches_syscalls(pid: Pid) -> Result<bool> {
    let mut config = DispatchConfig::default();
    let to = (&raw mut config) as usize;
    request(PTRACE_GET_SYSCALL_USER_DISPATCH_CONFIG, pid, size_of::<DispatchConfig>(), to)?;
    Ok(config.mode != 0)
}
