//! How a system call that the stop has interrupted goes on: by the kernel's restart rules (signal(7)), and by the
//! engine's code where no kernel is asked.

use super::code::{Register, SAVED, SAVED_BYTES};
use crate::tracee::Registers;

/// Calls that end with EINTR at any stop instead of asking for a restart (signal(7)). They are made to ask: the
/// kernel then restarts them unless a handler runs, in which case they still end with EINTR.
pub(super) fn interrupted_call(mut registers: Registers) -> Registers {
    const RESTART_IF_NO_HANDLER: i64 = -514;
    let ends_early = matches!(
        registers.orig_rax as i64,
        libc::SYS_epoll_wait
            | libc::SYS_epoll_pwait
            | libc::SYS_epoll_pwait2
            | libc::SYS_rt_sigtimedwait
            | libc::SYS_semop
            | libc::SYS_semtimedop
            | libc::SYS_io_getevents
            | libc::SYS_recvfrom
            | libc::SYS_recvmsg
            | libc::SYS_recvmmsg
            | libc::SYS_accept
            | libc::SYS_accept4
    );
    if ends_early && registers.rax as i64 == -i64::from(libc::EINTR) {
        registers.rax = RESTART_IF_NO_HANDLER as u64;
    }
    registers
}

/// Registers with which an interrupted call starts again without the kernel's help: `-512..=-514` repeat the
/// call, `-516` goes through `restart_syscall`.
fn restart_in_user_mode(registers: &Registers) -> Registers {
    const RESTART_BLOCK: i64 = -516;
    let mut restarted = *registers;
    let in_call = registers.orig_rax as i64 >= 0;
    match registers.rax as i64 {
        -514..=-512 if in_call => (restarted.rax, restarted.rip) = (registers.orig_rax, registers.rip - 2),
        RESTART_BLOCK if in_call => {
            (restarted.rax, restarted.rip) = (libc::SYS_restart_syscall as u64, registers.rip - 2);
        }
        _ => {}
    }
    restarted
}

/// What the user-mode ending loads: the application's registers, moved to the restart of an interrupted call.
pub(super) fn saved_block(registers: &Registers) -> [u8; SAVED_BYTES] {
    let registers = restart_in_user_mode(registers);
    let value = |register: &Register| match register {
        Register::Rax => registers.rax,
        Register::Rbx => registers.rbx,
        Register::Rcx => registers.rcx,
        Register::Rdx => registers.rdx,
        Register::Rsi => registers.rsi,
        Register::Rdi => registers.rdi,
        Register::R8 => registers.r8,
        Register::R9 => registers.r9,
        Register::R10 => registers.r10,
        Register::R11 => registers.r11,
    };
    let mut block = [0; SAVED_BYTES];
    let words = SAVED.iter().map(value).chain([registers.rip]);
    for (place, word) in block.chunks_exact_mut(8).zip(words) {
        place.copy_from_slice(&word.to_le_bytes());
    }
    block
}
