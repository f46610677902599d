//! The system calls that stops have interrupted, by thread.
//!
//! A sleep or poll(2) that a stop interrupts goes on as restart_syscall(2) (signal(7)): the next stop sees that number
//! and not which call it was. No other kernel can go on with it, so the number of the first stop is kept.

use std::collections::HashMap;

use super::stop::StoppedProcess;
use crate::model::Pid;
use crate::remote::{Captive, RemoteTask};

/// `-ERESTART_RESTARTBLOCK`, which the kernel shows to tracers only.
const RESTART_BLOCK: i64 = -516;

/// Calls that go on as restart_syscall(2).
#[derive(Debug, Default)]
pub(super) struct InterruptedCalls(HashMap<Pid, Call>);

/// A call, and where the thread made it: there it still is if it has not ended.
#[derive(Debug, Clone, Copy)]
struct Call {
    number: u64,
    rip: u64,
    rsp: u64,
}

impl InterruptedCalls {
    /// Gives every thread the number of the call that it is in, and keeps it for the next stop.
    pub(super) fn settle(&mut self, processes: &mut [StoppedProcess]) {
        processes.iter_mut().flat_map(|process| &mut process.threads).for_each(|thread| self.thread(thread));
    }

    fn thread(&mut self, thread: &mut Captive) {
        let (pid, registers) = (thread.pid(), *thread.registers());
        if registers.rax as i64 != RESTART_BLOCK {
            self.0.remove(&pid);
            return;
        }
        let known = self.0.get(&pid).filter(|call| (call.rip, call.rsp) == (registers.rip, registers.rsp));
        match known {
            Some(call) if registers.orig_rax as i64 == libc::SYS_restart_syscall => {
                thread.is_in_call(call.number)
            }
            Some(_) | None => {
                let call = Call { number: registers.orig_rax, rip: registers.rip, rsp: registers.rsp };
                self.0.insert(pid, call);
            }
        }
    }
}
