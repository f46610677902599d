//! How a thread that was stopped inside a system call goes on at the destination.
//!
//! The registers of such a thread hold the number of the call (`orig_rax`) and the kernel's own verdict in `rax`.
//! A thread that is let go from a signal or event stop (never from a system call stop) has it applied by the
//! kernel, with any handler that is to run first:
//!
//! | verdict | meaning | at the destination |
//! |---|---|---|
//! | -512 ERESTARTSYS | restart, unless a handler without SA_RESTART runs | left as it is |
//! | -513 ERESTARTNOINTR | always restart | left as it is |
//! | -514 ERESTARTNOHAND | restart, unless any handler runs | left as it is |
//! | -516 ERESTART_RESTARTBLOCK | like -514, but go on with the kernel's note of the time left | made -514 |
//!
//! The note of the time left cannot be carried. `nanosleep` and a relative `clock_nanosleep` have written what is
//! left to their second timespec, if they were given one: it becomes the first. The others (`poll`, a relative
//! futex wait, a sleep that does not ask what is left) wait their whole timeout once more.

use crate::tracee::Registers;

const RESTART_UNLESS_HANDLER: i64 = -514;
const RESTART_BLOCK: i64 = -516;

/// The registers with which a thread is let go from a signal or event stop of another kernel.
pub fn restart(mut registers: Registers) -> Registers {
    if (registers.orig_rax as i64) < 0 || registers.rax as i64 != RESTART_BLOCK {
        return registers;
    }
    registers.rax = RESTART_UNLESS_HANDLER as u64;
    match registers.orig_rax as i64 {
        libc::SYS_nanosleep if registers.rsi != 0 => registers.rdi = registers.rsi,
        libc::SYS_clock_nanosleep if registers.r10 != 0 => registers.rdx = registers.r10,
        _ => {}
    }
    registers
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::ptrace::registers_from_bytes;

    fn stopped_in(call: i64, verdict: i64) -> Registers {
        let mut registers = registers_from_bytes(&[0; 216]).unwrap();
        (registers.orig_rax, registers.rax, registers.rip) = (call as u64, verdict as u64, 0x1002);
        (registers.rdi, registers.rsi, registers.rdx, registers.r10) = (1, 2, 3, 4);
        registers
    }

    #[test]
    fn kernel_applies_the_verdicts_that_it_knows() {
        for verdict in [-512, -513, -514, -4, 0, 7] {
            let before = stopped_in(libc::SYS_read, verdict);
            assert_eq!(restart(before), before, "{verdict}");
        }
    }

    #[test]
    fn call_with_a_restart_block_is_made_again_unless_a_handler_runs() {
        for call in [libc::SYS_poll, libc::SYS_futex] {
            let mut expected = stopped_in(call, RESTART_BLOCK);
            expected.rax = -514i64 as u64;
            assert_eq!(restart(stopped_in(call, RESTART_BLOCK)), expected);
        }
    }

    #[test]
    fn sleep_goes_on_with_what_it_was_told_is_left() {
        let sleep = restart(stopped_in(libc::SYS_nanosleep, RESTART_BLOCK));
        assert_eq!((sleep.rdi, sleep.rsi), (2, 2));
        let sleep = restart(stopped_in(libc::SYS_clock_nanosleep, RESTART_BLOCK));
        assert_eq!((sleep.rdx, sleep.r10), (4, 4));
    }

    #[test]
    fn sleep_that_was_told_nothing_starts_again() {
        let mut registers = stopped_in(libc::SYS_nanosleep, RESTART_BLOCK);
        registers.rsi = 0;
        assert_eq!(restart(registers).rdi, 1);
    }

    #[test]
    fn value_that_looks_like_a_verdict_outside_a_call_is_left_alone() {
        let before = stopped_in(-1, RESTART_BLOCK);
        assert_eq!(restart(before), before);
    }
}
